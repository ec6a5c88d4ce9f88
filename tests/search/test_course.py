"""The stages of whole searches: what each varies, around what, and what it leaves to the next."""

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from driver import EPOCHS, DoesNotFit, Driver, learn, make_plan, open_conductor, search
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.layers import get_key
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import REFINED_SHARE
from phenoscape_tune.search.journal import JournalLock
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.record import COMPLETED, FAILED, INFEASIBLE, PRUNED, TrialRecord
from phenoscape_tune.search.report import write_best
from phenoscape_tune.search.verdict import decide
from phenoscape_tune.search.warm_start import read_earlier
from phenoscape_tune.training.capacity import Capacity

LR = {"type": "loguniform", "low": 1e-5, "high": 1e-1}
BATCH = {"type": "choice", "values": [16, 32, 64, 128]}
TEMPERATURE = {"type": "uniform", "low": 0.05, "high": 0.5}
THREE: dict[str, Any] = {"lr": LR, "batch_size": BATCH, "temperature": TEMPERATURE}


def larger_is_better(config: TrainConfig, epoch: int) -> float:
    return learn(config, epoch) + 0.001 * config.batch_size


def stage_named(conductor: Conductor, name: str) -> Stage:
    return next(stage for stage in conductor.stages if stage.name == name)


def values_of(conductor: Conductor, name: str, key: str) -> list[Any]:
    """The values of a key with which the trials of a stage ran."""
    records = conductor.records(stage_named(conductor, name))
    return [get_key(conductor.config_of(record).to_mapping(), key) for record in records]


def study_trials(conductor: Conductor, stage: str) -> list[optuna.trial.FrozenTrial]:
    """What Optuna knows of a stage."""
    journal = conductor.plan.folder / "study.journal"
    storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))  # type: ignore[arg-type]
    return optuna.load_study(study_name=stage_named(conductor, stage).study_name, storage=storage).get_trials()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    """A search with all kinds of stages, in which the largest batch wins."""
    folder = tmp_path_factory.mktemp("full")
    return search(folder, larger_is_better, parameters=THREE, refine=True, budget={"trials": 24})


def test_each_stage_varies_its_own_keys_around_the_last_winner(full: Conductor) -> None:
    names = ["defaults", "lr", "batch_size", "lr_recheck", "temperature", "refine", "confirm"]
    assert [stage.name for stage in full.stages] == names
    own = {"batch_size": {"batch_size", "lr"}}  # a batch size brings its learning rate along
    for stage, winner in zip(full.stages[1:-1], full.winners, strict=False):
        assert winner is not None
        before = full.config_of(winner).to_mapping()
        records = full.records(stage)
        assert records
        for record in records:
            config = full.config_of(record).to_mapping()
            changed = {key for key in (*THREE, "weight_decay") if get_key(config, key) != get_key(before, key)}
            assert changed <= own.get(stage.name, set(stage.keys))
        assert any(record.values != winner.values for record in records)


def test_winners_only_get_better_from_stage_to_stage(full: Conductor) -> None:
    objectives = [winner.objective or 0 for winner in full.winners if winner]
    assert len(objectives) == 6
    assert objectives == sorted(objectives)


# The batch size


def test_each_batch_size_runs_at_lr_times_the_root_of_its_ratio(full: Conductor) -> None:
    before = full.winners[1]
    assert before is not None
    base = full.config_of(before)
    records = full.records(stage_named(full, "batch_size"))
    assert Counter(record.values["batch_size"] for record in records) == {16: 1, 64: 1, 128: 1}
    for record in records:
        config = full.config_of(record)
        assert config.lr == record.values["lr"] == pytest.approx(base.lr * math.sqrt(config.batch_size / 32))
    # What follows starts from both.
    winner = full.winners[2]
    assert winner is not None
    assert winner.values["batch_size"] == 128
    assert set(values_of(full, "temperature", "batch_size")) == {128}


