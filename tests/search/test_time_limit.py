"""Searches with a budget of time, on a clock that only a driver moves."""

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from driver import EPOCHS, Clock, Driver, learn, make_plan, open_conductor, search
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.display import describe_outcome
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.record import COMPLETED, PRUNED
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.study import read_trials
from phenoscape_tune.search.verdict import decide

EPOCH = 100.0  # seconds
TRIAL = EPOCHS * EPOCH / 3600  # hours
FOUR: dict[str, Any] = {
    "lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1},
    "batch_size": {"type": "choice", "values": [16, 32, 64, 128, 256]},
    "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
    "transforms.cj_strength": {"type": "uniform", "low": 0, "high": 1},
}


def evenly(config: TrainConfig) -> float:
    return EPOCH


def unevenly(config: TrainConfig) -> float:
    """Seconds of an epoch that differ from trial to trial, twofold at most."""
    return EPOCH * (1 + config.temperature * 997 % 1)


def timed_plan(folder: Path, trials: int = 20, **changes: Any) -> Plan:
    limits = {key: changes.pop(key) for key in ("hours", "gpu_hours") if key in changes}
    return make_plan(folder, budget={"trials": trials, **limits}, **changes)


def drive(
    plan: Plan,
    concurrent: int = 1,
    gpus: float = 0.0,
    clock: Clock | None = None,
    before: float = 0.0,
    seconds: Callable[[TrainConfig], float] = evenly,
) -> Driver:
    """A driver whose conductor spends the time of its clock."""
    clock = clock or Clock()
    spending = Spending(plan.space.budget, concurrent, gpus, before, clock)
    return Driver(open_conductor(plan, spending), learn, concurrent, clock, seconds)


def timed(folder: Path, concurrent: int = 1, gpus: float = 0.0, **changes: Any) -> Driver:
    """A search that ran to its end."""
    seconds = changes.pop("seconds", evenly)
    driver = drive(timed_plan(folder, **changes), concurrent, gpus, seconds=seconds)
    driver.run()
    assert driver.conductor.done
    return driver


def confirmations(conductor: Conductor) -> Counter[str]:
    return Counter(record.status for record in conductor.records() if record.of)


# How long it takes


