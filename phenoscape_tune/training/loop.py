"""The training of one SimCLR encoder, from a configuration to checkpoints, logs and reported values."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.parts import Parts, open_parts
from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.training.device import autocast_dtype, default_device
from phenoscape_tune.training.evaluation import test, validate
from phenoscape_tune.training.monitor import Monitor, open_monitor
from phenoscape_tune.training.run import Diverged, Row, Run, RunOptions, describe, save, start_run, stream
from phenoscape_tune.training.schedule import learning_rate, set_learning_rate

VIEW_SEED = 1  # of the streams of random numbers within one seed


def train_simclr(
    config: TrainConfig,
    report: Callable[[Row], None],
    options: RunOptions | None = None,
    device: torch.device | None = None,
    parts: Parts | None = None,
) -> list[Row]:
    """Train, and report one row an epoch: epoch, train_loss, val_loss, lr, images_per_second, seconds, and on the
    validation part objective (`options.metric`), objective_error (its standard error, where it has one),
    objective_mean (of the last three epochs: what a search compares), rankme and feature_std (of the features h: both
    tell a collapse).

    `parts` are the configuration's images, where the caller has opened them already.

    Returns all rows. Raises Diverged where the loss becomes non-finite, UserError where the configuration does not fit
    the data, OutOfMemory where it does not fit the device. `report` may raise to stop the run.
    """
    options = options or RunOptions()
    run = start_run(config, device or default_device(config), options, parts or open_parts(config))
    with open_monitor(run.folder, options.hparams, run.epoch) as monitor, run.gradient_step.naming_out_of_memory():
        run.dtype = autocast_dtype(config, run.device, run.encoder, run.parts.channels)
        describe(run)
        for row in run.history[options.reported_epochs :]:
            report(row)
        while run.epoch < config.max_epochs:
            started = time.perf_counter()
            run.epoch += 1
            train_loss = train_epoch(run, monitor)
            trained = time.perf_counter() - started
            row = {"epoch": run.epoch, "train_loss": train_loss, **validate(run)}
            if options.test and run.epoch == config.max_epochs:
                row |= test(run)
            row["objective_mean"] = trial_objective([r["objective"] for r in (*run.history, row)])
            row["lr"] = run.optimizer.param_groups[0]["lr"]
            row["images_per_second"] = run.batches.steps(run.parts.split.train) * config.batch_size / trained
            row["seconds"] = time.perf_counter() - started
            run.history.append(row)
            save(run)
            monitor.epoch(row, config.max_epochs)
            report(row)
    return run.history


def train_epoch(run: Run, monitor: Monitor) -> float:
    """One pass over the training part; returns the mean loss."""
    config = run.config
    run.encoder.train()
    # Random layers (drop path) draw from torch's global stream: tied to the epoch, a resumed run draws the same.
    torch.manual_seed(config.seed + run.epoch)
    generator = torch.Generator().manual_seed(stream(config.seed, VIEW_SEED, run.epoch))
    steps = run.batches.steps(run.parts.split.train)
    total = torch.zeros((), device=run.device)
    for step, images in enumerate(run.batches.shuffled(run.parts.split.train, config.seed, run.epoch), start=1):
        set_learning_rate(run.optimizer, learning_rate(config, run.epoch - 1 + (step - 1) / steps))
        views = run.two_views(images, generator).contiguous(memory_format=torch.channels_last)  # (2B, C, S, S)
        if run.epoch == 1 and step == 1:
            monitor.views(views)
        loss = run.gradient_step(views, run.autocast)
        logged = ((run.epoch - 1) * steps + step) % config.log_every_n_steps == 0
        norm = _clip(run, logged)
        run.optimizer.step()
        total += loss
        # Reading a value waits for a GPU, so there it is read only where it is logged; on a CPU it costs nothing.
        if logged or run.device.type == "cpu":
            value = float(loss)
            if not math.isfinite(value):
                raise Diverged(run.epoch)
            if logged:
                lr = run.optimizer.param_groups[0]["lr"]
                monitor.step(run.epoch, step, steps, {"loss": value, "lr": lr, "gradient_norm": float(norm)})
    mean = float(ranks.mean_over_ranks(total / steps))
    if not math.isfinite(mean):
        raise Diverged(run.epoch)
    return mean


def _clip(run: Run, wanted: bool) -> Tensor | float:
    """Clip the gradient where the configuration asks for it; returns its norm before, where that is wanted."""
    limit = run.config.gradient_clip
    if limit is not None:
        return torch.nn.utils.clip_grad_norm_(run.encoder.parameters(), limit)
    if not wanted:
        return 0.0
    return torch.nn.utils.get_total_norm([p.grad for p in run.encoder.parameters() if p.grad is not None])