@pytest.mark.parametrize(("low", "high"), [(9e-4, 1.2e-3), (1e-5, 1e-3)])
def test_the_scaled_learning_rate_stays_in_its_range(low: float, high: float, tmp_path: Path) -> None:
    def defaults_lr(config: TrainConfig, epoch: int) -> float:
        return 0.9 if config.lr == 0.001 else 0.1

    parameters = {"lr": {**LR, "low": low, "high": high}, "batch_size": BATCH}
    conductor = search(tmp_path, defaults_lr, parameters=parameters, budget={"trials": 10}, confirm=None)
    scaled = {b: min(max(0.001 * math.sqrt(b / 32), low), high) for b in (16, 64, 128)}
    records = conductor.records(stage_named(conductor, "batch_size"))
    assert {record.values["batch_size"]: record.values["lr"] for record in records} == scaled


def test_without_a_range_of_its_own_the_learning_rate_is_scaled_all_the_same(tmp_path: Path) -> None:
    conductor = search(tmp_path, larger_is_better, parameters={"batch_size": BATCH}, budget={"trials": 4}, confirm=None)
    assert [stage.name for stage in conductor.stages] == ["defaults", "batch_size"]
    for record in conductor.records()[1:]:
        config = conductor.config_of(record)
        assert config.lr == pytest.approx(0.001 * math.sqrt(config.batch_size / 32))
    # It is part of what was found.
    outcome = decide(conductor)
    assert outcome is not None
    assert outcome.best.record.values == {"batch_size": 128, "lr": pytest.approx(0.002)}
    assert "lr: 0.002" in write_best(conductor.plan, outcome).read_text()


def test_a_changed_batch_size_is_followed_by_a_second_look_at_the_learning_rate(full: Conductor) -> None:
    winner = full.winners[2]
    assert winner is not None
    scaled = full.config_of(winner).lr
    found = values_of(full, "lr_recheck", "lr")
    assert len(found) == stage_named(full, "lr_recheck").trials > 0
    # A quarter of the range, which is four powers of ten, around it.
    assert all(abs(math.log10(lr / scaled)) <= 0.5 + 1e-9 for lr in found)
    assert set(values_of(full, "lr_recheck", "batch_size")) == {128}


def test_an_unchanged_batch_size_passes_the_trials_on(tmp_path: Path) -> None:
    def as_it_is(config: TrainConfig, epoch: int) -> float:
        return learn(config, epoch) - abs(config.batch_size - 32)

    plan = make_plan(tmp_path, parameters=THREE, budget={"trials": 24})
    conductor = Driver(open_conductor(plan), as_it_is).run()
    planned = {stage.name: stage.trials for stage in plan.stages}
    ran = {stage.name: len(conductor.records(stage)) for stage in conductor.stages}
    assert planned["lr_recheck"] > 0
    assert ran["lr_recheck"] == 0
    assert ran["temperature"] == planned["temperature"] + planned["lr_recheck"]
    assert sum(ran.values()) - ran["confirm"] == 24
    # A winner stands for each stage, the one that was passed over too.
    assert conductor.winners[3] == conductor.winners[2] != None  # noqa: E711


def test_the_trials_of_a_stage_passed_over_go_where_they_can_be_used(tmp_path: Path) -> None:
    parameters = {"lr": LR, "batch_size": BATCH, "temperature": {"type": "choice", "values": [0.1, 0.2, 0.3]}}
    parameters |= {"transforms.cj_strength": {"type": "uniform", "low": 0, "high": 1}}
    plan = make_plan(tmp_path, parameters=parameters, budget={"trials": 24}, confirm=None)
    conductor = Driver(open_conductor(plan), lambda config, epoch: -abs(config.batch_size - 32.0)).run()
    ran = {stage.name: len(conductor.records(stage)) for stage in conductor.stages}
    planned = {stage.name: stage.trials for stage in plan.stages}
    assert ran["temperature"] == planned["temperature"] == 2
    assert ran["augmentation"] == planned["augmentation"] + planned["lr_recheck"]


def test_where_no_batch_size_fits_the_search_goes_on_with_its_own(tmp_path: Path) -> None:
    def small_memory(config: TrainConfig, epoch: int) -> float:
        if config.batch_size != 32:
            raise DoesNotFit(f"out of memory with {config.batch_size} images")
        return learn(config, epoch)

    conductor = search(tmp_path, small_memory, parameters=THREE, budget={"trials": 20}, refine=True)
    records = conductor.records(stage_named(conductor, "batch_size"))
    assert {(r.status, r.reason) for r in records} == {
        (INFEASIBLE, f"out of memory with {size} images") for size in (16, 64, 128)
    }
    assert conductor.winners[2] == conductor.winners[1]
    assert len(conductor.records(stage_named(conductor, "lr_recheck"))) == 0
    assert conductor.done
    assert decide(conductor) is not None
    # Told as a constraint that was violated, and not as a bad score.
    for trial in study_trials(conductor, "batch_size"):
        if "taken_over" not in trial.user_attrs:
            assert trial.constraints == {"memory": 1.0}
            assert trial.values is None


