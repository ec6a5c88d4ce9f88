from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.training.checkpoint import load
from phenoscape_tune.training.disk import check_space, checkpoint_bytes, describe_bytes, log_bytes, run_bytes
from phenoscape_tune.training.loop import train_simclr


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_the_estimate_is_what_a_run_leaves(tiny: Callable[..., TrainConfig], optimizer: str) -> None:
    config = tiny(max_epochs=3, optimizer=optimizer, backbone="resnet18", projection_dim=64, batch_size=32)
    train_simclr(config, lambda row: None)
    folder = Path(config.out_dir)
    last = folder / "checkpoints" / "last.ckpt"
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mean", "std")
    parameters = sum(value.numel() for key, value in load(last).model.items() if not key.endswith(buffers))
    assert last.stat().st_size == pytest.approx(checkpoint_bytes(config, parameters), rel=0.02)
    logs = sum(path.stat().st_size for path in (folder / "logs").rglob("*") if path.is_file())
    assert logs <= log_bytes(config) <= 5 * logs
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert held <= run_bytes(config, parameters)


def test_too_little_space_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_500_000))
    check_space(tmp_path / "not" / "there", 1_500_000, "the run", "")
    with pytest.raises(UserError, match=r"there: the run needs about 2\.0 GB of disk, and 1\.5 MB are free; free some"):
        check_space(tmp_path / "not" / "there", 2_000_000_000, "the run", "free some")


def test_bytes_are_told_in_fitting_units() -> None:
    told = [describe_bytes(number) for number in (12, 1500, 2.34e6, 5.67e9, 8.9e12)]
    assert told == ["12 bytes", "1.5 kB", "2.34 MB", "5.7 GB", "8.9 TB"]
