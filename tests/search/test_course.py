"""The stages of whole searches: what each varies, around what, and what it leaves to the next."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driver import DoesNotFit, Driver, learn, make_plan, open_conductor, search
from stages import BATCH, LR, TEMPERATURE, THREE, larger_is_better, stage_named, told_of, values_of

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.layers import get_key
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import REFINED_SHARE
from phenoscape_tune.search.record import FAILED, INFEASIBLE
from phenoscape_tune.search.report import write_best
from phenoscape_tune.search.verdict import decide
from phenoscape_tune.training.capacity import Capacity


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
    for trial in told_of(conductor, "batch_size"):
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
    told = [trial for trial in told_of(full, "refine") if "taken_over" in trial.user_attrs]
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


# All at once


def test_a_joint_search_is_told_the_defaults(tmp_path: Path) -> None:
    conductor = search(tmp_path, larger_is_better, parameters=THREE, order="joint", budget={"trials": 12}, confirm=None)
    assert [(stage.name, len(conductor.records(stage))) for stage in conductor.stages] == [
        ("defaults", 1),
        ("joint", 11),
    ]
    told = [trial.params for trial in told_of(conductor, "joint") if "taken_over" in trial.user_attrs]
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
