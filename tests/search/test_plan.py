from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.plan import Plan, make_plan, share_devices, share_machines
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


def test_a_trial_on_several_devices_has_them_for_itself() -> None:
    assert share_devices(cpus=16, gpus=4, concurrent=None, devices=2) == (2, 8, 2.0)
    assert share_devices(cpus=2, gpus=4, concurrent=None, devices=4) == (1, 2, 4.0)
    assert share_devices(cpus=5, gpus=0, concurrent=None, devices=2) == (2, 2, 0.0)
    with pytest.raises(UserError, match=r"devices: 8: a trial cannot span more than the 4 GPUs"):
        share_devices(cpus=16, gpus=4, concurrent=None, devices=8)
    with pytest.raises(
        UserError, match=r"--concurrent: 3 trials side by side, each on 2 devices, on 4 GPUs; at most 2"
    ):
        share_devices(cpus=16, gpus=4, concurrent=3, devices=2)


def test_trials_are_counted_by_machine() -> None:
    head, small, big = (0, 0), (3, 0), (8, 0)
    assert share_machines([head, small, small], None) == (6, 1, 0.0)
    # A trial lies on one machine: six cores are no room for two trials of three, and four are not one of four.
    assert share_machines([head, small, small], 2) == (2, 3, 0.0)
    assert share_machines([head, small, small], 3) == (3, 1, 0.0)
    assert share_machines([small, big], 2) == (2, 4, 0.0)
    assert share_machines([small, small], None, devices=2) == (2, 3, 0.0)
    with pytest.raises(UserError, match=r"devices: 4: a trial cannot span more than the 3 CPU cores of any one mach"):
        share_machines([head, small, small], None, devices=4)
    with pytest.raises(UserError, match=r"--concurrent: 7 trials side by side on 6 CPU cores of 3 machines; at most 6"):
        share_machines([head, small, small], 7)
    with pytest.raises(UserError, match=r"devices: 1: .* 0 CPU cores"):
        share_machines([head], None)


def test_gpus_are_counted_by_machine() -> None:
    cards = [(8, 2), (8, 2), (64, 0)]
    assert share_machines(cards, None) == (4, 4, 1.0)
    assert share_machines(cards, 2) == (2, 8, 1.0)  # one a machine
    assert share_machines(cards, 8) == (8, 2, 0.5)
    assert share_machines(cards, None, devices=2) == (2, 8, 2.0)
    with pytest.raises(UserError, match=r"devices: 3: .* 2 GPUs of any one machine"):
        share_machines(cards, None, devices=3)
    with pytest.raises(UserError, match=r"--concurrent: 17 .* 16 CPU cores of 3 machines; at most 16"):
        share_machines(cards, 17)


def test_what_trials_leave_to_the_winners_training_is_told(tmp_path: Path) -> None:
    space = build_space({"parameters": {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}}})
    base = build_config({"devices": "auto", "early_stopping": {"monitor": "val_loss"}})
    notes = "\n".join(make_plan(space, base, 20, tmp_path).notes)
    assert "early_stopping: not of trials" in notes
    assert "devices: auto: each trial on one device" in notes


# Trials


BATCH = {"batch_size": {"type": "choice", "values": [16, 32, 64]}}


def test_the_stages_are_those_of_the_space_within_the_budget() -> None:
    made = plan(parameters={**LR, **BATCH}, budget={"trials": 20}, refine=True)
    assert [stage.name for stage in made.stages] == ["defaults", "lr", "batch_size", "lr_recheck", "refine"]
    # The choice has two values that the configuration does not have, and the others take what it leaves.
    assert made.stages[2].trials == 2
    assert sum(stage.trials for stage in made.stages) == 20


def test_a_stages_share_of_the_trials_can_be_set() -> None:
    keys = {**LR, "temperature": {"type": "uniform", "low": 0.05, "high": 0.5}}
    assert [stage.trials for stage in plan(parameters=keys, budget={"trials": 21}).stages] == [1, 10, 10]
    made = plan(parameters=keys, budget={"trials": 21, "shares": {"lr": 4}})
    assert [stage.trials for stage in made.stages] == [1, 16, 4]


def test_what_gives_way_to_a_small_budget_is_noted() -> None:
    made = plan(parameters={**LR, **BATCH}, budget={"trials": 3}, refine=True)
    assert [stage.name for stage in made.stages] == ["defaults", "lr", "batch_size"]
    assert [note.split(":")[0] for note in made.notes if "no stage" in note] == [
        "no stage refine",
        "no stage lr_recheck",
    ]
    made = plan(parameters=BATCH, budget={"trials": 9})
    assert any("6 of 9 trials are not needed" in note for note in made.notes)


# What is compared


def test_a_score_that_says_nothing_early_stops_nobody_early() -> None:
    space = build_space({"parameters": LR})
    late = {"reference_contrast", "rankme", "lidar"}
    for name, metric in METRICS.items():
        made = make_plan(space, build_config({}), 30, Path("x"), metric)
        assert made.objective is metric
        assert made.rungs.grace == (6 if name in late else 4), name  # a fifth of a trial, or beyond the warm-up
        assert any("says nothing earlier" in note for note in made.notes) == (name in late)


def test_the_objective_of_a_plan_without_data_is_not_known() -> None:
    with pytest.raises(AssertionError, match="not looked at"):
        plan().objective  # noqa: B018


@pytest.mark.parametrize(("warmup", "max_epochs", "expected"), [(None, 40, 4), (None, 300, 10), (2, 40, 2), (8, 20, 5)])
def test_the_warm_up_of_a_trial_is_a_quarter_of_it_at_most(
    warmup: float | None, max_epochs: int, expected: float
) -> None:
    made = plan(max_epochs=max_epochs, base={} if warmup is None else {"warmup_epochs": warmup})
    assert made.warmup_epochs == expected
    assert any(note.startswith("warmup_epochs: 5 instead of 8") for note in made.notes) == (warmup == 8)
