"""A run in progress: its configuration, data, network and optimiser, new or as a checkpoint left them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phenoscape_tune import ranks
from phenoscape_tune.augment import TwoViews, build_views
from phenoscape_tune.augment_checks import check_transforms
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.batches import Batches
from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.data.parts import Parts
from phenoscape_tune.data.statistics import measure
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import Metric, choose_metric
from phenoscape_tune.files import write_whole
from phenoscape_tune.layers import save_config
from phenoscape_tune.model import Encoder, build_encoder, restore_encoder
from phenoscape_tune.training import checkpoint
from phenoscape_tune.training.board import TrialRow
from phenoscape_tune.training.device import adapt, autocast_dtype, be_deterministic
from phenoscape_tune.training.early_stopping import check_monitor
from phenoscape_tune.training.gradient_cache import GradientStep
from phenoscape_tune.training.schedule import build_optimizer, load_optimizer
from phenoscape_tune.versions import versions

log = logging.getLogger(__name__)

Row = dict[str, Any]


class Diverged(Exception):
    """The loss is no longer a number; `epoch` says when."""

    def __init__(self, epoch: int) -> None:
        super().__init__(epoch)
        self.epoch = epoch

    def __str__(self) -> str:
        return f"diverged at epoch {self.epoch}"


@dataclass(frozen=True)
class RunOptions:
    """What a search asks of a run beyond its configuration.

    Attributes:
        resume: checkpoint to go on from; None starts anew.
        reported_epochs: epochs that were reported before; the later ones of a resumed history are reported again.
        test: whether the last epoch also measures the test part and writes `test_scores.csv`.
        trial: how a search's trial is shown in TensorBoard beside the others.
        metric: the objective's name; auto: kNN accuracy where there are labels, else reference contrast.
        reference_seed: seed of the reference views; the same for all runs that are compared.
        micro_batch: images at once that `micro_batch_size: auto` starts with; None: a whole batch.
        notes: lines on what was decided before the run had a log.
    """

    resume: Path | None = None
    reported_epochs: int = 0
    test: bool = False
    trial: TrialRow | None = None
    metric: str = "auto"
    reference_seed: int = 0
    micro_batch: int | None = None
    notes: tuple[str, ...] = ()


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
    metric: Metric
    dtype: torch.dtype | None
    micro_batch: int | None = None
    notes: list[str] = field(default_factory=list)  # what was decided before there was a log
    reference_seed: int = 0
    spectra: ClassSpectra | None = None  # of the training part; None for RGB pictures, and where they were not needed
    epoch: int = 0
    history: list[Row] = field(default_factory=list)
    gradient_step: GradientStep = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        # Small gradients vanish in float16 (Micikevicius et al., arXiv 1710.03740, section 3.2).
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.gradient_step = GradientStep(self.encoder, self.config, self.scaler, self.micro_batch)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)


def start_run(config: TrainConfig, device: torch.device, options: RunOptions, parts: Parts) -> Run:
    """Folder, data, network and optimiser; new, or as a checkpoint left them."""
    torch.manual_seed(config.seed)
    metric = _check(config, options, parts, ranks.world_size())
    be_deterministic(config.deterministic)
    notes = list(options.notes)
    encoder, spectra = _encoder(config, options, parts, notes.append)
    encoder = encoder.to(device).to(memory_format=torch.channels_last)
    encoder = adapt(encoder, config, device, notes.append)
    run = Run(
        config=config,
        folder=Path(config.out_dir),
        device=device,
        parts=parts,
        batches=Batches(parts.images.pixels, config.step_images, device, parts.balance_by(config), config.pin_memory),
        encoder=encoder,
        optimizer=build_optimizer(config, encoder),
        two_views=build_views(config.transforms, parts.images.channels, fill=tuple(encoder.mean.flatten().tolist())),
        metric=metric,
        dtype=autocast_dtype(config, device, encoder, parts.channels, notes.append),
        micro_batch=options.micro_batch,
        notes=notes,
        reference_seed=options.reference_seed,
        spectra=spectra,
    )
    if options.resume is not None:
        load(run, options.resume)
    # Last: a checkpoint that does not fit must not leave its configuration behind.
    if ranks.rank() == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        save_config(config, run.folder / "config.yaml")
        (run.folder / "logs").mkdir(exist_ok=True)
        write_whole(run.folder / "logs" / "versions.json", json.dumps(versions(), indent=2) + "\n")
    return run


def check_run(config: TrainConfig, options: RunOptions, parts: Parts, devices: int) -> int:
    """Raise the UserError that `start_run` would raise, before anything of an earlier run is deleted.

    Returns the network's number of parameters.
    """
    _check(config, options, parts, devices)
    check_transforms(config.transforms, parts.images.channels)
    encoder, _ = _encoder(config, options, parts, lambda note: None)
    adapt(encoder, config, torch.device("cpu"), lambda note: None)
    return sum(parameter.numel() for parameter in encoder.parameters())


def _check(config: TrainConfig, options: RunOptions, parts: Parts, devices: int) -> Metric:
    metric = choose_metric(options.metric, parts.labels is not None, parts.few_labels)
    check_monitor(config.early_stopping, metric)
    if config.step_images * devices > len(parts.split.train):
        raise UserError(
            f"batch_size: {config.step_images} images on each of {devices} devices are more than the training part of "
            f"{config.data_dir} has ({len(parts.split.train)}); lower batch_size or accumulate_grad_batches"
        )
    return metric


def _encoder(
    config: TrainConfig, options: RunOptions, parts: Parts, say: Callable[[str], None]
) -> tuple[Encoder, ClassSpectra | None]:
    if options.resume is not None and config.weights is not None:
        # What it once started from may be gone, and the hub out of reach.
        return restore_encoder(config, checkpoint.load(options.resume).model, options.resume), None
    statistics = measure(parts.images, parts.split.train)
    return build_encoder(config, parts.channels, statistics.mean, statistics.std, say), statistics.spectra


def load(run: Run, path: Path) -> None:
    """Go on from a checkpoint. Raises UserError where it is of another network or optimiser."""
    state = checkpoint.load(path)
    try:
        run.encoder.load_state_dict(state.model)
        load_optimizer(run.optimizer, state.optimizer)
        if state.scaler:  # none where gradients were not scaled until now
            run.scaler.load_state_dict(state.scaler)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is of another network or optimiser than this configuration "
            f"({str(error).splitlines()[0][:200]}); resume without changing those keys"
        ) from error
    saved = state.config.get("optimizer")
    if saved != run.config.optimizer:
        raise UserError(f"{path}: was trained with optimizer={saved}, not {run.config.optimizer}; leave it as it was")
    now = run.config.to_mapping()
    unsaid = ("out_dir", "modality")  # earlier versions did not tell what kind of images the files held
    changed = [key for key, value in state.config.items() if key in now and now[key] != value and key not in unsaid]
    run.notes += [f"changed on purpose: {key} was {state.config[key]!r}, is {now[key]!r}" for key in changed]
    run.epoch, run.history = state.epoch, state.history


def describe(run: Run) -> None:
    config = run.config
    parameters = sum(p.numel() for p in run.encoder.backbone.parameters())
    log.info("%s: %s", config.data_dir, run.parts.describe())
    images = run.parts.images
    log.info(
        "%s, %.1f M parameters, input %d px, images %s at %d px",
        config.backbone,
        parameters / 1e6,
        config.input_size,
        f"decoded anew in each epoch by {config.num_workers} threads" if images.folder is None else "packed",
        images.pixels.shape[-1],
    )
    log.info(
        "%s, %s, %d threads; effective batch %d; %s",
        run.device,
        run.dtype or torch.float32,
        torch.get_num_threads(),
        config.step_images * ranks.world_size(),
        config.optimizer,
    )
    log.info("versions: %s", ", ".join(f"{name} {number}" for name, number in versions().items()))
    for note in run.notes:
        log.info("%s", note)
    if config.eta_min is not None and config.resolved_eta_min != config.eta_min:
        log.info("eta_min: %g is not below lr %g: the floor is %g", config.eta_min, config.lr, config.resolved_eta_min)
    if not ranks.in_group():
        for key, used in (("strategy: ddp", config.strategy == "ddp"), ("sync_batchnorm", config.sync_batchnorm)):
            if used:
                log.info("%s has nothing to do on one device", key)
    if run.gradient_step.micro_batch < config.step_images:
        log.info(
            "micro_batch_size: %d of %d images go through the network at once; the loss sees all, batch norm's "
            "statistics are of a micro-batch",
            run.gradient_step.micro_batch,
            config.step_images,
        )
    log.debug(
        "learning rate: %g after %g epochs of warm-up, then a cosine of period T_max=%d down to eta_min=%g; "
        "weight decay %g; gradient clipping %s",
        config.lr,
        config.resolved_warmup_epochs,
        config.schedule_epochs,
        config.resolved_eta_min,
        config.weight_decay,
        "none" if config.gradient_clip is None else f"at {config.gradient_clip:g}",
    )
    log.debug("objective: %s; best.ckpt is the epoch with the best one", run.metric.title)
    log.debug("folder: %s", run.folder)
    if run.epoch:
        log.info("goes on after epoch %d", run.epoch)


def save(run: Run) -> bool:
    """Save a checkpoint, on the first rank; returns whether its epoch is the best so far."""
    scores = [run.metric.sign * row["objective"] for row in run.history]
    best = scores[-1] >= max(scores)
    if ranks.rank() == 0:
        state = checkpoint.State(
            model=run.encoder.state_dict(),
            optimizer=run.optimizer.state_dict(),
            scaler=run.scaler.state_dict(),
            config=run.config.to_mapping(),
            epoch=run.epoch,
            history=run.history,
            channels=asdict(run.parts.images.channels),
            value_range=run.parts.images.recipe.value_range,
        )
        checkpoint.save(state, run.folder / "checkpoints", best=best)
        written = "last.ckpt and best.ckpt" if best else "last.ckpt"
        log.debug("wrote %s of epoch %d in %s", written, run.epoch, run.folder / "checkpoints")
    return best


def stream(*numbers: int) -> int:
    """A seed for a stream of its own, from numbers that would collide if they were added."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
