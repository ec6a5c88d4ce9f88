"""The training of one SimCLR encoder, from a configuration to checkpoints, logs and reported values."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.parts import Parts, open_parts, settle
from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.files import naming_full_disk
from phenoscape_tune.training.advice import Advisor
from phenoscape_tune.training.device import default_device, settings_given_back
from phenoscape_tune.training.device_use import DeviceUse
from phenoscape_tune.training.early_stopping import describe_stop, epochs_without_improvement
from phenoscape_tune.training.evaluation import find_neighbours, test, validate
from phenoscape_tune.training.monitor import Monitor, Progress, open_monitor
from phenoscape_tune.training.run import Diverged, Row, Run, RunOptions, describe, save, start_run, stream
from phenoscape_tune.training.schedule import learning_rate, set_learning_rate
from phenoscape_tune.training.step_clock import StepClock
from phenoscape_tune.training.uploads import open_uploads, put_checkpoints

log = logging.getLogger(__name__)

VIEW_SEED, LAYER_SEED = 1, 4  # of the streams of random numbers within one seed


def train_simclr(
    config: TrainConfig,
    report: Callable[[Row], None],
    options: RunOptions | None = None,
    device: torch.device | None = None,
    parts: Parts | None = None,
) -> list[Row]:
    """Train, and report one row an epoch: epoch, train_loss, val_loss, lr, seconds, images_per_second, waiting_share
    (of the time, for data), utilisation and device_memory_gb (on a CPU process_memory_gb), and on the
    validation part objective (`options.metric`), objective_error (its standard error, where it has one),
    objective_mean (of the last three epochs: what a search compares), rankme and feature_std (of the features h: both
    tell a collapse).

    `parts` are the configuration's images, where the caller has opened them already.

    Returns all rows. Raises Diverged where the loss becomes non-finite, UserError where the configuration does not fit
    the data, OutOfMemory where it does not fit the device, NoSpaceLeft where the disk is full. `report` may raise to
    stop the run.
    """
    options, parts = options or RunOptions(), parts or open_parts(config)
    config = settle(config, parts.images.recipe)
    with naming_full_disk(Path(config.out_dir)), settings_given_back():
        return _train(start_run(config, device or default_device(config), options, parts), report, options)


def _train(run: Run, report: Callable[[Row], None], options: RunOptions) -> list[Row]:
    config, steps = run.config, run.batches.steps(run.parts.split.train)
    said: list[str] = []  # on uploads, for who hears the reports

    def say(line: str) -> None:
        log.warning("%s", line)
        said.append(line)

    with (
        open_uploads(config, say) as uploads,
        open_monitor(run.folder, options.trial, run.epoch, steps) as monitor,
        run.gradient_step.naming_out_of_memory(),
    ):
        describe(run)
        if run.spectra is not None and run.epoch == 0:
            monitor.spectra(run.spectra)
        clock = StepClock(DeviceUse(run.device))
        advisor = Advisor(config, steps, config.step_images * ranks.world_size())
        advisor.look(run.history)  # what applied before a resume was said then
        for row in run.history[options.reported_epochs :]:
            report(row)
        while run.epoch < config.max_epochs and not stopped_early(run):
            started = time.perf_counter()
            run.epoch += 1
            train_loss = train_epoch(run, monitor, clock)
            measured, trained = clock.row(), time.perf_counter()
            row = {"epoch": run.epoch, "train_loss": train_loss, **validate(run), **measured}
            if options.test and run.epoch == config.max_epochs:
                row |= test(run)
            row["objective_mean"] = trial_objective([r["objective"] for r in (*run.history, row)])
            row["lr"] = run.optimizer.param_groups[0]["lr"]
            validated = time.perf_counter()
            row["seconds"] = validated - started
            run.history.append(row)
            put_checkpoints(uploads, best=save(run))
            if run.epoch == config.max_epochs or out_of_patience(run):
                monitor.neighbours(run.parts, *find_neighbours(run))
            told = (trained - started, validated - trained, time.perf_counter() - validated)
            log.debug("epoch %d: %.2f s of training, %.2f s of validation, %.2f s of saving", run.epoch, *told)
            monitor.epoch(row, config.max_epochs)
            monitor.advise(advisor.look(run.history))
            report({**row, "note": said.pop()} if said else row)
    return run.history


def stopped_early(run: Run) -> bool:
    """Whether the run has stopped because its monitored value no longer improves."""
    stopping = run.config.early_stopping
    if stopping is None or not out_of_patience(run):
        return False
    log.info("%s", describe_stop(stopping, run.epoch))
    return True


def out_of_patience(run: Run) -> bool:
    """Whether the run's monitored value has not improved for as long as the configuration bears."""
    stopping = run.config.early_stopping
    if stopping is None:
        return False
    return epochs_without_improvement(stopping, run.metric, run.history) >= stopping.patience


