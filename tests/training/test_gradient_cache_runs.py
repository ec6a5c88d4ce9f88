"""The gradient cache in real runs, and in two real ranks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from two_ranks import run_two_ranks

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.parts import open_parts
from phenoscape_tune.model import Encoder, build_encoder
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training import checkpoint, run
from phenoscape_tune.training.gradient_cache import OOM_ABOVE
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.memory import OutOfMemory
from phenoscape_tune.training.run import Row, RunOptions, start_run

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")


@pytest.mark.slow
def test_two_real_ranks_equal_one_process_with_the_global_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = torch.randn(2, 14, 7, dtype=torch.float64)  # seven images a rank, two at a time
    layer = nn.Linear(7, 5, dtype=torch.float64)
    results = run_two_ranks(
        tmp_path,
        batch,
        layer,
        imports="from contextlib import nullcontext\nfrom phenoscape_tune.training.gradient_cache import backpropagate",
        output="(x, super().forward(x))",
        loss="loss = backpropagate(ddp, own, 0.2, 2, nullcontext)",
    )
    loss = nt_xent(layer(batch.reshape(-1, 7)), 0.2)
    loss.backward()
    for result in results:
        assert torch.allclose(result["loss"], loss.detach(), rtol=1e-10)
        assert torch.allclose(result["weight"], layer.weight.grad, rtol=1e-8, atol=1e-12)
        assert torch.allclose(result["bias"], layer.bias.grad, rtol=1e-8, atol=1e-12)


# Real runs


class Stop(Exception):
    pass


def train(config: TrainConfig, options: RunOptions | None = None, stop_after: int | None = None) -> list[Row]:
    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == stop_after:
            raise Stop

    return train_simclr(config, report, options, CPU)


def read_log(config: TrainConfig) -> str:
    return (Path(config.out_dir) / "logs" / "training.log").read_text()


@pytest.mark.slow
def test_without_batch_norm_a_run_in_micro_batches_is_the_run_of_the_whole_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: Any) -> Encoder:
        encoder = build_encoder(*arguments)
        encoder.head[1] = nn.Identity()
        return encoder

    monkeypatch.setattr(run, "build_encoder", build)
    # One step an epoch: the first epoch's loss is that of the first step.
    values = {"backbone": "test_vit.r160_in1k", "stem": "auto", "batch_size": 48, "precision": 32, "warmup_epochs": 0}
    whole = train(tiny(**values, out_dir=str(tmp_path / "whole"), max_epochs=3))
    parts = train(tiny(**values, out_dir=str(tmp_path / "parts"), max_epochs=3, micro_batch_size=4))
    assert parts[0]["train_loss"] == pytest.approx(whole[0]["train_loss"], rel=1e-6)
    assert [row["train_loss"] for row in parts] == pytest.approx([row["train_loss"] for row in whole], rel=1e-4)
    assert [row["val_loss"] for row in parts] == pytest.approx([row["val_loss"] for row in whole], rel=1e-4)
    assert whole[0]["train_loss"] != whole[1]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("micro", ["given", "found"])
def test_a_resumed_run_in_micro_batches_equals_an_unbroken_one_to_the_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: str
) -> None:
    values: dict[str, Any] = {"batch_size": 16, "max_epochs": 3}
    if micro == "given":
        values["micro_batch_size"] = 4
    else:
        monkeypatch.setenv(OOM_ABOVE, "5")
    whole = train(tiny(**values, out_dir=str(tmp_path / "a")))
    broken = tiny(**values, out_dir=str(tmp_path / "b"))
    with pytest.raises(Stop):
        train(broken, stop_after=1)
    rows = train(broken, RunOptions(resume=tmp_path / "b" / "checkpoints" / "last.ckpt"))
    assert np.isfinite([row["train_loss"] for row in whole]).all()
    for key in ("train_loss", "val_loss", "objective"):
        assert [row[key] for row in rows] == [row[key] for row in whole]
    a, b = (checkpoint.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in "ab")
    assert all(torch.equal(a.model[key], b.model[key]) for key in a.model)
    log = read_log(broken)
    if micro == "given":
        assert "micro_batch_size: 4 of 16 images go through the network at once; the loss sees all" in log
        assert "out of memory" not in log
    else:
        assert "out of memory: from here on 8 images go through the network at once instead of 16" in log
        assert "from here on 4 images" in log


@pytest.mark.slow
def test_a_run_that_cannot_fit_ends_with_one_line(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OOM_ABOVE, "1")
    with pytest.raises(OutOfMemory, match="batch_size 16 and 2 images at a time") as caught:
        train(tiny(batch_size=16))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_ended_run_gives_its_memory_back_at_once(tiny: Tiny) -> None:
    """A process runs one trial after the other: what only the garbage collector finds would still be in the way."""
    config = tiny()
    started = start_run(config, CPU, RunOptions(), open_parts(config))
    encoder = weakref.ref(started.encoder)
    gc.disable()
    try:
        del started
        assert encoder() is None
    finally:
        gc.enable()
