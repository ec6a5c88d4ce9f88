"""The disk that a run needs for its checkpoints and logs, estimated before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError

WHILE_RUNNING = 4  # checkpoints on the disk: last, the one before, best, and the one that is being written
WHEN_ENDED = 2  # last and best
_BYTES = 4  # of a number; weights and optimiser are kept in float32
_OF_OPTIMIZER = {"adamw": 2, "sgd": 1, "lars": 1}  # numbers that it keeps for each parameter
_REST = 200_000  # of a checkpoint: batch norm's statistics, names, history
# Of a run's logs, measured: TensorBoard's header, configuration and versions, with the picture of nearest neighbours; a
# line in each log an epoch; and the picture of augmented views, which hardly compresses.
_LOGS, _LOG_EPOCH, _LOG_PIXEL = 300_000, 3_500, 48


def checkpoint_bytes(config: TrainConfig, parameters: int) -> int:
    """Size of a checkpoint of a network with so many parameters."""
    return _BYTES * parameters * (1 + _OF_OPTIMIZER[config.optimizer]) + _REST


def log_bytes(config: TrainConfig) -> int:
    """Size of a run's logs."""
    return _LOGS + _LOG_EPOCH * config.max_epochs + _LOG_PIXEL * config.input_size**2


def run_bytes(config: TrainConfig, parameters: int) -> int:
    """Disk that a single run needs at most."""
    return WHILE_RUNNING * checkpoint_bytes(config, parameters) + log_bytes(config)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free


def check_space(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Raise UserError with both numbers where a folder's disk has less than `needed` bytes free."""
    free = free_bytes(folder)
    if free < needed:
        both = f"{what} needs about {describe_bytes(needed)} of disk, and {describe_bytes(free)} are free"
        raise UserError(f"{folder}: {both}; {remedy}")


def describe_bytes(number: float) -> str:
    """A number of bytes for people: 1.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} GB" if number < 1000 else f"{number / 1000:,.1f} TB"
