"""The confirmation at the end of a search: who is repeated, with which seeds."""

import math
from pathlib import Path

import pytest
from driver import DROPPING, EPOCHS, Driver, learn, make_plan, open_conductor, search, unsteady

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.record import FAILED


def test_confirmation_repeats_the_best_and_the_baseline_with_fresh_seeds(staged: Driver) -> None:
    conductor = staged.conductor
    records = conductor.records(conductor.stages[-1])
    ranked = [record.name for record in conductor.ranked() if record.stage != "defaults"]
    assert conductor.baseline is not None
    who = [conductor.baseline.name, *ranked[:2]]
    # Seed by seed, so that an interrupted confirmation has whole comparisons; none of them the search's own seed.
    assert [(record.of, record.seed) for record in records] == [(name, seed) for seed in (6, 7) for name in who]
    assert len(records) == conductor.plan.confirmations == 6
    searched = {record.name: record for record in conductor.records()}
    assert all(record.of and record.values == searched[record.of].values for record in records)


def test_the_best_are_told_by_their_objectives(staged: Driver) -> None:
    objectives = [record.objective or 0 for record in staged.conductor.ranked()]
    assert len(objectives) > 2
    assert objectives == sorted(objectives, reverse=True)


def test_a_confirmation_measures_the_test_part_and_no_other_trial_does(staged: Driver) -> None:
    assert {task.test for task in staged.handed if task.record.stage == "confirm"} == {True}
    assert {task.test for task in staged.handed if task.record.stage != "confirm"} == {False}


def test_without_confirmation_the_search_ends_after_its_last_stage(tmp_path: Path) -> None:
    conductor = search(tmp_path, confirm=None)
    assert conductor.done
    assert [stage.name for stage in conductor.stages] == ["defaults", "lr", "temperature"]
    assert len(conductor.records()) == 11


def test_a_confirmation_asks_for_no_more_trials_than_the_search_has(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, budget={"trials": 3}, confirm={"top_k": 5, "seeds": 2})
    assert plan.top_k == 2
    assert plan.notes == ("confirm.top_k: 2 instead of 5: there are no more searched trials",)
    assert (plan.confirmations, plan.epochs_at_most) == (6, 9 * EPOCHS)


def test_the_baseline_alone_is_not_repeated_for_nothing(tmp_path: Path) -> None:
    def only_defaults(config: TrainConfig, epoch: int) -> float:
        return 0.5 if (config.lr, config.temperature) == (0.001, 0.1) else math.nan

    conductor = search(tmp_path, only_defaults)
    assert conductor.done
    assert conductor.ranked() == [conductor.baseline]
    # There is nothing to compare it with.
    assert not any(record.stage == "confirm" for record in conductor.records())


# A candidate fewer after each seed


@pytest.mark.parametrize("concurrent", [1, 2, 8])
def test_the_worst_candidate_is_dropped_after_each_seed_and_the_defaults_never(concurrent: int, tmp_path: Path) -> None:
    conductor = search(tmp_path, unsteady, concurrent, **DROPPING)
    assert conductor.done
    records = [record for record in conductor.records() if record.of]
    assert len(records) == conductor.plan.confirmations == conductor.stage.trials == 9
    baseline, *top = [record.name for record in conductor.candidates(3)]
    given = {seed: [r.of for r in records if r.seed == seed] for seed in (6, 7, 8)}
    assert given[6] == [baseline, *top]
    assert given[7] == [baseline, *top[1:]]  # the best of the search was the worst when it was repeated
    values = {name: sum(r.objective or 0 for r in records if r.of == name and r.seed != 8) for name in top[1:]}
    assert given[8] == [baseline, max(values, key=lambda name: values[name])]
    assert conductor.rounds == [given[6], given[7], given[8]]


def test_the_next_seed_waits_for_the_last_trial_with_this_one(tmp_path: Path) -> None:
    driver = Driver(open_conductor(make_plan(tmp_path, **DROPPING)), unsteady, concurrent=3)
    for _ in driver.reports():
        seeds = {record.seed for record in driver.conductor.live.values() if record.of}
        assert len(seeds) <= 1


def test_a_candidate_that_fails_is_dropped_and_the_defaults_are_not(tmp_path: Path) -> None:
    def fails_repeated(config: TrainConfig, epoch: int) -> float:
        worst = config.seed == 6 and (config.lr == 0.001 or abs(config.temperature - best) < 1e-9)
        return math.nan if worst and epoch == 2 else learn(config, epoch)

    best = -1.0
    plan = make_plan(tmp_path, **DROPPING)
    driver = Driver(open_conductor(plan), fails_repeated, concurrent=1)
    for _ in driver.reports():
        if driver.conductor.stage.name == "confirm" and best < 0:
            best = driver.conductor.ranked()[0].values["temperature"]
    records = [record for record in driver.conductor.records() if record.of]
    failed = {record.of for record in records if record.status == FAILED}
    baseline, *top = [record.name for record in driver.conductor.candidates(3)]
    assert baseline in failed and top[0] in failed
    assert [r.of for r in records if r.seed == 7] == [baseline, *top[1:]]


def test_without_dropping_the_rounds_are_all_the_same(staged: Driver) -> None:
    conductor = staged.conductor
    assert conductor.rounds == [[record.name for record in conductor.candidates(2)]] * 2


def test_before_the_confirmation_there_are_no_rounds(tmp_path: Path) -> None:
    assert open_conductor(make_plan(tmp_path, **DROPPING)).rounds == []
