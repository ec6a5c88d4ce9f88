from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rank_functions
import torch

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.training.launch import launch
from phenoscape_tune.training.memory import OutOfMemory
from phenoscape_tune.training.rank_group import RankDied, device_count, run_ranks
from phenoscape_tune.training.run import Diverged, Row, RunOptions

pytestmark = pytest.mark.slow


def config(folder: Path, **changes: object) -> TrainConfig:
    return build_config({"out_dir": str(folder), "accelerator": "cpu", "devices": 2, **changes})


def is_alive(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z")
    except FileNotFoundError:
        return False


def test_the_ranks_are_a_process_group_and_share_what_they_hold(tmp_path: Path) -> None:
    rows: list[Row] = []
    assert run_ranks(config(tmp_path), rows.append, RunOptions(), 2, rank_functions.shares) == [{"epoch": 1}]
    assert rows[0]["gathered"] == [[float(i)] * 3 for i in range(5)]
    assert rows[0]["mean"] == [0.5, 0.5]
    assert (rows[0]["world"], rows[0]["threads"]) == (2, max(1, torch.get_num_threads() // 2))


def test_a_report_that_raises_stops_all_ranks_at_once(tmp_path: Path) -> None:
    seen: list[int] = []

    def stop(row: Row) -> None:
        seen.append(row["pid"])
        if len(seen) == 3:
            raise SystemExit

    started = time.monotonic()
    with pytest.raises(SystemExit):
        run_ranks(config(tmp_path), stop, RunOptions(), 2, rank_functions.waits)
    assert len(seen) == 3
    assert not is_alive(seen[0])
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ("diverged", Diverged, "diverged at epoch 3"),
        ("user", UserError, "labels: none"),
        ("other", RuntimeError, "KeyError: 'x'"),
        ("silent", RankDied, "rank 1 ended without a word"),
    ],
)
def test_what_ends_one_rank_ends_all_and_is_told(how: str, error: type[Exception], told: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=told):
        run_ranks(config(tmp_path / how), lambda row: None, RunOptions(), 2, rank_functions.second_fails)


def test_where_memory_runs_out_the_ranks_go_on_with_half_as_many_images_at_once(tmp_path: Path) -> None:
    rows: list[Row] = []
    run_ranks(config(tmp_path, batch_size=16), rows.append, RunOptions(), 2, rank_functions.too_large)
    assert [(row["epoch"], row["micro_batch"]) for row in rows] == [(1, None), (2, 4)]
    assert rows[1]["resume"] == str(tmp_path / "checkpoints" / "last.ckpt")
    fixed = config(tmp_path, batch_size=16, micro_batch_size=16)
    with pytest.raises(OutOfMemory):
        run_ranks(fixed, lambda row: None, RunOptions(), 2, rank_functions.too_large)


def test_a_run_on_two_ranks_equals_one_on_one_with_the_same_batch(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """No layer couples the images of a batch here but the head's batch norm, which is frozen out by a large batch: the
    first loss, the validation and the objective are compared, and what is written."""
    rows = {}
    for count in (1, 2):
        folder = tmp_path / str(count)
        each = tiny(
            devices=count, batch_size=16 // count, out_dir=str(folder), precision=32, accelerator="cpu", lr=1e-9
        )
        rows[count] = launch(each, lambda row: None)
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert (folder / "logs" / "training.log").read_text().count("epoch 2/2") == 1
        assert len(list((folder / "logs" / "tensorboard").iterdir())) == 1
    for one, two in zip(rows[1], rows[2], strict=True):
        for key in ("epoch", "objective", "lr"):
            assert two[key] == pytest.approx(one[key], abs=0.05), key
        assert two["val_loss"] == pytest.approx(one["val_loss"], rel=0.05)


def test_as_many_devices_as_there_are() -> None:
    assert device_count(build_config({"accelerator": "cpu", "devices": "auto"})) == 1
    assert device_count(build_config({"accelerator": "cpu", "devices": os.cpu_count()})) == os.cpu_count()
    with pytest.raises(UserError, match=r"devices: 4096: this machine has \d+ "):
        device_count(build_config({"accelerator": "cpu", "devices": 4096}))