def test_batches_beyond_what_fits_go_through_the_network_in_parts(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, parameters=THREE, budget={"trials": 12}, confirm=None)
    small = Capacity(48, {16: 90.0, 32: 95.0, 48: 96.0}, out_of_memory=True)
    driver = Driver(open_conductor(replace(plan, capacity=small)), larger_is_better)
    driver.run()
    parts = {task.config.batch_size: task.config.micro_batch_size for task in driver.handed}
    assert parts == {16: "auto", 32: "auto", 64: 32, 128: 32}


@pytest.mark.parametrize(
    ("capacity", "micro"),
    [
        (Capacity(64, {64: 90.0}, out_of_memory=False), "auto"),  # larger ones were not tried
        (Capacity(64, {64: 90.0}, out_of_memory=True), 24),  # asked for
        (None, "auto"),
    ],
)
def test_a_batch_that_fits_or_was_divided_by_hand_is_left_as_it_is(
    capacity: Capacity | None, micro: Any, tmp_path: Path
) -> None:
    base = build_config({"seed": 5, "max_epochs": 50, "batch_size": 128, "micro_batch_size": micro})
    plan = replace(make_plan(tmp_path, base=base, parameters={"lr": LR}, budget={"trials": 2}), capacity=capacity)
    task = open_conductor(plan).next_task()
    assert task is not None
    assert task.config.micro_batch_size == micro


# Around the winner


def test_refine_searches_all_keys_around_the_winner(full: Conductor) -> None:
    winner = full.winners[4]
    assert winner is not None
    records = full.records(stage_named(full, "refine"))
    assert len({record.values["lr"] for record in records}) == len(records) > 1
    assert len({record.values["temperature"] for record in records}) > 1
    for record in records:
        # A share of each range, and of a choice the neighbours.
        assert abs(math.log10(record.values["lr"] / winner.values["lr"])) <= REFINED_SHARE / 2 * 4 + 1e-9
        assert abs(record.values["temperature"] - winner.values["temperature"]) <= REFINED_SHARE / 2 * 0.45 + 1e-9
        assert record.values["batch_size"] in (64, 128)
    told = [trial for trial in study_trials(full, "refine") if "taken_over" in trial.user_attrs]
    before = [record for record in full.records() if record.stage != "refine"]
    near = [
        r for r in before if abs(math.log10(r.values.get("lr", 1e-3) / winner.values["lr"])) <= REFINED_SHARE / 2 * 4
    ]
    assert winner.values in [trial.params for trial in told]
    assert len(told) > 1  # nothing that it told is run again
    assert {trial.user_attrs["taken_over"] for trial in told} <= {record.name for record in near}


