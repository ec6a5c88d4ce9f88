from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from driver import make_plan

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.disk_plan import plan_disk


def test_the_need_is_of_the_running_and_the_kept_trials_and_does_not_grow_with_their_number(tmp_path: Path) -> None:
    def need(trials: int, keep: int, concurrent: int) -> int:
        plan = make_plan(tmp_path, keep=keep, budget={"trials": trials})
        disk = plan_disk(plan, 1_000_000, concurrent)
        return disk.total - disk.trials * disk.logs

    assert need(100, 5, 2) == need(1000, 5, 2)
    each = plan_disk(make_plan(tmp_path), 1_000_000, 1).checkpoint
    assert each == pytest.approx(12e6, rel=0.05)  # weights, and AdamW's two moments
    assert need(100, 6, 2) - need(100, 5, 2) == 2 * each
    assert need(100, 5, 3) - need(100, 5, 2) == 4 * each


def test_a_disk_without_room_is_refused_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 500_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    plan = make_plan(tmp_path / "search", keep=5)
    need = plan_disk(plan, 10_000_000, 2)
    assert "500 MB free" in need.describe() and "a checkpoint has 120 MB" in need.describe()
    with pytest.raises(
        UserError, match=r"search: the search needs about 2\.[67] GB of disk, and 500 MB are free; .*keep"
    ):
        need.check()
    # What the search itself holds is not needed again.
    held = tmp_path / "search" / "trials" / "lr-00-abcde" / "checkpoints"
    held.mkdir(parents=True)
    with (held / "last.ckpt").open("wb") as file:
        file.truncate(need.total - free)
    need.check()


def test_a_search_that_is_nearly_done_needs_no_room_for_the_logs_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path / "search", keep=1, budget={"trials": 1000}, confirm=None)
    begun, nearly_done = plan_disk(plan, 10_000, 1), plan_disk(plan, 10_000, 1, ended=990)
    assert begun.trials == 1000
    assert begun.total - 1000 * begun.logs < 10e6 < 50 * begun.logs * 20  # small checkpoints, and many logs
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10e6 + 20 * begun.logs))
    with pytest.raises(UserError, match="the search needs about"):
        begun.check()
    nearly_done.check()
    # Those of the trials to come are needed.
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 * begun.logs))
    with pytest.raises(UserError, match="the search needs about"):
        nearly_done.check()
    assert nearly_done.describe().partition("), ")[0] == begun.describe().partition("), ")[0]
