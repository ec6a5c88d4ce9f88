"""Runs the training function through Ray Train's TorchTrainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

# Read by Ray when it is first imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")

from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.parts import Parts
from phenoscape_tune.training.device import default_device
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.rank_group import device_count, run_ranks
from phenoscape_tune.training.run import Row, RunOptions


def launch(
    config: TrainConfig,
    report: Callable[[Row], None],
    options: RunOptions | None = None,
    parts: Parts | None = None,
) -> list[Row]:
    """Train on one device in this process, or on several in a process each.

    Args, returns and raises as `train_simclr`.
    """
    options = options or RunOptions()
    count = device_count(config)
    if count > 1:
        return run_ranks(config, report, options, count, train_rank)
    return train_rank(config, report, options, parts)


def train_rank(
    config: TrainConfig, report: Callable[[Row], None], options: RunOptions, parts: Parts | None = None
) -> list[Row]:
    """Train on this process's device, as one rank of its process group where it has one."""
    rows: list[Row] = []

    def train() -> None:
        device = default_device(config)
        if device.type == "cuda":
            device = get_device()  # the one that Ray, or the rank, is given
        rows.extend(train_simclr(config, report, options, device, parts))

    run_in_process(train, config.out_dir)
    return rows


def run_in_process(train: Callable[[], None], name: str) -> None:
    """Run a training function as a TorchTrainer in this process (Ray Train's local mode: no workers to start)."""
    # It would announce local mode at every trial.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    trainer = TorchTrainer(
        lambda _: train(),
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name=name.replace(os.sep, "_")),
    )
    trainer.fit()