def train_epoch(run: Run, monitor: Monitor, clock: StepClock) -> float:
    """One pass over the training part, timed by `clock`; returns the mean loss."""
    config = run.config
    run.encoder.train()
    # Random layers (drop path) draw from torch's global stream: tied to the epoch, a resumed run draws the same.
    torch.manual_seed(stream(config.seed, LAYER_SEED, run.epoch, ranks.rank()))
    generator = torch.Generator().manual_seed(stream(config.seed, VIEW_SEED, run.epoch))
    steps = run.batches.steps(run.parts.split.train)
    total = torch.zeros((), device=run.device)
    batches = run.batches.shuffled(run.parts.split.train, config.seed, run.epoch)
    for step, images in enumerate(clock.steps(batches), start=1):
        set_learning_rate(run.optimizer, learning_rate(config, run.epoch - 1 + (step - 1) / steps))
        # Drawn for the images of all ranks: what an image is given does not depend on how many there are.
        drawn = run.two_views.draw(len(images) * ranks.world_size(), *run.batches.size, generator)
        views = run.two_views.apply(images, drawn.share(ranks.rank(), ranks.world_size()))  # (2B, C, S, S)
        views = views.contiguous(memory_format=torch.channels_last)
        if run.epoch == 1 and step == 1:
            monitor.views(views, run.parts.images.channels)
        loss = run.gradient_step(views, run.autocast)
        logged = ((run.epoch - 1) * steps + step) % config.log_every_n_steps == 0
        norm = _clip(run, logged)
        run.scaler.step(run.optimizer)  # with float16 not where the scaled gradient overflowed
        run.scaler.update()
        total += loss
        # Reading a value waits for a GPU, so there it is read only where it is logged; on a CPU it costs nothing.
        value = None
        if logged or run.device.type == "cpu":
            value = float(loss)
            if not math.isfinite(value):
                raise Diverged(run.epoch)
            if logged:
                lr = run.optimizer.param_groups[0]["lr"]
                monitor.step(run.epoch, step, steps, {"loss": value, "lr": lr, "gradient_norm": float(norm)})
        monitor.progress(Progress(run.epoch, config.max_epochs, step, steps, clock.images_per_second, value))
    ranks.average_buffers(run.encoder)
    mean = float(ranks.mean_over_ranks(total / steps))
    if not math.isfinite(mean):
        raise Diverged(run.epoch)
    return mean


def _clip(run: Run, wanted: bool) -> Tensor | float:
    """Clip the gradient where the configuration asks for it; returns its norm before, where that is wanted."""
    limit = run.config.gradient_clip
    if limit is not None or wanted:
        run.scaler.unscale_(run.optimizer)
    if limit is not None:
        return torch.nn.utils.clip_grad_norm_(run.encoder.parameters(), limit)
    if not wanted:
        return 0.0
    return torch.nn.utils.get_total_norm([p.grad for p in run.encoder.parameters() if p.grad is not None])
