"""Training functions for ranks in processes of their own, which import them by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from phenoscape_tune import ranks
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.training import checkpoint
from phenoscape_tune.training.launch import run_in_process
from phenoscape_tune.training.memory import OutOfMemory
from phenoscape_tune.training.run import Diverged, Row, RunOptions

Report = Callable[[Row], None]


def shares(config: TrainConfig, report: Report, options: RunOptions) -> list[Row]:
    """Reports what the ranks gather of rows 0 to 4, of which each holds every second, and the mean of a buffer."""

    def train() -> None:
        share = torch.arange(5.0)[ranks.rank() :: 2, None] * torch.ones(1, 3)
        norm = torch.nn.BatchNorm1d(2)
        norm.running_mean.fill_(float(ranks.rank()))  # type: ignore[union-attr]
        ranks.average_buffers(norm)
        values = {"gathered": ranks.gather_shares(share, 5).tolist(), "mean": norm.running_mean.tolist()}  # type: ignore[union-attr]
        report({"epoch": 1, **values, "world": dist.get_world_size(), "threads": torch.get_num_threads()})

    run_in_process(train, "shares")
    return [{"epoch": 1}]


def waits(config: TrainConfig, report: Report, options: RunOptions) -> list[Row]:
    """The first rank reports its process and the other's, and goes on reporting; the other waits for ever."""
    if os.environ["RANK"] == "0":
        for epoch in range(1, 1000):
            report({"epoch": epoch, "pid": os.getpid()})
    time.sleep(3600)
    return []


def second_fails(config: TrainConfig, report: Report, options: RunOptions) -> list[Row]:
    """The second rank ends as `out_dir` says; the first waits for it for ever."""
    if os.environ["RANK"] == "0":
        time.sleep(3600)
    how = os.path.basename(config.out_dir)
    if how == "silent":
        os._exit(7)
    raise {"diverged": Diverged(3), "user": UserError("labels: none"), "other": KeyError("x")}[how]


def too_large(config: TrainConfig, report: Report, options: RunOptions) -> list[Row]:
    """Memory holds four images at a time; two epochs, the first of which is reported before memory runs out."""
    for epoch in range(options.reported_epochs + 1, 3):
        if epoch == 2 and (options.micro_batch or config.batch_size) > 4:
            if os.environ["RANK"] != "0":
                time.sleep(3600)  # as it would wait for the first one's share of a batch
            raise OutOfMemory("out of memory")
        if os.environ["RANK"] == "0":
            state = checkpoint.State({}, {}, {}, epoch)
            checkpoint.save(state, Path(config.out_dir) / "checkpoints", best=False)
            report({"epoch": epoch, "micro_batch": options.micro_batch, "resume": str(options.resume)})
    return []
