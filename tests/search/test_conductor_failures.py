"""Trials that fail, collapse, or whose process dies."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver import EPOCHS, SPACE, Driver, Objective, learn, make_plan, open_conductor, search
from studies import study_trials

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.search.record import COMPLETED, FAILED
from phenoscape_tune.search.rungs import Rungs


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_diverged_trial_fails_at_once_and_says_when(value: float, tmp_path: Path) -> None:
    def diverge(config: TrainConfig, epoch: int) -> float:
        return value if config.lr > 0.01 and epoch == 2 else learn(config, epoch)

    conductor = search(tmp_path, diverge, confirm=None)
    diverged = [record for record in conductor.records() if record.status == FAILED]
    assert diverged
    assert all((len(r.curve), r.reason) == (1, "diverged at epoch 2") for r in diverged)
    assert all(r.values["lr"] > 0.01 for r in diverged)
    assert not {r.name for r in diverged} & {r.name for r in conductor.ranked()}
    assert len(conductor.records()) == 11


@pytest.mark.parametrize("seed", range(3))
def test_the_sampler_learns_where_training_diverges(seed: int, tmp_path: Path) -> None:
    base = build_config({"seed": seed, "max_epochs": 50})
    changes: dict[str, Any] = {"base": base, "parameters": {"lr": SPACE["parameters"]["lr"]}, "confirm": None}
    conductor = search(
        tmp_path,
        lambda config, epoch: math.nan if config.lr > 0.01 else learn(config, epoch),
        concurrent=1,
        budget={"trials": 17},
        **changes,
    )
    diverged = [record.status == FAILED for record in conductor.records(conductor.stages[1])]
    assert any(diverged[:8])
    # Were it told nothing, all of them would: nothing is known there, and all else is.
    assert sum(diverged[8:]) <= 4
    failed = [trial for trial in study_trials(tmp_path, "1-lr") if trial.constraints]
    assert len(failed) == sum(diverged)
    assert all(trial.constraints == {"training": 1.0} for trial in failed)


# Collapse


def with_features(
    std: Callable[[TrainConfig, int], float], metric: Callable[[TrainConfig, int], float] = learn
) -> Objective:
    """An objective that tells how far the features of different images differ."""
    return lambda config, epoch: {"objective": metric(config, epoch), "feature_std": std(config, epoch), "rankme": 1.24}


def test_a_collapsed_network_fails_at_the_first_rung_and_says_why(tmp_path: Path) -> None:
    conductor = search(tmp_path, with_features(lambda config, epoch: 1e-4 if config.lr > 0.01 else 0.3))
    collapsed = [record for record in conductor.records() if record.status == FAILED]
    assert collapsed
    for record in collapsed:
        assert record.values["lr"] > 0.01
        assert record.reason == (
            "collapsed at epoch 2: all images have the same features (RankMe 1.2, feature std 0.0001)"
        )
        assert len(record.curve) == 2
    assert all(record.values.get("lr", 0.001) <= 0.01 for record in conductor.ranked())


def test_before_the_first_rung_a_network_may_leave_the_collapsed_state(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rungs=Rungs(4, 2, EPOCHS), budget={"trials": 3})
    conductor = Driver(open_conductor(plan), with_features(lambda config, epoch: 0.0 if epoch < 4 else 0.3)).run()
    assert not any(record.status == FAILED for record in conductor.records())


@pytest.mark.parametrize("rungs", [Rungs(2, 2, EPOCHS), Rungs(EPOCHS, 3, EPOCHS), Rungs(EPOCHS + 4, 3, EPOCHS)])
def test_a_network_that_is_collapsed_at_the_end_is_no_winner(rungs: Rungs, tmp_path: Path) -> None:
    at_the_end = with_features(lambda config, epoch: 0.0 if epoch == EPOCHS and config.lr != 0.001 else 0.3)
    conductor = search(tmp_path, at_the_end, rungs=rungs)
    # The temperatures were tried at the defaults' learning rate.
    assert {record.values.get("lr") for record in conductor.ranked()} == {None}
    reached = [r for r in conductor.records() if len(r.curve) == EPOCHS and "lr" in r.values]
    assert reached
    assert all(r.status == FAILED and r.reason.startswith(f"collapsed at epoch {EPOCHS}") for r in reached)


def test_a_collapsed_networks_score_stops_nobody(tmp_path: Path) -> None:
    # Without labels it can be better than a healthy one's.
    def best_when_collapsed(config: TrainConfig, epoch: int) -> float:
        return 0.99 if config.lr > 0.02 else learn(config, epoch)

    objective = with_features(lambda config, epoch: 0.0 if config.lr > 0.02 else 0.3, best_when_collapsed)
    changes: dict[str, Any] = {"parameters": {"lr": SPACE["parameters"]["lr"]}, "rungs": Rungs(2, 20, EPOCHS)}
    conductor = search(tmp_path, objective, concurrent=1, budget={"trials": 12}, confirm=None, **changes)
    baseline, *records = conductor.records()
    first = next(i for i, record in enumerate(records) if record.status == FAILED)
    # Only the best of all goes on; one that is better than all healthy ones before it does, whatever collapsed.
    best, went_on = baseline.curve[1], 0
    for i, record in enumerate(records):
        if record.status == FAILED:
            continue
        if record.curve[1] > best:
            assert record.status == COMPLETED
            best = record.curve[1]
            went_on += i > first
    assert went_on


def test_a_confirmation_that_collapses_fails(tmp_path: Path) -> None:
    conductor = search(tmp_path, with_features(lambda config, epoch: 0.3 if config.seed == 5 else 0.0))
    assert {record.status for record in conductor.records(conductor.stages[-1])} == {FAILED}
    assert conductor.done


# Where much fails


def test_where_every_trial_fails_the_search_ends_with_nothing(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: math.nan)
    assert conductor.done
    assert conductor.ranked() == []
    assert conductor.winners == [None] * 3
    assert [record.status for record in conductor.records()] == [FAILED] * 11


def test_a_failed_baseline_does_not_end_the_search(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: math.nan if config.lr == 0.001 else learn(config, epoch))
    assert conductor.baseline is not None
    assert conductor.baseline.status == FAILED
    confirmed = {record.of for record in conductor.records() if record.of}
    assert confirmed == {record.name for record in conductor.ranked()[:2]}


def test_a_trial_whose_process_died_is_given_back_first_and_goes_on(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    driver = Driver(conductor, concurrent=1)
    reports = driver.reports()
    for _ in range(EPOCHS + 1):  # the baseline, and one epoch of the next
        name, _ = next(reports)
    conductor.give_back(name, "its process died")
    task = conductor.next_task()
    assert task is not None
    assert (task.record.name, task.resume, len(task.record.curve), task.record.failures) == (name, True, 1, 1)
    # A report of the dead process that was still under way changes nothing once the trial has ended.
    conductor.give_back("no such trial", "its process died")


@pytest.mark.parametrize("most", [0, 2])
def test_a_trial_is_given_back_max_failures_times_over_resumes_too(most: int, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, max_failures=most)
    for failures in range(1, most + 2):
        conductor = open_conductor(plan)
        task = conductor.next_task()
        assert task is not None
        assert (task.record.stage, task.record.failures) == ("defaults", failures - 1)
        conductor.give_back(task.record.name, "its process died")
    record = open_conductor(plan).baseline
    assert record is not None
    times = "1 time" if most == 0 else "3 times"
    assert (record.status, record.reason) == ("failed", f"its process died, {times} (max_failures: {most})")


def test_a_trial_that_cannot_go_on_is_failed_with_its_reason_once(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    task = conductor.next_task()
    assert task is not None
    conductor.report(task.record.name, {"epoch": 1, "objective": 0.3})
    conductor.fail(task.record.name, "out of memory")
    conductor.fail(task.record.name, "its process ended")
    (record,) = conductor.records()
    assert (record.status, record.reason, record.curve) == (FAILED, "out of memory", (0.3,))


def test_a_trial_that_has_ended_is_heard_no_more(staged: Driver) -> None:
    conductor = staged.conductor
    before = conductor.records()
    assert not conductor.report(before[0].name, {"epoch": 99, "objective": 1.0})
    assert not conductor.report("no-such-trial", {"epoch": 1, "objective": 1.0})
    conductor.fail(before[0].name, "late")
    assert conductor.records() == before