def test_refine_with_choices_runs_no_configuration_twice(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {
        "batch_size": BATCH,
        "weights": {"type": "choice", "values": [None, "DEFAULT"]},
        "temperature": {"type": "choice", "values": [0.1, 0.2, 0.3]},
    }
    plan = make_plan(tmp_path, parameters=parameters, refine=True, budget={"trials": 30}, confirm=None)
    driver = Driver(open_conductor(plan), larger_is_better)
    driver.run()
    configurations = Counter(
        (t.config.lr, t.config.batch_size, t.config.weights, t.config.temperature) for t in driver.handed
    )
    assert set(configurations.values()) == {1}


def test_a_second_look_at_chosen_learning_rates_tries_none_twice(tmp_path: Path) -> None:
    parameters = {"lr": {"type": "choice", "values": [1e-4, 1e-3, 1e-2, 1e-1]}, "batch_size": BATCH}
    plan = make_plan(tmp_path, parameters=parameters, budget={"trials": 12}, confirm=None)
    conductor = Driver(open_conductor(plan), larger_is_better).run()
    found = values_of(conductor, "lr_recheck", "lr")
    assert found
    assert len(set(found)) == len(found)


def test_whole_numbers_are_not_tried_twice_where_ranges_may_grow(tmp_path: Path) -> None:
    parameters = {
        "batch_size": {"type": "int", "low": 16, "high": 64, "step": 16},
        "projection_dim": {"type": "int", "low": 64, "high": 256, "step": 64},
    }
    plan = make_plan(tmp_path, parameters=parameters, extend=True, budget={"trials": 16}, confirm=None)
    driver = Driver(open_conductor(plan), lambda config, epoch: 0.001 * config.projection_dim)
    driver.run()
    tried = Counter((task.config.batch_size, task.config.projection_dim) for task in driver.handed)
    assert set(tried.values()) == {1}
    assert max(dim for _, dim in tried) > 256


def test_a_value_that_the_configuration_has_already_is_no_trial(tmp_path: Path) -> None:
    parameters = {"lr": LR, "batch_size": {"type": "choice", "values": [32]}}
    conductor = search(tmp_path, parameters=parameters, budget={"trials": 8}, confirm=None)
    assert conductor.records(stage_named(conductor, "batch_size")) == []


@pytest.mark.parametrize("refine", [False, True])
def test_where_nothing_trains_every_stage_is_tried_and_the_search_ends(refine: bool, tmp_path: Path) -> None:
    parameters = {"lr": LR, "temperature": TEMPERATURE}
    changes: dict[str, Any] = {"parameters": parameters, "refine": refine, "extend": True}
    conductor = search(tmp_path, lambda config, epoch: math.nan, **changes)
    assert conductor.done
    assert set(conductor.winners) == {None}
    assert {record.status for record in conductor.records()} == {FAILED}
    assert len(conductor.records()) == 11
    assert decide(conductor) is None


def test_a_key_that_the_configuration_leaves_open_is_refined_over_its_whole_range(tmp_path: Path) -> None:
    parameters = {"lr": LR, "eta_min": {"type": "loguniform", "low": 1e-6, "high": 1e-4}}
    conductor = search(
        tmp_path,
        lambda config, epoch: 0.9 if config.lr == 0.001 and config.eta_min is None else 0.1,
        parameters=parameters,
        refine=True,
        confirm=None,
    )
    assert conductor.winners == [conductor.baseline] * 4
    assert conductor.config_of(conductor.records()[0]).eta_min is None
    assert all(1e-6 <= value <= 1e-4 for value in values_of(conductor, "refine", "eta_min"))


def test_a_winner_outside_of_every_range_stands_where_nothing_is_better(tmp_path: Path) -> None:
    base = build_config({"seed": 5, "max_epochs": 50, "lr": 0.3, "temperature": 2.0, "batch_size": 8})
    conductor = search(
        tmp_path,
        lambda config, epoch: 1 / (1 + abs(config.lr - 0.3)),
        base=base,
        parameters=THREE,
        refine=True,
        budget={"trials": 28},
    )
    assert conductor.done
    assert conductor.winners == [conductor.baseline] * 6
    # All values of the choice are new.
    assert sorted(values_of(conductor, "batch_size", "batch_size")) == [16, 32, 64, 128]
    # The trials lie in the ranges, at the end that is nearest to the winner.
    assert all(10 ** (-1 - REFINED_SHARE / 2 * 4) < lr <= 0.1 for lr in values_of(conductor, "refine", "lr"))


def test_one_trial_a_stage_is_enough(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"parameters": THREE, "refine": True, "extend": True}
    conductor = search(tmp_path, larger_is_better, budget={"trials": 6}, confirm={"top_k": 1, "seeds": 1}, **changes)
    assert [len(conductor.records(stage)) for stage in conductor.stages] == [1, 1, 1, 1, 1, 1, 2]
    assert conductor.ranges == conductor.plan.space.parameters


# Ranges that are too narrow


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


# All at once


def test_a_joint_search_is_told_the_defaults(tmp_path: Path) -> None:
    conductor = search(tmp_path, larger_is_better, parameters=THREE, order="joint", budget={"trials": 12}, confirm=None)
    assert [(stage.name, len(conductor.records(stage))) for stage in conductor.stages] == [
        ("defaults", 1),
        ("joint", 11),
    ]
    told = [trial.params for trial in study_trials(conductor, "joint") if "taken_over" in trial.user_attrs]
    assert told == [{"lr": 0.001, "batch_size": 32, "temperature": 0.1}]
    # Nothing is scaled where everything is searched together.
    for record in conductor.records(conductor.stages[1]):
        assert record.values.keys() == THREE.keys()


def test_the_defaults_of_ranges_are_tried_first(tmp_path: Path) -> None:
    parameters = {"lr": {**LR, "default": 0.02}, "batch_size": {**BATCH, "default": 64}}
    conductor = search(tmp_path, parameters=parameters, budget={"trials": 10}, confirm=None)
    assert values_of(conductor, "lr", "lr")[0] == 0.02
    assert values_of(conductor, "batch_size", "batch_size")[0] == 64


def test_a_default_that_the_configuration_has_is_not_run_again(tmp_path: Path) -> None:
    parameters = {"lr": {**LR, "default": 0.001}}
    conductor = search(tmp_path, parameters=parameters, budget={"trials": 5}, confirm=None)
    assert 0.001 not in values_of(conductor, "lr", "lr")


# Trials of an earlier search


def warm_start(earlier: Conductor, plan: Any) -> list[TrialRecord]:
    saved = {
        "data": "",
        "metric": earlier.plan.objective.name,
        "max_epochs": EPOCHS,
        "config": earlier.plan.base.to_mapping(),
    }
    return read_earlier(earlier.plan.folder, saved, plan, "")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    """A search of the learning rate with a winner that no short one finds."""
    folder = tmp_path_factory.mktemp("searches") / "earlier"
    return search(folder, parameters={"lr": {**LR, "default": 0.01}}, budget={"trials": 13}, confirm=None)


@pytest.fixture(scope="module")
def warm(earlier: Conductor, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A staged search that was told the trials of the earlier one."""
    plan = make_plan(tmp_path_factory.mktemp("warm"), budget={"trials": 9}, confirm={"top_k": 3, "seeds": 2})
    driver = Driver(open_conductor(plan, warm=warm_start(earlier, plan)))
    driver.run()
    return driver


def test_a_stage_is_told_the_earlier_trials_that_differ_in_its_keys_alone(warm: Driver, earlier: Conductor) -> None:
    conductor = warm.conductor
    stage = stage_named(conductor, "lr")
    expected = [r for r in earlier.records() if r.values and r.status in (COMPLETED, PRUNED)]
    told = conductor.study.warm_trials(stage)
    assert [(record.name, record.values, record.curve) for record in told] == [
        (f"earlier:{record.name}", record.values, record.curve) for record in expected
    ]
    stored = [trial for trial in study_trials(conductor, "lr") if trial.user_attrs.get("warm")]
    assert [trial.params for trial in stored] == [record.values for record in expected]
    assert [trial.state.name for trial in stored] == [
        {COMPLETED: "COMPLETE", PRUNED: "PRUNED"}[record.status] for record in expected
    ]
    # They have none of the temperature's.
    assert conductor.study.warm_trials(stage_named(conductor, "temperature")) == []


def test_an_earlier_winner_wins_without_being_run_again(warm: Driver, earlier: Conductor) -> None:
    conductor = warm.conductor
    winner = conductor.winners[1]
    assert winner is not None
    assert winner.warm
    assert winner.values == {"lr": 0.01}
    assert 0.01 not in values_of(conductor, "lr", "lr")
    assert set(values_of(conductor, "temperature", "lr")) == {0.01}
    # Nor anything else that the earlier search tried with the same seed.
    assert not {r.values["lr"] for r in earlier.records() if r.values} & set(values_of(conductor, "lr", "lr"))


def test_an_earlier_trial_is_no_trial_of_this_search(warm: Driver) -> None:
    conductor = warm.conductor
    assert len(conductor.records()) == 9 + 8
    assert not any(record.warm for record in conductor.records())
    assert [len(conductor.records(stage)) for stage in conductor.stages] == [1, 4, 4, 8]


def test_an_earlier_winner_is_confirmed_with_fresh_seeds_here(warm: Driver) -> None:
    conductor = warm.conductor
    confirmed = {record.of for record in conductor.records() if record.of}
    told = {record.name for record in conductor.ranked()[:4] if record.warm}
    assert told & confirmed
    for task in warm.handed:
        if task.record.of in told:
            assert task.config.lr == 0.01 or task.config.lr in {r.values["lr"] for r in conductor.ranked() if r.warm}
            assert task.config.seed in (6, 7)
            assert Path(task.config.out_dir).parent == conductor.plan.folder / "trials"
    assert decide(conductor) is not None


def test_the_curves_of_earlier_trials_count_at_the_rungs(earlier: Conductor, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, parameters={"lr": LR}, budget={"trials": 7}, confirm=None)
    conductor = open_conductor(plan, warm=warm_start(earlier, plan))
    Driver(conductor, lambda config, epoch: 0.5 * learn(config, epoch)).run()
    stage = stage_named(conductor, "lr")
    # Half as good as the earlier search's, all but the one that always runs to its end stop at the first rung.
    assert [len(record.curve) for record in conductor.records(stage)] == [
        EPOCHS if conductor.is_exempt(record) else 2 for record in conductor.records(stage)
    ]


def test_a_resumed_search_needs_the_earlier_folder_no_more(earlier: Conductor, warm: Driver, tmp_path: Path) -> None:
    copy = tmp_path / "earlier"
    shutil.copytree(earlier.plan.folder, copy)
    plan = make_plan(tmp_path / "again", budget={"trials": 9}, confirm={"top_k": 3, "seeds": 2})
    moved = replace(earlier.plan, folder=copy)
    told = read_earlier(copy, {"data": "", "metric": "knn_accuracy", "max_epochs": EPOCHS,
                               "config": moved.base.to_mapping()}, plan, "")  # fmt: skip
    Driver(open_conductor(plan, warm=told)).run(12)
    shutil.rmtree(copy)
    conductor = Driver(open_conductor(plan)).run()
    assert [(r.name, r.values, r.curve) for r in conductor.records()] == [
        (r.name, r.values, r.curve) for r in warm.conductor.records()
    ]
    assert conductor.winners == warm.conductor.winners


def test_a_joint_search_is_told_the_trials_of_every_stage(warm: Driver, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, order="joint", budget={"trials": 6}, confirm=None)
    found = warm_start(warm.conductor, plan)
    assert {len(record.values) for record in found} == {1, 2}
    conductor = Driver(open_conductor(plan, warm=found)).run()
    told = conductor.study.warm_trials(stage_named(conductor, "joint"))
    # What a trial was not given it had from the configuration.
    assert [(record.name, record.values) for record in told] == [
        (record.name, {"lr": record.values["lr"], "temperature": record.values.get("temperature", 0.1)})
        for record in found
    ]


def test_where_an_earlier_search_tried_every_value_none_is_tried_again(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"parameters": {"batch_size": BATCH}, "budget": {"trials": 4}, "confirm": None}
    first = search(tmp_path / "first", larger_is_better, **changes)
    plan = make_plan(tmp_path / "second", **changes)
    found = warm_start(first, plan)
    assert len(found) == 3
    conductor = Driver(open_conductor(plan, warm=found), larger_is_better).run()
    assert conductor.done
    assert [record.stage for record in conductor.records()] == ["defaults"]
    winner = conductor.winners[-1]
    assert winner is not None
    assert (winner.name, winner.values["batch_size"]) == (f"first:{first.ranked()[0].name}", 128)


def test_a_trial_that_is_told_to_two_stages_is_one_candidate(warm: Driver, tmp_path: Path) -> None:
    # The same search again, with refine at its end: the earlier winner fits that stage too.
    plan = make_plan(tmp_path, refine=True, budget={"trials": 9}, confirm={"top_k": 4, "seeds": 1})
    found = warm_start(warm.conductor, plan)
    # With the temperature stage's own standing winner, which the earlier search was told itself.
    first = next(r for r in found if r.values.keys() == {"lr", "temperature"})
    standing = replace(first, name="earlier:lr", values={"lr": first.values["lr"]}, curve=(0.9,) * EPOCHS)
    conductor = Driver(open_conductor(plan, warm=[standing, *found])).run()
    told = [record.name for stage in conductor.stages for record in conductor.study.warm_trials(stage)]
    assert max(Counter(told).values()) == 2
    assert max(Counter(record.name for record in conductor.ranked()).values()) == 1
    confirmed = Counter(record.of for record in conductor.records() if record.of)
    assert len(confirmed) == 5
    assert set(confirmed.values()) == {1}
