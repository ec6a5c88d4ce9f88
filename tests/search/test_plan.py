from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.plan import Plan, make_plan, share_devices
from phenoscape_tune.search.space import build_space

LR = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}}


def plan(max_epochs: int = 30, base: dict[str, Any] | None = None, **space: Any) -> Plan:
    return make_plan(build_space({"parameters": LR, **space}), build_config(base or {}), max_epochs, Path("x"))


def test_grace_lies_beyond_the_warm_up_of_a_trial() -> None:
    made = plan(max_epochs=30, base={"max_epochs": 500})
    assert made.rungs.levels == (4, 12)
    assert "grace_epochs: 4 instead of 3" in made.notes[0]


def test_a_confirmation_shrinks_to_the_trials_there_are_and_says_so() -> None:
    made = plan(budget={"trials": 2}, confirm={"top_k": 3, "seeds": 2})
    assert (made.top_k, made.repeats, made.confirmations) == (1, 2, 4)
    assert any("confirm.top_k: 1 instead of 3" in note for note in made.notes)


def test_a_period_of_the_cosine_that_trials_do_not_reach_is_noted() -> None:
    assert any("T_max: 80" in note for note in plan(base={"T_max": 80}).notes)
    assert not any("T_max" in note for note in plan(base={"T_max": 100, "max_epochs": 100}).notes)


def test_the_cost_counts_the_confirmation() -> None:
    assert plan(max_epochs=5, budget={"trials": 4}, confirm={"top_k": 1, "seeds": 2}).epochs_at_most == (4 + 4) * 5


def test_devices_are_shared_out() -> None:
    assert share_devices(cpus=8, gpus=0, concurrent=None) == (8, 1, 0.0)
    assert share_devices(cpus=8, gpus=0, concurrent=3) == (3, 2, 0.0)
    assert share_devices(cpus=8, gpus=2, concurrent=None) == (2, 4, 1.0)
    assert share_devices(cpus=8, gpus=2, concurrent=4) == (4, 2, 0.5)
    assert share_devices(cpus=8, gpus=2, concurrent=5) == (5, 1, 1 / 3)
    with pytest.raises(UserError, match="--concurrent: 9.*8 CPU cores"):
        share_devices(cpus=8, gpus=0, concurrent=9)