@settings(max_examples=9, deadline=None)
@given(
    st.floats(0.1, 5),
    st.integers(1, 5),
    st.sampled_from([evenly, unevenly]),
    st.sampled_from([(2, 2), (1, 1), (4, 1), (3, 3)]),
)
def test_a_search_ends_within_its_hours(
    hours: float, concurrent: int, seconds: Callable[[TrainConfig], float], confirm: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shape = {"top_k": confirm[0], "seeds": confirm[1]}
        driver = timed(Path(folder), concurrent, hours=hours, seconds=seconds, confirm=shape)
        # A trial hears of the end when it reports an epoch.
        assert driver.clock.now <= hours * 3600 + 2 * EPOCH
        assert {record.status for record in driver.conductor.records()} <= {COMPLETED, PRUNED}


@settings(max_examples=6, deadline=None)
@given(st.floats(0.1, 5), st.integers(1, 4), st.sampled_from([0.5, 1.0]))
def test_a_search_ends_within_its_gpu_hours(gpu_hours: float, concurrent: int, gpus: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        driver = timed(Path(folder), concurrent, gpus, gpu_hours=gpu_hours)
        records = driver.conductor.records()
        assert {record.gpus for record in records} == {gpus}
        spent = sum(record.seconds * record.gpus for record in records)
        assert spent <= gpu_hours * 3600 + concurrent * gpus * EPOCH


@pytest.mark.parametrize(("hours", "gpu_hours"), [(3, 100), (100, 3)])
def test_whichever_budget_ends_first_counts(hours: float, gpu_hours: float, tmp_path: Path) -> None:
    driver = timed(tmp_path, 1, 1.0, hours=hours, gpu_hours=gpu_hours)
    assert 2 < driver.clock.now / 3600 <= 3


@pytest.mark.parametrize("limit", [{}, {"hours": 1000}, {"gpu_hours": 1000}])
def test_enough_time_changes_nothing(limit: dict[str, float], tmp_path: Path) -> None:
    expected = search(tmp_path / "untimed", concurrent=2, budget={"trials": 20})
    conductor = timed(tmp_path / "timed", 2, **limit).conductor
    assert [(r.name, r.values, r.status, r.curve) for r in conductor.records()] == [
        (r.name, r.values, r.status, r.curve) for r in expected.records()
    ]


def test_a_budget_of_gpu_hours_means_nothing_without_a_gpu(tmp_path: Path) -> None:
    assert len(timed(tmp_path, gpu_hours=0.001).conductor.records()) == 20 + 6


# What the time is spent on


@pytest.mark.parametrize("concurrent", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("rounds", [8, 11, 14])
def test_the_winner_is_confirmed_within_the_budget(rounds: int, concurrent: int, tmp_path: Path) -> None:
    hours = rounds * TRIAL
    driver = timed(tmp_path, concurrent, hours=hours)
    conductor = driver.conductor
    outcome = decide(conductor)
    assert outcome is not None
    assert outcome.candidate is not None
    confirmed = [record for record in conductor.records() if record.of]
    assert driver.clock.now <= hours * 3600
    # Whole: each candidate and the defaults with each seed, to the end.
    assert {record.status for record in confirmed} == {COMPLETED}
    counted = Counter(record.of for record in confirmed)
    assert conductor.baseline is not None
    assert conductor.baseline.name in counted
    assert outcome.candidate.record.name in counted
    assert len(set(counted.values())) == 1


@pytest.mark.parametrize("concurrent", [1, 2, 4])
def test_the_time_that_was_set_aside_holds_the_whole_confirmation(concurrent: int, tmp_path: Path) -> None:
    driver = timed(tmp_path, concurrent, hours=16 * TRIAL / concurrent**0.5, trials=60)
    conductor = driver.conductor
    assert len([r for r in conductor.records() if not r.of]) < 60  # the time has ended the search
    assert confirmations(conductor) == {COMPLETED: 6}


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("concurrent", [2, 3, 4])
def test_no_confirmation_is_cut_off_where_the_last_ones_leave_slots_idle(
    concurrent: int, seeds: int, tmp_path: Path
) -> None:
    ended: Counter[str] = Counter()
    for share in (0.5, 0.7, 0.9):
        confirm = {"top_k": 4, "seeds": seeds}
        hours = share * 30 * TRIAL / concurrent
        ended += confirmations(
            timed(tmp_path / f"{share}", concurrent, hours=hours, trials=30, confirm=confirm).conductor
        )
    assert ended.keys() == {COMPLETED}


def test_a_confirmation_that_cannot_end_in_time_is_not_begun(tmp_path: Path) -> None:
    # The confirmations take half as long again as what they repeat, so that the second four of them do not fit.
    def slower(config: TrainConfig) -> float:
        return EPOCH if config.seed == 5 else 1.5 * EPOCH

    conductor = timed(tmp_path, 4, hours=8 * TRIAL, trials=60, seconds=slower).conductor
    assert confirmations(conductor) == {COMPLETED: 4}
    assert len(conductor.records(conductor.stages[-1])) < conductor.plan.confirmations


def test_where_time_is_short_the_confirmation_shrinks_and_keeps_its_seeds_longest(tmp_path: Path) -> None:
    shapes = []
    for rounds in (6, 8, 12, 16, 20, 40):
        confirm = {"top_k": 3, "seeds": 3}
        conductor = timed(tmp_path / f"{rounds}", hours=rounds * TRIAL, confirm=confirm).conductor
        counted = Counter(record.of for record in conductor.records() if record.of)
        shapes.append((len(counted), max(counted.values(), default=0)))
    assert shapes == sorted(shapes)
    assert shapes[-1] == (4, 3)
    assert (2, 1) in shapes or (2, 2) in shapes


@pytest.mark.parametrize(("share", "concurrent"), [(0.4, 1), (0.7, 1), (0.55, 2), (0.85, 4)])
def test_every_stage_has_its_share_of_the_time(share: float, concurrent: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"trials": 48, "parameters": FOUR, "rungs": Rungs(1, 3, EPOCHS)}
    whole = timed(tmp_path / "whole", concurrent, **changes).clock.now / 3600
    driver = timed(tmp_path / "timed", concurrent, hours=share * whole, **changes)
    conductor = driver.conductor
    stages = {s.name: len(conductor.records(s)) for s in conductor.stages if s.trials}
    assert sum(stages.values()) - stages["confirm"] < 48
    assert all(stages.values()), stages


@pytest.mark.parametrize("stop", [EPOCHS + 1, EPOCHS + 8, 60])
def test_time_goes_on_where_it_was_after_a_stop(stop: int, tmp_path: Path) -> None:
    plan = timed_plan(tmp_path, hours=3)
    first = drive(plan, 2)
    first.run(stop)
    stopped = first.clock.now
    assert max(record.elapsed for record in read_trials(plan.folder / "study.journal")) == stopped > 0
    second = resumed(plan, first.clock, 2)
    assert second.conductor.spending is not None
    assert second.conductor.spending.elapsed == stopped
    second.run()
    assert second.conductor.done
    # Of the epochs that were under way no report tells.
    assert second.clock.now <= 3 * 3600 + EPOCH
    assert confirmations(second.conductor).keys() == {COMPLETED}


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(1, 3))
def test_a_timed_search_stopped_anywhere_ends_in_time_and_repeats_nothing(stops: list[int], concurrent: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = timed_plan(Path(folder), hours=2.5)
        clock = Clock()
        ends: Counter[str] = Counter()
        for stop in [*stops, None]:
            driver = resumed(plan, clock, concurrent)
            driver.run(stop)
            ends += driver.to_the_end
        assert driver.conductor.done
        assert clock.now <= 2.5 * 3600 + 2 * EPOCH * (1 + len(stops))
        assert max(ends.values()) == 1


# As the command resumes: what has ended is looked at before the time counts again


def resumed(plan: Plan, clock: Clock, concurrent: int = 1) -> Driver:
    open_conductor(plan).settle()
    before = max((record.elapsed for record in read_trials(plan.folder / "study.journal")), default=0.0)
    return drive(plan, concurrent, clock=clock, before=before)


def test_a_stage_has_no_more_than_its_share_after_a_resume(tmp_path: Path) -> None:
    plan = timed_plan(tmp_path, trials=41, hours=4, confirm=None)
    first = drive(plan)
    first.run(EPOCHS + 1)  # the first stage has begun
    second = resumed(plan, first.clock)
    second.run()
    used = [sum(record.seconds for record in second.conductor.records(stage)) for stage in plan.stages]
    assert second.conductor.done
    # Half of the time for each, and one trial more at most.
    assert used[1] <= (4 * 3600 - used[0]) / 2 + TRIAL * 3600
    assert used[2] > 0.5 * used[1]


def test_the_confirmation_is_as_long_as_the_time_allows_after_a_resume(tmp_path: Path) -> None:
    plan = timed_plan(
        tmp_path, trials=3, hours=8 * TRIAL, confirm={"top_k": 2, "seeds": 3}, rungs=Rungs(EPOCHS, 3, EPOCHS)
    )
    first = drive(plan)
    assert first.run(3 * EPOCHS).stages == plan.stages
    # All has ended that was searched, and the confirmation of nine trials was not begun.
    assert [record.status for record in first.conductor.records()] == [COMPLETED] * 3
    second = resumed(plan, first.clock)
    second.run()
    assert second.conductor.done
    assert second.clock.now <= 8 * TRIAL * 3600
    assert confirmations(second.conductor) == {COMPLETED: 4}


@pytest.mark.parametrize("hours", [0.05, 0.3, 1, 2, 3])
def test_a_finished_timed_search_is_shown_as_it_ended(hours: float, tmp_path: Path) -> None:
    first = timed(tmp_path, 2, hours=hours).conductor
    journal = tmp_path / "study.journal"
    before = journal.read_bytes()
    again = open_conductor(first.plan)
    assert again.settle()
    assert again.records() == first.records()
    assert again.winners == first.winners
    assert [stage.name for stage in again.stages] == [stage.name for stage in first.stages]
    assert journal.read_bytes() == before


# Too little


def test_a_budget_that_ends_in_the_baseline_ends_the_search(tmp_path: Path) -> None:
    driver = timed(tmp_path, 2, hours=4.5 * EPOCH / 3600)
    (record,) = driver.conductor.records()
    assert record.status == PRUNED
    assert record.reason == f"the budget of time ended at epoch {len(record.curve)}"
    assert 3 <= len(record.curve) <= 5
    assert driver.conductor.winners == [None] * 3
    assert decide(driver.conductor) is None


def test_an_end_of_the_time_is_not_told_as_a_failure(tmp_path: Path) -> None:
    conductor = timed(tmp_path, hours=2.5 * EPOCH / 3600).conductor
    (line,) = describe_outcome(conductor, decide(conductor), None)
    assert "budget of time" in line
    assert "failed" not in line


def test_the_baseline_is_not_stopped_for_the_confirmations_sake(tmp_path: Path) -> None:
    conductor = timed(tmp_path, hours=1.5 * TRIAL).conductor
    assert conductor.baseline is not None
    assert conductor.baseline.status == COMPLETED


@pytest.mark.parametrize("rounds", [4, 6])
def test_a_short_budget_still_searches(rounds: int, tmp_path: Path) -> None:
    # The whole confirmation alone would take longer.
    conductor = timed(tmp_path, hours=rounds * TRIAL).conductor
    searched = [record for record in conductor.records() if record.values and not record.of]
    assert searched
    outcome = decide(conductor)
    assert outcome is not None
    assert outcome.candidate is not None


def test_where_no_confirmation_fits_the_search_decides(tmp_path: Path) -> None:
    conductor = timed(tmp_path, hours=3.2 * TRIAL).conductor
    assert conductor.done
    assert confirmations(conductor) == {}
    outcome = decide(conductor)
    assert outcome is not None
    assert outcome.gain is None


def test_a_trial_that_the_time_ended_is_pruned_and_no_winner(tmp_path: Path) -> None:
    conductor = timed(tmp_path, 3, hours=1.5 * TRIAL, rungs=Rungs(1, 2, EPOCHS), confirm=None).conductor
    cut = [record for record in conductor.records() if "the budget of time ended" in record.reason]
    assert cut
    assert all(record.status == PRUNED for record in cut)
    assert not {record.name for record in cut} & {record.name for record in conductor.ranked()}


def test_a_finished_search_that_passed_over_a_stage_is_known_to_be_finished(tmp_path: Path) -> None:
    """The batch size stayed, so the learning rate was not looked at again: that stage is not in the journal."""
    parameters = {key: FOUR[key] for key in ("lr", "batch_size")}
    plan = make_plan(tmp_path, parameters=parameters, budget={"trials": 12, "hours": 99})
    clock = Clock()
    conductor = open_conductor(plan, Spending(plan.space.budget, 1, 0.0, clock=clock))
    stays = plan.base.batch_size
    Driver(conductor, lambda config, epoch: learn(config, epoch) - (config.batch_size != stays), 1, clock).run()
    assert [stage.name for stage in conductor.stages if not stage.trials] == ["lr_recheck"]
    again = open_conductor(plan)
    assert again.settle()
    assert again.records() == conductor.records()
