"""Ranges that are too narrow: a stage whose winner stands at the edge is widened, once."""

import math
from pathlib import Path
from typing import Any

import pytest
from driver import Driver, make_plan, open_conductor, search
from stages import TEMPERATURE, stage_named, values_of

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.parameter import Parameter


def towards(target: float) -> Any:
    """The nearer lr is to the target, the better."""
    return lambda config, epoch: -abs(math.log10(config.lr / target))


NARROW = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}, "temperature": TEMPERATURE}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    folder = tmp_path_factory.mktemp("extended")
    return search(folder, towards(0.5), parameters=NARROW, extend=True, budget={"trials": 19}, concurrent=1)


def test_a_stage_whose_winner_stands_at_the_edge_widens_once(extended: Conductor) -> None:
    found = values_of(extended, "lr", "lr")
    assert len(found) == 9
    # Two thirds of the trials tell where the edge is, the rest are for what lies beyond it.
    assert max(found[:6]) <= 1e-2 * (1 + 1e-9)
    assert all(lr > 1e-2 for lr in found[6:8])
    # The best still stands at the edge, and nothing lies beyond the wider range.
    assert max(found) <= 0.1 * (1 + 1e-9)
    winner = extended.winners[1]
    assert winner is not None
    assert winner.values["lr"] == max(found) > 0.03
    assert extended.ranges["lr"] == Parameter(type="loguniform", low=1e-4, high=0.1)
    # The other key's best lies inside its range.
    assert extended.ranges["temperature"] == Parameter(**TEMPERATURE)


def test_a_stage_that_does_not_need_it_is_not_widened(tmp_path: Path) -> None:
    conductor = search(tmp_path, towards(1e-3), parameters=NARROW, extend=True, budget={"trials": 19}, confirm=None)
    assert conductor.ranges == conductor.plan.space.parameters
    assert all(1e-4 <= lr <= 1e-2 for lr in values_of(conductor, "lr", "lr"))


def test_nothing_is_widened_that_was_not_asked_for(tmp_path: Path) -> None:
    conductor = search(tmp_path, towards(0.5), parameters=NARROW, budget={"trials": 19}, confirm=None)
    assert conductor.ranges == conductor.plan.space.parameters
    assert all(1e-4 <= lr <= 1e-2 * (1 + 1e-9) for lr in values_of(conductor, "lr", "lr"))


@pytest.mark.parametrize("trials", [2, 3, 4])
def test_a_short_stage_widens_too(trials: int, tmp_path: Path) -> None:
    # The defaults stand at the edge.
    parameters = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1.05e-3}}
    changes: dict[str, Any] = {"parameters": parameters, "extend": True, "budget": {"trials": trials + 1}}
    conductor = search(tmp_path, towards(0.5), confirm=None, **changes)
    found = values_of(conductor, "lr", "lr")
    assert len(found) == trials
    assert conductor.ranges["lr"].high == pytest.approx(3.4e-3)
    assert found[-1] > 1.05e-3


def test_a_stage_of_one_trial_cannot_look_first_and_is_not_widened(tmp_path: Path) -> None:
    parameters = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1.05e-3}}
    changes: dict[str, Any] = {"parameters": parameters, "extend": True, "budget": {"trials": 2}}
    conductor = search(tmp_path, towards(0.5), confirm=None, **changes)
    assert conductor.ranges == conductor.plan.space.parameters


def test_a_widened_stage_waits_for_all_its_trials_before_it_looks(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, parameters=NARROW, extend=True, budget={"trials": 19}, confirm=None)
    conductor = open_conductor(plan)
    for _ in Driver(conductor, towards(0.5), concurrent=8).reports():
        if conductor.stage.name == "lr" and len(conductor.records(conductor.stage)) > 6:
            # The first six have ended before the seventh was asked for.
            assert all(record.ended for record in conductor.records(conductor.stage)[:6])
            break
    assert conductor.ranges["lr"].high == 0.1


def test_several_keys_of_a_stage_are_widened_together(tmp_path: Path) -> None:
    parameters = {"lr": NARROW["lr"], "temperature": {"type": "uniform", "low": 0.2, "high": 0.5}}

    def corner(config: TrainConfig, epoch: int) -> float:
        return math.log10(config.lr) - config.temperature

    base = build_config({"seed": 5, "max_epochs": 50, "lr": 0.01, "temperature": 0.2})
    changes: dict[str, Any] = {"parameters": parameters, "extend": True, "order": "joint", "base": base}
    conductor = search(tmp_path, corner, budget={"trials": 9}, confirm=None, **changes)
    assert conductor.ranges["lr"].high == 0.1
    assert conductor.ranges["temperature"].low == pytest.approx(0.05)


def test_what_looks_again_searches_the_wider_range(tmp_path: Path) -> None:
    parameters = {"lr": NARROW["lr"], "batch_size": {"type": "choice", "values": [32, 64]}}

    def large(config: TrainConfig, epoch: int) -> float:
        return math.log10(config.lr) + 0.1 * config.batch_size

    changes: dict[str, Any] = {"parameters": parameters, "extend": True, "budget": {"trials": 20}}
    conductor = search(tmp_path, large, confirm=None, **changes)
    (record,) = conductor.records(stage_named(conductor, "batch_size"))
    before = conductor.winners[1]
    assert before is not None
    assert record.values["lr"] == min(0.1, before.values["lr"] * math.sqrt(2)) > 0.01
    assert max(values_of(conductor, "lr_recheck", "lr")) > 0.02


@pytest.mark.parametrize("stop", [5, 6, 7, 8])
def test_a_widened_stage_goes_on_as_it_was_after_a_stop(stop: int, extended: Conductor, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, parameters=NARROW, extend=True, budget={"trials": 19})
    stopped = open_conductor(plan)
    for _ in Driver(stopped, towards(0.5), concurrent=1).reports():
        if stopped.stage.name == "lr" and len(stopped.records(stopped.stage)) == stop:
            break
    again = open_conductor(plan)
    Driver(again, towards(0.5), concurrent=1).run()
    assert again.records() == extended.records()
    assert again.ranges == extended.ranges
