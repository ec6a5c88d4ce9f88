"""The training of one SimCLR encoder, from a configuration to checkpoints, logs and reported values."""

from __future__ import annotations

import csv
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.augment import TwoViews, plain_view
from phenoscape_tune.config import TrainConfig, save_config
from phenoscape_tune.data.batches import Batches
from phenoscape_tune.data.parts import Parts, open_parts
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import knn_score, trial_objective
from phenoscape_tune.model import Encoder, build_encoder
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training import checkpoint
from phenoscape_tune.training.device import autocast_dtype, default_device
from phenoscape_tune.training.monitor import Monitor, open_monitor
from phenoscape_tune.training.schedule import build_optimizer, learning_rate, set_learning_rate

log = logging.getLogger(__name__)

Row = dict[str, Any]
VIEW_SEED, VALIDATION_SEED = 1, 2  # streams of random numbers within one run's seed


class Diverged(Exception):
    """The loss is no longer a number; `epoch` says when."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"diverged at epoch {epoch}")
        self.epoch = epoch


@dataclass(frozen=True)
class RunOptions:
    """What a search asks of a run beyond its configuration.

    Attributes:
        resume: checkpoint to go on from; None starts anew.
        reported_epochs: epochs that were reported before; the later ones of a resumed history are reported again.
        test: whether the last epoch also measures the test part and writes `test_predictions.csv`.
        hparams: the searched values, for TensorBoard.
    """

    resume: Path | None = None
    reported_epochs: int = 0
    test: bool = False
    hparams: Mapping[str, Any] | None = None


@dataclass
class Run:
    """A run in progress."""

    config: TrainConfig
    folder: Path
    device: torch.device
    parts: Parts
    batches: Batches
    encoder: Encoder
    optimizer: torch.optim.Optimizer
    two_views: TwoViews
    dtype: torch.dtype | None = None
    epoch: int = 0
    history: list[Row] = field(default_factory=list)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def train_simclr(
    config: TrainConfig,
    report: Callable[[Row], None],
    options: RunOptions | None = None,
    device: torch.device | None = None,
    parts: Parts | None = None,
) -> list[Row]:
    """Train, and report one row an epoch: epoch, train_loss, val_loss, lr, images_per_second, seconds, and where there
    are labels objective and objective_error (kNN balanced accuracy on the validation part, and its standard error) and
    objective_mean (of the last three epochs: what a search compares).

    `parts` are the configuration's images, where the caller has opened them already.

    Returns all rows. Raises Diverged where the loss becomes non-finite, UserError where the configuration does not fit
    the data. `report` may raise to stop the run.
    """
    options = options or RunOptions()
    run = start_run(config, device or default_device(config), options, parts or open_parts(config))
    with open_monitor(run.folder, options.hparams, run.epoch) as monitor:
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
            if "objective" in row:
                row["objective_mean"] = trial_objective([r["objective"] for r in (*run.history, row)])
            row["lr"] = run.optimizer.param_groups[0]["lr"]
            row["images_per_second"] = run.batches.steps(run.parts.split.train) * config.batch_size / trained
            row["seconds"] = time.perf_counter() - started
            run.history.append(row)
            save(run)
            monitor.epoch(row, config.max_epochs)
            report(row)
    return run.history


def start_run(config: TrainConfig, device: torch.device, options: RunOptions, parts: Parts) -> Run:
    """Folder, data, network and optimiser; new, or as a checkpoint left them."""
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.deterministic)
    mean, std = channel_statistics(parts)
    encoder = build_encoder(config, parts.channels, mean, std).to(device).to(memory_format=torch.channels_last)
    run = Run(
        config=config,
        folder=Path(config.out_dir),
        device=device,
        parts=parts,
        batches=Batches(parts.packed.images, config.batch_size, device),
        encoder=encoder,
        optimizer=build_optimizer(config, encoder),
        two_views=TwoViews(**config.transforms.model_dump()),
    )
    if options.resume is not None:
        load(run, options.resume)
    # Last: a checkpoint that does not fit must not leave its configuration behind.
    run.folder.mkdir(parents=True, exist_ok=True)
    save_config(config, run.folder / "config.yaml")
    return run


def load(run: Run, path: Path) -> None:
    """Go on from a checkpoint. Raises UserError where it is of another network or optimiser."""
    state = checkpoint.load(path)
    try:
        run.encoder.load_state_dict(state.model)
        run.optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is of another network or optimiser than this configuration "
            f"({str(error).splitlines()[0][:200]}); resume without changing those keys"
        ) from error
    saved = state.config.get("optimizer")
    if saved != run.config.optimizer:
        raise UserError(f"{path}: was trained with optimizer={saved}, not {run.config.optimizer}; leave it as it was")
    run.epoch, run.history = state.epoch, state.history


def channel_statistics(parts: Parts, most: int = 2000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the training images in [0, 1], from at most `most` of them."""
    chosen = parts.split.train[:: max(1, len(parts.split.train) // most)]
    count, total, squares = 0, np.zeros(parts.channels), np.zeros(parts.channels)
    for start in range(0, len(chosen), 256):
        pixels = parts.packed.images[chosen[start : start + 256]].astype(np.float64) / 255  # (n, C, S, S)
        count += pixels[:, 0].size
        total += pixels.sum(axis=(0, 2, 3))
        squares += np.square(pixels).sum(axis=(0, 2, 3))
    mean = total / count
    return list(mean), list(np.sqrt(np.maximum(squares / count - mean**2, 0)))


def describe(run: Run) -> None:
    config = run.config
    parameters = sum(p.numel() for p in run.encoder.backbone.parameters())
    log.info("%s: %s", config.data_dir, run.parts.describe())
    log.info(
        "%s, %.1f M parameters, input %d px, packed at %d px",
        config.backbone,
        parameters / 1e6,
        config.input_size,
        run.parts.packed.images.shape[-1],
    )
    log.info(
        "%s, %s, %d threads; effective batch %d; %s",
        run.device,
        run.dtype or torch.float32,
        torch.get_num_threads(),
        config.batch_size * ranks.world_size(),
        config.optimizer,
    )
    if config.eta_min is not None and config.resolved_eta_min != config.eta_min:
        log.info("eta_min: %g is not below lr %g: the floor is %g", config.eta_min, config.lr, config.resolved_eta_min)
    if config.pin_memory or config.persistent_workers:
        log.info("images are packed: pin_memory and persistent_workers, for the loader of unpacked ones, are not used")
    if config.strategy == "ddp":
        log.info("strategy: ddp has nothing to distribute on one device")
    if run.epoch:
        log.info("goes on after epoch %d", run.epoch)


def train_epoch(run: Run, monitor: Monitor) -> float:
    """One pass over the training part; returns the mean loss."""
    config = run.config
    run.encoder.train()
    # Random layers (drop path) draw from torch's global stream: tied to the epoch, a resumed run draws the same.
    torch.manual_seed(config.seed + run.epoch)
    generator = torch.Generator().manual_seed(_stream(config.seed, VIEW_SEED, run.epoch))
    steps = run.batches.steps(run.parts.split.train)
    total = torch.zeros((), device=run.device)
    for step, images in enumerate(run.batches.shuffled(run.parts.split.train, config.seed, run.epoch), start=1):
        set_learning_rate(run.optimizer, learning_rate(config, run.epoch - 1 + (step - 1) / steps))
        views = run.two_views(images, generator).contiguous(memory_format=torch.channels_last)  # (2B, C, S, S)
        if run.epoch == 1 and step == 1:
            monitor.views(views)
        with run.autocast():
            _, z = run.encoder(views)  # (2B, projection_dim)
        loss = nt_xent(z, config.temperature)
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        logged = ((run.epoch - 1) * steps + step) % config.log_every_n_steps == 0
        norm = _clip(run, logged)
        run.optimizer.step()
        total += loss.detach()
        # Reading a value waits for a GPU, so there it is read only where it is logged; on a CPU it costs nothing.
        if logged or run.device.type == "cpu":
            value = float(loss.detach())
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


@torch.no_grad()
def validate(run: Run) -> Row:
    """Validation loss on the run's own augmentation and temperature, and the objective where there are labels."""
    run.encoder.eval()
    val = run.parts.split.val
    generator = torch.Generator().manual_seed(_stream(run.config.seed, VALIDATION_SEED, 0))
    total = 0.0
    for images in run.batches.in_order(val):
        views = run.two_views(images, generator).contiguous(memory_format=torch.channels_last)
        with run.autocast():
            _, z = run.encoder(views)
        total += float(nt_xent(z, run.config.temperature)) * len(images)
    if not math.isfinite(total):
        raise Diverged(run.epoch)
    row: Row = {"val_loss": total / len(val)}
    if run.parts.labels is not None:
        score = knn_score(*_labelled(run, run.parts.split.train), *_labelled(run, val))
        row |= {"objective": score.value, "objective_error": score.error}
    return row


def test(run: Run) -> Row:
    """The objective on the test part, which no choice was made on; predictions go to `test_predictions.csv`."""
    part = run.parts.split.test
    labels = run.parts.labels
    if labels is None or not len(part):
        return {}
    score = knn_score(*_labelled(run, run.parts.split.train), *_labelled(run, part))
    specimens = run.parts.packed.specimens
    names, groups, classes = specimens.names, specimens.groups, specimens.classes
    path = run.folder / "test_predictions.csv"
    # File names need not be UTF-8: as they are on the disk they are written.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "group", "label", "predicted"])
        for index, predicted in zip(part, score.predicted, strict=True):
            writer.writerow([names[index], groups[index], classes[labels[index]], classes[predicted]])
    return {"test_objective": score.value, "test_error": score.error}


def _labelled(run: Run, part: np.ndarray) -> tuple[Tensor, np.ndarray]:
    assert run.parts.labels is not None
    return embed(run, part), run.parts.labels[part]


@torch.no_grad()
def embed(run: Run, part: np.ndarray) -> Tensor:
    """Backbone features h (n, D), float32, of whole images without augmentation."""
    run.encoder.eval()
    features = []
    for images in run.batches.in_order(part):
        views = plain_view(images, run.config.input_size).contiguous(memory_format=torch.channels_last)
        with run.autocast():
            features.append(run.encoder.features(views).float())
    return torch.cat(features)


def save(run: Run) -> None:
    if ranks.rank() == 0:
        # Where there are labels the objective tells the best epoch; the loss is comparable within one run.
        scores = [row.get("objective", -row["val_loss"]) for row in run.history]
        state = checkpoint.State(
            model=run.encoder.state_dict(),
            optimizer=run.optimizer.state_dict(),
            config=run.config.to_mapping(),
            epoch=run.epoch,
            history=run.history,
        )
        checkpoint.save(state, run.folder / "checkpoints", best=scores[-1] >= max(scores))


def _stream(*numbers: int) -> int:
    """A seed for a stream of its own, from numbers that would collide if they were added."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
