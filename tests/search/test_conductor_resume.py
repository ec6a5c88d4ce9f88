"""A search that is stopped anywhere, and goes on."""

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from driver import (
    DROPPING,
    EPOCHS,
    DoesNotFit,
    Driver,
    by_name,
    learn,
    make_plan,
    open_conductor,
    stopped_search,
    unbroken_search,
    unsteady,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import stops_within

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED, FAILED, INFEASIBLE, PRUNED, RUNNING
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.sampler import derive_seed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, int]:
    return unbroken_search(tmp_path_factory.mktemp("unbroken"))


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_search_stopped_anywhere_ends_as_an_unbroken_one(
    unbroken: tuple[Conductor, int], data: st.DataObject
) -> None:
    expected, reports = unbroken
    stops = data.draw(stops_within(reports))
    with tempfile.TemporaryDirectory() as folder:
        driver = stopped_search(Path(folder), stops)
        assert driver.conductor.records() == expected.records()
        assert driver.conductor.winners == expected.winners
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
    """A search in which everything happens."""
    return unbroken_search(tmp_path_factory.mktemp("eventful"), eventful, **FULL)


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
    stops = data.draw(stops_within(reports, most=2))
    with tempfile.TemporaryDirectory() as folder:
        conductor = stopped_search(Path(folder), stops, eventful, **FULL).conductor
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


def test_settling_a_finished_search_needs_no_trial(staged: Driver) -> None:
    first = staged.conductor
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


# A confirmation that drops candidates


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> tuple[Conductor, int]:
    return unbroken_search(tmp_path_factory.mktemp("drop"), unsteady, **DROPPING)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_dropping_confirmation_stopped_anywhere_ends_as_an_unbroken_one(
    dropping: tuple[Conductor, int], data: st.DataObject
) -> None:
    expected, reports = dropping
    before = reports - 9 * EPOCHS  # of the search; of the confirmation each trial runs to its end
    stops = data.draw(stops_within(reports, first=before))
    with tempfile.TemporaryDirectory() as folder:
        conductor = stopped_search(Path(folder), stops, unsteady, **DROPPING).conductor
        assert conductor.records() == expected.records()
        assert conductor.rounds == expected.rounds
