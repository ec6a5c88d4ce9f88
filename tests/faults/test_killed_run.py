"""A run of `train.py` that is killed at any moment, again and again, is the run that nobody killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from phenoscape_tune.cli import train
from phenoscape_tune.training import checkpoint

ROOT = Path(__file__).parent.parent.parent
EPOCHS, STEPS = 12, 6
SETTINGS = [
    *("backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "batch_size=8", "projection_dim=16"),
    *("num_workers=1", "accelerator=cpu", "deterministic=true", "precision=32", "log_every_n_steps=1"),
    f"max_epochs={EPOCHS}",
]
MEASURED = ("seconds", "images_per_second", "waiting_share", "utilisation", "process_memory_gb")  # not of the network
BEFORE_TRAINING, WHILE_TRAINING = 1, 2  # kills
DEADLINE = 300  # seconds for a process on a busy machine


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/train.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    error = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 0, error


def kill_within(process: subprocess.Popen[str], log: Path, rng: random.Random) -> None:
    """SIGKILL some moment after the log has grown, which an epoch or two cannot outlast."""
    length = log.stat().st_size if log.is_file() else 0
    deadline = time.monotonic() + DEADLINE
    while (log.stat().st_size if log.is_file() else 0) <= length:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.6))
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(birds: Path, tmp_path: Path) -> None:
    settings = [f"data_dir={birds}", f"cache_dir={tmp_path / 'cache'}", *SETTINGS]
    assert train.main([*settings, f"out_dir={tmp_path / 'whole'}", "--quiet"]) == 0
    folder = tmp_path / "killed"
    last, log = folder / "checkpoints" / "last.ckpt", folder / "logs" / "training.log"
    rng = random.Random(time.time_ns())
    epochs = [0]

    def begin() -> subprocess.Popen[str]:
        if last.is_file():
            return start("--resume", last)
        overwrite = ["--overwrite"] if folder.exists() and any(folder.iterdir()) else []
        return start(*settings, f"out_dir={folder}", *overwrite)

    for _ in range(BEFORE_TRAINING):
        process = begin()
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.communicate()
    for _ in range(WHILE_TRAINING):
        process = begin()
        kill_within(process, log, rng)
        epochs.append(checkpoint.load(last).epoch if last.is_file() else 0)
    print("epochs at the kills:", epochs)
    assert all(earlier <= later for earlier, later in pairwise(epochs))
    finish(begin())

    killed, whole = checkpoint.load(last), checkpoint.load(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert [row["epoch"] for row in killed.history] == list(range(1, EPOCHS + 1))
    for mine, other in zip(killed.history, whole.history, strict=True):
        assert {k: v for k, v in mine.items() if k not in MEASURED} == {
            k: v for k, v in other.items() if k not in MEASURED
        }
    assert all(torch.equal(mine, whole.model[key]) for key, mine in killed.model.items())
    curves = [read_scalars(each / "logs" / "tensorboard") for each in (folder, tmp_path / "whole")]
    for key, count in {"loss/train_loss": EPOCHS, "loss/val_loss": EPOCHS, "step/loss": EPOCHS * STEPS}.items():
        assert [step for step, _ in curves[0][key]] == list(range(1, count + 1)), key
        assert curves[0][key] == curves[1][key], key
    assert not list(folder.rglob("*.tmp"))


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each scalar, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}
