"""Searches that are told the trials of an earlier one."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from driver import EPOCHS, Driver, learn, make_plan, open_conductor, search
from stages import BATCH, LR, larger_is_better, stage_named, told_of, values_of

from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED, PRUNED, TrialRecord
from phenoscape_tune.search.verdict import decide
from phenoscape_tune.search.warm_start import read_earlier


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
    stored = [trial for trial in told_of(conductor, "lr") if trial.user_attrs.get("warm")]
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
