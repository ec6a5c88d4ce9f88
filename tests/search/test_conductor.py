"""Whole searches: their stages, early stopping, the configurations of trials."""

from collections import Counter
from pathlib import Path

import optuna
import pytest
from driver import EPOCHS, Driver, Objective, by_name, learn, make_plan, open_conductor, search
from studies import storage, study_trials

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED, PRUNED, TrialRecord
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.sampler import derive_seed

# A whole search


def test_a_staged_search_runs_its_stages_in_order_and_ends(staged: Driver) -> None:
    conductor = staged.conductor
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


def test_the_baseline_is_trial_zero_and_has_the_base_configuration(staged: Driver) -> None:
    conductor = staged.conductor
    baseline = conductor.baseline
    assert baseline is not None
    assert baseline == conductor.records()[0]
    assert (baseline.stage, baseline.values, baseline.status) == ("defaults", {}, COMPLETED)
    changed = {"max_epochs": EPOCHS, "out_dir": str(conductor.plan.folder / "trials" / baseline.name)}
    assert conductor.config_of(baseline) == conductor.plan.base.model_copy(update=changed)


def test_no_baseline_before_the_first_task(tmp_path: Path) -> None:
    assert open_conductor(make_plan(tmp_path)).baseline is None


def test_a_stage_starts_from_the_last_winner_which_is_not_run_again(staged: Driver) -> None:
    conductor, plan = staged.conductor, staged.conductor.plan
    defaults, lr, temperature = conductor.winners
    assert defaults is not None and lr is not None and temperature is not None
    completed = [r for r in conductor.records(plan.stages[1]) if r.status == COMPLETED]
    assert lr == max([defaults, *completed], key=lambda record: record.objective or 0)
    assert all(r.values["lr"] == lr.values["lr"] for r in conductor.records(plan.stages[2]))
    # Started once, each of them, and nothing but what the plan counts.
    assert Counter(task.record.name for task in staged.handed) == dict.fromkeys(by_name(conductor), 1)


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


def test_the_sampler_is_told_the_standing_winner_at_its_values(staged: Driver) -> None:
    conductor = staged.conductor
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


# Configurations of trials


def test_a_trial_has_the_searchs_length_and_a_folder_of_its_own(staged: Driver) -> None:
    conductor = staged.conductor
    base = conductor.plan.base
    for task in staged.handed:
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


# An objective of which less is better


@pytest.fixture(scope="module")
def lowest(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    folder = tmp_path_factory.mktemp("minimised")
    return search(folder, lambda config, epoch: 5 - learn(config, epoch), metric_name="reference_contrast")


def test_the_lowest_wins_each_stage(lowest: Conductor) -> None:
    records: list[TrialRecord] = []
    for stage, winner in zip(lowest.plan.stages, lowest.winners, strict=True):
        records += [r for r in lowest.records(stage) if r.status == COMPLETED]
        assert winner == min(records, key=lambda record: record.objective or 0)
    ranked = [record.objective or 0 for record in lowest.ranked()]
    assert ranked == sorted(ranked)
    top = [record.name for record in lowest.ranked() if record.stage != "defaults"][:2]
    assert {record.of for record in lowest.records() if record.of} == {lowest.records()[0].name, *top}


def test_the_lowest_go_on_at_the_rungs(lowest: Conductor) -> None:
    stage = lowest.plan.stages[1]
    records = lowest.records(stage)
    pruned = [record for record in records if record.status == PRUNED]
    assert pruned
    at_first = {record.name: record.curve[1] for record in records if len(record.curve) >= 2}
    assert all(at_first[record.name] > min(at_first.values()) for record in pruned)


def test_a_minimised_search_decides_as_its_mirror_image(lowest: Conductor, tmp_path: Path) -> None:
    mirrored = search(tmp_path, lambda config, epoch: learn(config, epoch) - 5, metric_name="rankme")
    assert [(r.name, r.values, r.status, len(r.curve)) for r in lowest.records()] == [
        (r.name, r.values, r.status, len(r.curve)) for r in mirrored.records()
    ]


def test_the_study_of_a_minimised_search_is_one_for_optuna_too(lowest: Conductor) -> None:
    study = optuna.load_study(study_name="1-lr", storage=storage(lowest.plan.folder))
    assert study.direction == optuna.study.StudyDirection.MINIMIZE
    winner = lowest.winners[1]
    assert winner is not None
    assert study.best_value == pytest.approx(winner.objective)
