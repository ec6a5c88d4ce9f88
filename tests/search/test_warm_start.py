from pathlib import Path
from typing import Any

import pytest
from driver import DoesNotFit, Driver, learn, make_plan, open_conductor, search

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.record import COMPLETED, PRUNED, TrialRecord
from phenoscape_tune.search.warm_start import read_earlier

LR = {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1}}
TEMPERATURE = {"temperature": {"type": "uniform", "low": 0.05, "high": 0.5}}


def with_failures(config: TrainConfig, epoch: int) -> float:
    if config.temperature > 0.45:
        raise DoesNotFit("out of memory")
    return float("nan") if config.lr > 0.05 else learn(config, epoch)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    """A finished search, with trials of every kind."""
    return search(tmp_path_factory.mktemp("searches") / "earlier", with_failures, budget={"trials": 18})


def saved_as(plan: Plan, **changes: Any) -> dict[str, Any]:
    """Of `search.yaml`, what matters here."""
    return {
        "data": "fingerprint",
        "metric": plan.objective.name,
        "max_epochs": plan.rungs.max_epochs,
        "config": plan.base.to_mapping(),
        **changes,
    }


def read(earlier: Conductor, plan: Plan, **changes: Any) -> list[TrialRecord]:
    return read_earlier(earlier.plan.folder, saved_as(earlier.plan, **changes), plan, "fingerprint")


def refusal(earlier: Conductor, plan: Plan, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(earlier, plan, **changes)
    return str(caught.value)


def test_the_finished_trials_of_an_earlier_search_are_read_as_they_ended(earlier: Conductor, tmp_path: Path) -> None:
    statuses = {record.status for record in earlier.records()}
    assert {COMPLETED, PRUNED, "failed", "infeasible"} == statuses
    found = {record.name: record for record in read(earlier, make_plan(tmp_path))}
    searched = [r for r in earlier.records() if r.values and not r.of and r.status in (COMPLETED, PRUNED)]
    assert found.keys() == {f"earlier:{record.name}" for record in searched}
    for record in searched:
        told = found[f"earlier:{record.name}"]
        assert told.warm
        assert (told.values, told.status, told.curve) == (record.values, record.status, record.curve)


def test_its_journal_is_not_touched(earlier: Conductor, tmp_path: Path) -> None:
    journal = earlier.plan.folder / "study.journal"
    before = journal.read_bytes()
    read(earlier, make_plan(tmp_path))
    assert journal.read_bytes() == before


def test_trials_that_an_earlier_search_was_told_itself_are_not_passed_on(earlier: Conductor, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "second", parameters=LR, budget={"trials": 4}, confirm=None)
    second = Driver(open_conductor(plan, warm=read(earlier, plan))).run()
    assert second.study.warm_trials(plan.stages[1])
    found = read(second, make_plan(tmp_path, parameters=LR))
    assert {record.name for record in found} == {f"second:{r.name}" for r in second.records() if r.values}


# What may differ, and what may not


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": "another"}, "other images, classes or parts"),
        ({"metric": "reference_contrast"}, "objective: reference_contrast there, knn_accuracy here"),
        ({"max_epochs": 20}, "max_epochs: 20 there, 9 here"),
        ({"config": {"batch_size": 64}}, "batch_size: 64 there, 32 here"),
        ({"config": {"transforms": {"cj_strength": 0.2}}}, "transforms.cj_strength: 0.2 there, 0.5 here"),
        ({"config": {"backbone": "resnet18"}}, "backbone: resnet18 there, resnet50 here"),
    ],
)
def test_another_search_is_refused_with_the_difference(
    changes: dict[str, Any], told: str, earlier: Conductor, tmp_path: Path
) -> None:
    if "config" in changes:
        changes = {"config": build_config({"seed": 5, "max_epochs": 50, **changes["config"]}).to_mapping()}
    lines = refusal(earlier, make_plan(tmp_path), **changes).splitlines()
    assert lines[0] == f"--warm-start: {earlier.plan.folder} cannot be compared with this search:"
    assert lines[1:] == [f"  {told}", "leave out --warm-start"]


def test_all_differences_are_told_at_once(earlier: Conductor, tmp_path: Path) -> None:
    config = build_config({"seed": 5, "max_epochs": 50, "lr": 0.01, "input_size": 64}).to_mapping()
    message = refusal(earlier, make_plan(tmp_path), data="another", max_epochs=3, config=config)
    for told in ("other images", "max_epochs: 3 there", "lr: 0.01 there, 0.001 here", "input_size: 64 there"):
        assert told in message


def test_what_changes_no_objective_may_differ(earlier: Conductor, tmp_path: Path) -> None:
    other = {"seed": 9, "max_epochs": 60, "data_dir": "/elsewhere", "out_dir": "x", "num_workers": 1, "cache_dir": "/c"}
    assert read(earlier, make_plan(tmp_path), config=build_config(other).to_mapping())


# Which trials fit


def test_only_trials_within_the_new_ranges_are_read(earlier: Conductor, tmp_path: Path) -> None:
    narrow = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}
    found = read(earlier, make_plan(tmp_path, parameters={**narrow, **TEMPERATURE}))
    assert found
    assert len(found) < len(read(earlier, make_plan(tmp_path)))
    assert all(1e-4 <= record.values["lr"] <= 1e-2 for record in found)


def test_a_key_that_is_searched_no_more_must_have_the_configurations_value(earlier: Conductor, tmp_path: Path) -> None:
    found = read(earlier, make_plan(tmp_path, parameters=LR))
    assert found
    assert all(record.values.keys() == {"lr"} for record in found)


def test_where_no_trial_fits_both_spaces_are_told(earlier: Conductor, tmp_path: Path) -> None:
    plan = make_plan(tmp_path, parameters={"transforms.cj_strength": {"type": "uniform", "low": 0, "high": 1}})
    message = refusal(earlier, plan)
    assert f"none of the {len(read(earlier, make_plan(tmp_path)))} finished trials of {earlier.plan.folder}" in message
    assert "it searched lr, temperature, this one searches transforms.cj_strength; widen the ranges" in message


def test_a_search_without_a_finished_trial_is_refused(tmp_path: Path) -> None:
    first = Driver(open_conductor(make_plan(tmp_path / "first"))).run(3)
    assert "none of the 0 finished trials" in refusal(first, make_plan(tmp_path))


def test_a_folder_without_a_journal_is_named(earlier: Conductor, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    with pytest.raises(UserError, match=r"nowhere/study\.journal: is missing"):
        read_earlier(tmp_path / "nowhere", saved_as(plan), plan, "fingerprint")


def test_batch_sizes_are_read_where_the_learning_rate_is_not_searched(tmp_path: Path) -> None:
    parameters = {"batch_size": {"type": "choice", "values": [16, 32, 64]}}
    first = search(tmp_path / "first", parameters=parameters, budget={"trials": 3}, confirm=None)
    assert len(read(first, make_plan(tmp_path, parameters=parameters, budget={"trials": 3}))) == 2


def test_metrics_of_either_direction_can_be_told(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"metric_name": "reference_contrast", "parameters": LR, "budget": {"trials": 4}}
    first = search(tmp_path / "first", lambda config, epoch: 5 - learn(config, epoch), **changes)
    assert first.plan.objective is METRICS["reference_contrast"]
    assert read(first, make_plan(tmp_path, **changes))
