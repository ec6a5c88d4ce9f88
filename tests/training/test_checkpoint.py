from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from phenoscape_tune.errors import UserError
from phenoscape_tune.training import checkpoint


def state(epoch: int) -> checkpoint.State:
    history = [{"epoch": e, "objective": e / 10} for e in range(1, epoch + 1)]
    return checkpoint.State({"w": torch.full((4,), float(epoch))}, {"lr": 0.1}, {"seed": 1}, epoch, history)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(state(3), tmp_path, best=True)
    loaded = checkpoint.load(tmp_path / "last.ckpt")
    assert torch.equal(loaded.model["w"], torch.full((4,), 3.0))
    assert (loaded.optimizer, loaded.config, loaded.epoch) == ({"lr": 0.1}, {"seed": 1}, 3)
    assert loaded.history[-1] == {"epoch": 3, "objective": 0.3}


def test_best_stays_when_a_later_epoch_is_worse(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, best=True)
    checkpoint.save(state(2), tmp_path, best=False)
    assert checkpoint.load(tmp_path / "best.ckpt").epoch == 1
    assert checkpoint.load(tmp_path / "last.ckpt").epoch == 2


def test_nothing_but_the_two_files_is_left(tmp_path: Path) -> None:
    for epoch in range(1, 4):
        checkpoint.save(state(epoch), tmp_path, best=epoch == 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


WRITER = """
import sys, torch
from pathlib import Path
from phenoscape_tune.training import checkpoint
for epoch in range(1, 10**6):
    model = {"w": torch.full((500_000,), float(epoch))}
    checkpoint.save(checkpoint.State(model, {}, {}, epoch, []), Path(sys.argv[1]), best=epoch % 2 == 0)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "best.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1234)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    for name in ("last.ckpt", "best.ckpt"):
        loaded = checkpoint.load(tmp_path / name)
        assert (loaded.model["w"] == loaded.epoch).all()


def test_a_truncated_a_foreign_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, best=False)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.ckpt")
    for name, message in (("cut", "not a whole"), ("foreign", "not a checkpoint"), ("none", "no such")):
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path / f"{name}.ckpt")


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    torch.save({"format": 1, "model": Touch()}, tmp_path / "code.ckpt")
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "code.ckpt")
    assert not (tmp_path / "executed").exists()
