import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from driver import EPOCHS, SPACE, DoesNotFit, Driver, Objective, by_name, learn, make_plan, open_conductor, search
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.journal import JournalLock
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.record import COMPLETED, FAILED, INFEASIBLE, PRUNED, RUNNING, TrialRecord
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.sampler import derive_seed

# A whole search


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A staged search that has run to its end, for tests that only look at it."""
    driver = Driver(open_conductor(make_plan(tmp_path_factory.mktemp("finished"))))
    driver.run()
    return driver


def test_a_staged_search_runs_its_stages_in_order_and_ends(finished: Driver) -> None:
    conductor = finished.conductor
    assert conductor.done
    assert conductor.next_task() is None
    assert [stage.name for stage in conductor.stages] == ["defaults", "lr", "temperature", "confirm"]
    assert [len(conductor.records(stage)) for stage in conductor.stages] == [1, 5, 5, 6]
    assert all(record.status in (COMPLETED, PRUNED) for record in conductor.records())
    assert [len(set(record.values)) for record in conductor.records()][:11] == [0, *[1] * 5, *[2] * 5]


def test_a_joint_search_varies_all_keys_at_once(tmp_path: Path) -> None:
    conductor = search(tmp_path, order="joint")
    assert [stage.name for stage in conductor.stages] == ["defaults", "joint", "confirm"]
    assert [len(conductor.records(stage)) for stage in conductor.stages] == [1, 10, 6]
    assert all(record.values.keys() == {"lr", "temperature"} for record in conductor.records(conductor.stages[1]))


def test_the_baseline_is_trial_zero_and_has_the_base_configuration(finished: Driver) -> None:
    conductor = finished.conductor
    baseline = conductor.baseline
    assert baseline is not None
    assert baseline == conductor.records()[0]
    assert (baseline.stage, baseline.values, baseline.status) == ("defaults", {}, COMPLETED)
    changed = {"max_epochs": EPOCHS, "out_dir": str(conductor.plan.folder / "trials" / baseline.name)}
    assert conductor.config_of(baseline) == conductor.plan.base.model_copy(update=changed)


def test_no_baseline_before_the_first_task(tmp_path: Path) -> None:
    assert open_conductor(make_plan(tmp_path)).baseline is None


def test_a_stage_starts_from_the_last_winner_which_is_not_run_again(finished: Driver) -> None:
    conductor, plan = finished.conductor, finished.conductor.plan
    defaults, lr, temperature = conductor.winners
    assert defaults is not None and lr is not None and temperature is not None
    completed = [r for r in conductor.records(plan.stages[1]) if r.status == COMPLETED]
    assert lr == max([defaults, *completed], key=lambda record: record.objective or 0)
    assert all(r.values["lr"] == lr.values["lr"] for r in conductor.records(plan.stages[2]))
    # Started once, each of them, and nothing but what the plan counts.
    assert Counter(task.record.name for task in finished.handed) == dict.fromkeys(by_name(conductor), 1)


def test_a_stage_without_a_better_trial_keeps_the_last_winner(tmp_path: Path) -> None:
    def only_defaults(config: TrainConfig, epoch: int) -> float:
        return 0.9 if (config.lr, config.temperature) == (0.001, 0.1) else 0.1

    conductor = search(tmp_path, only_defaults)
    baseline = conductor.baseline
    assert conductor.winners == [baseline] * 3
    # The temperatures of the next stage are then tried at the default lr.
    assert all(record.values.keys() == {"temperature"} for record in conductor.records(conductor.plan.stages[2]))


def test_equal_trials_leave_the_standing_winner_in_place(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: 0.5)
    assert conductor.winners == [conductor.baseline] * 3


def study_trials(folder: Path, name: str) -> list[optuna.trial.FrozenTrial]:
    journal = folder / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))  # type: ignore[arg-type]
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def test_the_sampler_is_told_the_standing_winner_at_its_values(finished: Driver) -> None:
    conductor = finished.conductor
    for stage, winner in zip(conductor.plan.stages[1:], conductor.winners, strict=False):
        assert winner is not None
        told = [t for t in study_trials(conductor.plan.folder, stage.study_name) if "taken_over" in t.user_attrs]
        config = conductor.config_of(winner)
        assert [(t.user_attrs["taken_over"], t.params) for t in told] == [
            (winner.name, {key: getattr(config, key) for key in stage.keys})
        ]


def test_the_sampler_is_never_told_a_value_that_the_winner_did_not_have(tmp_path: Path) -> None:
    # The base has pretrained weights; null is a value of the range, and not what the baseline ran with.
    parameters = {"weights": {"type": "choice", "values": [None, "DEFAULT"]}}
    base = build_config({"weights": "DEFAULT", "max_epochs": 50})
    search(tmp_path, base=base, parameters=parameters, budget={"trials": 3}, confirm=None)
    told = [t for t in study_trials(tmp_path, "1-other") if "taken_over" in t.user_attrs]
    assert all(trial.params == {"weights": "DEFAULT"} for trial in told)


# Early stopping


def test_the_winners_curve_counts_at_the_rungs_of_the_next_stage(tmp_path: Path) -> None:
    # With one third, one of two or three goes on, and the winner of the defaults is among them.
    plan = make_plan(tmp_path, rungs=Rungs(2, 3, EPOCHS), budget={"trials": 6}, confirm=None)
    exempt = derive_seed(plan.seed, "lr", "exempt") % plan.stages[1].trials

    def defaults_lead(config: TrainConfig, epoch: int) -> float:
        return 0.9 if config.lr == 0.001 else 0.3

    conductor = Driver(open_conductor(plan), defaults_lead, concurrent=1).run()
    records = conductor.records(plan.stages[1])[:2]
    # Even the first trials of the stage are stopped, at the first rung.
    assert [(r.status, len(r.curve)) for r in records] == [
        (COMPLETED, EPOCHS) if r.number == exempt else (PRUNED, 2) for r in records
    ]
    assert all("not among the best 1/3 at epoch 2" in r.reason for r in records if r.status == PRUNED)


@pytest.mark.parametrize("seed", range(3))
def test_one_trial_of_each_stage_runs_to_the_end_whatever_it_reports(seed: int, tmp_path: Path) -> None:
    base = build_config({"seed": seed, "max_epochs": 50})
    plan = make_plan(tmp_path, base=base, rungs=Rungs(1, 9, EPOCHS), confirm=None)

    def worse_and_worse() -> Objective:
        started: dict[str, int] = {}
        return lambda config, epoch: 1.0 / (1 + started.setdefault(config.out_dir, len(started)))

    conductor = Driver(open_conductor(plan), worse_and_worse(), concurrent=1).run()
    for stage in plan.stages:
        records = conductor.records(stage)
        finished = [record.number for record in records if record.status == COMPLETED]
        assert derive_seed(seed, stage.name, "exempt") % stage.trials in finished
        # Every other trial is worse than the standing winner and stops at the first rung.
        assert all(len(r.curve) == (EPOCHS if r.number in finished else 1) for r in records)
        assert len(finished) == 1


def test_confirmations_always_run_to_the_end(tmp_path: Path) -> None:
    def confirmations_fall(config: TrainConfig, epoch: int) -> float:
        return learn(config, epoch) if config.seed == 5 else 0.1 / config.seed

    conductor = search(tmp_path, confirmations_fall, rungs=Rungs(1, 9, EPOCHS))
    records = conductor.records(conductor.stages[-1])
    assert {(record.status, len(record.curve)) for record in records} == {(COMPLETED, EPOCHS)}


# Confirmation


def test_confirmation_repeats_the_best_and_the_baseline_with_fresh_seeds(finished: Driver) -> None:
    conductor = finished.conductor
    records = conductor.records(conductor.stages[-1])
    ranked = [record.name for record in conductor.ranked() if record.stage != "defaults"]
    assert conductor.baseline is not None
    who = [conductor.baseline.name, *ranked[:2]]
    # Seed by seed, so that an interrupted confirmation has whole comparisons; none of them the search's own seed.
    assert [(record.of, record.seed) for record in records] == [(name, seed) for seed in (6, 7) for name in who]
    assert len(records) == conductor.plan.confirmations == 6
    searched = {record.name: record for record in conductor.records()}
    assert all(record.of and record.values == searched[record.of].values for record in records)


def test_the_best_are_told_by_their_objectives(finished: Driver) -> None:
    objectives = [record.objective or 0 for record in finished.conductor.ranked()]
    assert len(objectives) > 2
    assert objectives == sorted(objectives, reverse=True)


def test_a_confirmation_measures_the_test_part_and_no_other_trial_does(finished: Driver) -> None:
    assert {task.test for task in finished.handed if task.record.stage == "confirm"} == {True}
    assert {task.test for task in finished.handed if task.record.stage != "confirm"} == {False}


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


# Configurations of trials


def test_a_trial_has_the_searchs_length_and_a_folder_of_its_own(finished: Driver) -> None:
    conductor = finished.conductor
    base = conductor.plan.base
    for task in finished.handed:
        config, record = task.config, task.record
        assert config == conductor.config_of(record)
        assert config.max_epochs == EPOCHS
        assert config.schedule_epochs == EPOCHS
        assert config.out_dir == str(conductor.plan.folder / "trials" / record.name)
        assert config.lr == record.values.get("lr", base.lr)
        assert config.temperature == record.values.get("temperature", base.temperature)
        assert config.seed == (base.seed if record.seed is None else record.seed)
        assert not task.resume


def test_nested_keys_and_the_input_size_reach_the_configuration(tmp_path: Path) -> None:
    parameters = {
        "transforms.cj_strength": {"type": "uniform", "low": 0, "high": 1},
        "input_size": {"type": "choice", "values": [32, 64]},
    }
    base = build_config({"max_epochs": 50, "input_size": 96, "transforms": {"cj_prob": 0.3}})
    conductor = search(tmp_path, base=base, parameters=parameters, order="joint", budget={"trials": 5}, confirm=None)
    for record in conductor.records()[1:]:
        config = conductor.config_of(record)
        assert config.transforms.cj_strength == record.values["transforms.cj_strength"]
        assert config.input_size == config.transforms.input_size == record.values["input_size"]
        assert config.transforms.cj_prob == 0.3


@pytest.mark.parametrize(("period", "expected"), [(None, EPOCHS), (50, EPOCHS), (200, 200)])
def test_a_cosine_over_the_whole_run_covers_the_trials_run(period: int | None, expected: int, tmp_path: Path) -> None:
    base = build_config({"max_epochs": 50, "T_max": period})
    driver = Driver(open_conductor(make_plan(tmp_path, base=base, budget={"trials": 3}, confirm=None)))
    driver.run()
    assert {task.config.schedule_epochs for task in driver.handed} == {expected}


# Failures


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


# An objective of which less is better


@pytest.fixture(scope="module")
def minimised(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    folder = tmp_path_factory.mktemp("minimised")
    return search(folder, lambda config, epoch: 5 - learn(config, epoch), metric_name="reference_contrast")


def test_the_lowest_wins_each_stage(minimised: Conductor) -> None:
    records: list[TrialRecord] = []
    for stage, winner in zip(minimised.plan.stages, minimised.winners, strict=True):
        records += [r for r in minimised.records(stage) if r.status == COMPLETED]
        assert winner == min(records, key=lambda record: record.objective or 0)
    ranked = [record.objective or 0 for record in minimised.ranked()]
    assert ranked == sorted(ranked)
    top = [record.name for record in minimised.ranked() if record.stage != "defaults"][:2]
    assert {record.of for record in minimised.records() if record.of} == {minimised.records()[0].name, *top}


def test_the_lowest_go_on_at_the_rungs(minimised: Conductor) -> None:
    stage = minimised.plan.stages[1]
    records = minimised.records(stage)
    pruned = [record for record in records if record.status == PRUNED]
    assert pruned
    at_first = {record.name: record.curve[1] for record in records if len(record.curve) >= 2}
    assert all(at_first[record.name] > min(at_first.values()) for record in pruned)


def test_a_minimised_search_decides_as_its_mirror_image(minimised: Conductor, tmp_path: Path) -> None:
    mirrored = search(tmp_path, lambda config, epoch: learn(config, epoch) - 5, metric_name="rankme")
    assert [(r.name, r.values, r.status, len(r.curve)) for r in minimised.records()] == [
        (r.name, r.values, r.status, len(r.curve)) for r in mirrored.records()
    ]


def test_the_study_of_a_minimised_search_is_one_for_optuna_too(minimised: Conductor) -> None:
    folder = minimised.plan.folder
    journal = folder / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))  # type: ignore[arg-type]
    study = optuna.load_study(study_name="1-lr", storage=storage)
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    winner = minimised.winners[1]
    assert winner is not None
    assert study.best_value == pytest.approx(winner.objective)


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


def test_a_trial_that_has_ended_is_heard_no_more(finished: Driver) -> None:
    conductor = finished.conductor
    before = conductor.records()
    assert not conductor.report(before[0].name, {"epoch": 99, "objective": 1.0})
    assert not conductor.report("no-such-trial", {"epoch": 1, "objective": 1.0})
    conductor.fail(before[0].name, "late")
    assert conductor.records() == before


# Trials side by side


def test_no_task_while_the_stages_others_are_running(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    first = conductor.next_task()
    assert first is not None
    assert conductor.next_task() is None  # the baseline is alone in its stage
    for epoch in range(1, EPOCHS + 1):
        conductor.report(first.record.name, {"epoch": epoch, "objective": 0.5})
    tasks = [conductor.next_task() for _ in range(6)]
    assert [task.record.stage if task else None for task in tasks] == [*["lr"] * 5, None]
    assert len(conductor.live) == 5
    assert not conductor.done


@pytest.mark.parametrize("concurrent", [1, 8])
def test_as_many_side_by_side_as_asked_for_run_the_same_number_of_trials(concurrent: int, tmp_path: Path) -> None:
    conductor = search(tmp_path, concurrent=concurrent)
    assert [len(conductor.records(stage)) for stage in conductor.stages] == [1, 5, 5, 6]


# A confirmation with a candidate fewer after each seed

DROPPING: dict[str, Any] = {"confirm": {"top_k": 3, "seeds": 3, "drop": True}}


def unsteady(config: TrainConfig, epoch: int) -> float:
    """The order of the search turns round with the first fresh seed, and is as it was with the next."""
    value = learn(config, epoch)
    return 0.9 - value if config.seed == 6 else value


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


def test_without_dropping_the_rounds_are_all_the_same(finished: Driver) -> None:
    conductor = finished.conductor
    assert conductor.rounds == [[record.name for record in conductor.candidates(2)]] * 2


def test_before_the_confirmation_there_are_no_rounds(tmp_path: Path) -> None:
    assert open_conductor(make_plan(tmp_path, **DROPPING)).rounds == []


def run_and_stop(plan: Plan, stops: Sequence[int], objective: Objective = learn) -> None:
    """Run a search, one trial after the other, stopped after each of so many reports in all, in rising order."""
    for before, stop in itertools.pairwise([0, *stops]):
        Driver(open_conductor(plan), objective, concurrent=1).run(stop - before)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, int]:
    """A search that drops candidates, run one trial after the other without a stop, and its reports."""
    driver = Driver(open_conductor(make_plan(tmp_path_factory.mktemp("drop"), **DROPPING)), unsteady, concurrent=1)
    return driver.conductor, sum(1 for _ in driver.reports())


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_dropping_confirmation_stopped_anywhere_ends_as_an_unbroken_one(
    dropping: tuple[Conductor, int], data: st.DataObject
) -> None:
    expected, reports = dropping
    before = reports - 9 * EPOCHS  # of the search; of the confirmation each trial runs to its end
    stops = data.draw(st.lists(st.integers(before, reports - 1), min_size=1, max_size=3, unique=True).map(sorted))
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), **DROPPING)
        run_and_stop(plan, stops, unsteady)
        conductor = open_conductor(plan)
        assert not conductor.settle()
        Driver(conductor, unsteady, concurrent=1).run()
        assert conductor.done
        assert conductor.records() == expected.records()
        assert conductor.rounds == expected.rounds


# Stop and resume


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, int]:
    """A search that ran one trial after the other without a stop, and the number of its reports."""
    driver = Driver(open_conductor(make_plan(tmp_path_factory.mktemp("unbroken"))), concurrent=1)
    return driver.conductor, sum(1 for _ in driver.reports())


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_search_stopped_anywhere_ends_as_an_unbroken_one(
    unbroken: tuple[Conductor, int], data: st.DataObject
) -> None:
    expected, reports = unbroken
    stops = data.draw(st.lists(st.integers(1, reports - 1), min_size=1, max_size=3, unique=True).map(sorted))
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder))
        run_and_stop(plan, stops)
        driver = Driver(open_conductor(plan), concurrent=1)
        conductor = driver.run()
        assert conductor.done
        assert conductor.records() == expected.records()
        assert conductor.winners == expected.winners
        assert sum(task.resume for task in driver.handed) <= 1


FULL: dict[str, Any] = {
    "parameters": {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 5e-3},
        "batch_size": {"type": "choice", "values": [16, 64, 128]},
        "temperature": {"type": "uniform", "low": 0.05, "high": 0.5, "default": 0.3},
    },
    "metric_name": "reference_contrast",
    "extend": True,
    "refine": True,
    "budget": {"trials": 22, "shares": {"refine": 0.75}},
    "confirm": {"top_k": 1, "seeds": 2},
}


def eventful(config: TrainConfig, epoch: int) -> dict[str, float]:
    """Of everything that may happen something: the learning rate at its edge, a batch that does not fit, divergence,
    collapse; and less is better."""
    if config.batch_size == 128 and epoch == 2:
        raise DoesNotFit("out of memory with 128 images")
    value = 5 - learn(config, epoch) - 0.002 * config.batch_size
    collapsed = config.temperature > 0.4 and config.seed == 5
    return {
        "objective": math.nan if config.temperature < 0.07 and epoch == 1 else value,
        "feature_std": 0.001 if collapsed else 0.3,
        "rankme": 12.0,
    }


@pytest.fixture(scope="module")
def eventful_search(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, int]:
    """A search in which everything happens, run one trial after the other without a stop, and its reports."""
    driver = Driver(open_conductor(make_plan(tmp_path_factory.mktemp("eventful"), **FULL)), eventful, concurrent=1)
    return driver.conductor, sum(1 for _ in driver.reports())


def test_everything_happens_in_the_eventful_search(eventful_search: tuple[Conductor, int]) -> None:
    conductor, _ = eventful_search
    assert {record.status for record in conductor.records()} == {COMPLETED, PRUNED, FAILED, INFEASIBLE}
    reasons = " ".join(record.reason for record in conductor.records())
    assert all(told in reasons for told in ("diverged", "collapsed", "out of memory", "not among the best"))
    assert conductor.ranges["lr"].high != 5e-3
    assert [stage.name for stage in conductor.stages if not conductor.records(stage)] == []


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_an_eventful_search_stopped_anywhere_ends_as_an_unbroken_one(
    eventful_search: tuple[Conductor, int], data: st.DataObject
) -> None:
    expected, reports = eventful_search
    stops = data.draw(st.lists(st.integers(1, reports - 1), min_size=1, max_size=2, unique=True).map(sorted))
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder), **FULL)
        run_and_stop(plan, stops, eventful)
        conductor = open_conductor(plan)
        settled = conductor.settle()  # as a resume does
        assert not settled or stops[-1] == reports
        Driver(conductor, eventful, concurrent=1).run()
        assert conductor.done
        assert conductor.records() == expected.records()
        assert conductor.winners == expected.winners
        assert conductor.ranges == expected.ranges
        assert conductor.stages == expected.stages


@settings(max_examples=8, deadline=None)
@given(stop=st.integers(1, 70), concurrent=st.integers(1, 4))
def test_a_search_side_by_side_stopped_anywhere_loses_nothing_and_repeats_nothing(stop: int, concurrent: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(Path(folder))
        first = Driver(open_conductor(plan), concurrent=concurrent)
        before = by_name(first.run(stop))
        second = Driver(open_conductor(plan), concurrent=concurrent)
        conductor = second.run()
        after = by_name(conductor)
        assert conductor.done
        assert [len(conductor.records(stage)) for stage in conductor.stages] == [1, 5, 5, 6]
        for name, record in before.items():
            assert after[name].curve[: len(record.curve)] == record.curve
            assert after[name].values == record.values
            assert not record.ended or after[name] == record
        # What had ended is not handed out again, what was running goes on where it was.
        handed = {task.record.name: task for task in second.handed}
        assert {name for name in before if name in handed} == {n for n, r in before.items() if not r.ended}
        assert all(task.resume == (name in before) for name, task in handed.items())
        assert all(task.record.curve == before[name].curve for name, task in handed.items() if name in before)
        assert max((first.to_the_end + second.to_the_end).values()) == 1


def test_a_resumed_trial_may_tell_its_history_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    Driver(open_conductor(plan)).run(4)
    conductor = open_conductor(plan)
    task = conductor.next_task()
    assert task is not None and task.resume
    assert task.record.curve
    for epoch in range(1, len(task.record.curve) + 1):
        assert conductor.report(task.record.name, {"epoch": epoch, "objective": 0.123})
    assert conductor.records()[0].curve == task.record.curve


def test_a_trial_stopped_between_its_last_report_and_its_end_is_completed_not_run_again(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    stopped = Driver(open_conductor(plan)).run(EPOCHS - 1)
    # The last report is in the journal, the end is not.
    record = stopped.study.report(stopped.records()[0], {"epoch": EPOCHS, "objective": 0.5})
    assert (record.status, len(record.curve)) == (RUNNING, EPOCHS)
    conductor = open_conductor(plan)
    # Its training would find nothing left to do, report nothing, and count as failed.
    task = conductor.next_task()
    assert task is None or task.record.name != record.name
    assert conductor.records()[0].status == COMPLETED


def test_a_trial_stopped_between_a_rungs_report_and_its_end_is_pruned_not_gone_on_with(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, rungs=Rungs(2, 3, EPOCHS))
    exempt = derive_seed(plan.seed, "lr", "exempt") % plan.stages[1].trials
    number = 0 if exempt else 1
    conductor = open_conductor(plan)

    def falling(config: TrainConfig, epoch: int) -> float:
        return 0.9 if config.lr == 0.001 else 0.2

    driver = Driver(conductor, falling, concurrent=1)
    for _ in driver.reports():
        last = conductor.records()[-1]
        if last.stage == "lr" and last.number == number and len(last.curve) == 1:
            break
    # The rung's report is in the journal, the decision is not.
    conductor.study.report(last, {"epoch": 2, "objective": 0.2})
    again = open_conductor(plan)
    Driver(again, falling, concurrent=1).run()
    record = by_name(again)[last.name]
    assert (record.status, len(record.curve)) == (PRUNED, 2)


def test_settling_a_finished_search_needs_no_trial(finished: Driver) -> None:
    first = finished.conductor
    journal = first.plan.folder / "study.journal"
    size = journal.stat().st_size
    again = open_conductor(first.plan)
    assert not again.done
    assert again.settle()
    assert again.done
    assert again.records() == first.records()
    assert again.winners == first.winners
    assert journal.stat().st_size == size


@pytest.mark.parametrize("stop", [1, 9, 40])
def test_settling_an_unfinished_search_starts_nothing(stop: int, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    before = Driver(open_conductor(plan)).run(stop).records()
    conductor = open_conductor(plan)
    assert not conductor.settle()
    assert conductor.records() == before
    assert conductor.live == {}


def test_settling_a_new_search_starts_nothing(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    assert not conductor.settle()
    assert conductor.records() == []
