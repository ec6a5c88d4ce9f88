import math
from collections.abc import Sequence
from typing import Any

import pytest
from driver import Clock
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.search.confirm_rounds import count_slots
from phenoscape_tune.search.record import COMPLETED, TrialRecord
from phenoscape_tune.search.space import Budget
from phenoscape_tune.search.spending import Spending, affordable, epoch_seconds

COUNTS = st.integers(1, 12)


def trial(seconds: float, epochs: int) -> TrialRecord:
    return TrialRecord("lr-00-abcde", "lr", 0, {}, COMPLETED, (0.5,) * epochs, seconds=seconds)


def spending(clock: Clock, concurrent: int = 1, gpus: float = 0.0, before: float = 0.0, **budget: Any) -> Spending:
    return Spending(Budget.model_validate(budget), concurrent, gpus, before, clock)


# What a confirmation may cost


@given(COUNTS, COUNTS, st.integers(0, 200))
def test_the_confirmation_never_costs_more_than_there_is(top_k: int, repeats: int, trials: int) -> None:
    k, seeds = affordable(top_k, repeats, trials)
    assert 0 <= k <= top_k
    assert 0 <= seeds <= repeats
    assert (k == 0) == (seeds == 0)
    assert k == 0 or (k + 1) * seeds <= trials
    # Not even the winner and the defaults once.
    assert (k == 0) == (trials < 2)


@given(COUNTS, COUNTS, st.integers(0, 200))
def test_more_time_never_confirms_less(top_k: int, repeats: int, trials: int) -> None:
    (k, seeds), (more_k, more_seeds) = affordable(top_k, repeats, trials), affordable(top_k, repeats, trials + 1)
    assert more_k >= k
    assert more_seeds >= seeds


@given(COUNTS, COUNTS, st.integers(2, 200))
def test_candidates_go_before_fresh_seeds(top_k: int, repeats: int, trials: int) -> None:
    k, seeds = affordable(top_k, repeats, trials)
    if seeds < repeats:
        assert k == 1
        assert 2 * (seeds + 1) > trials
    elif k < top_k:
        assert (k + 2) * repeats > trials


@given(COUNTS, COUNTS, st.integers(0, 200), COUNTS)
def test_a_confirmation_that_drops_candidates_affords_no_less(
    top_k: int, repeats: int, rounds: int, concurrent: int
) -> None:
    k, seeds = affordable(top_k, repeats, rounds * concurrent, True, concurrent)
    assert k == 0 or count_slots(k, seeds, True, concurrent) <= rounds * concurrent
    whole_k, whole_seeds = affordable(top_k, repeats, rounds)
    assert (k, seeds) == (0, 0) or seeds >= 1
    if concurrent == 1:  # side by side the end of each seed may leave slots idle
        assert k >= whole_k and seeds >= whole_seeds


def test_what_is_asked_for_is_kept_where_it_fits() -> None:
    assert affordable(3, 3, 12) == (3, 3)
    assert affordable(3, 3, 11) == (2, 3)
    assert affordable(3, 3, 5) == (1, 2)
    assert affordable(0, 3, 100) == (0, 3)
    # Nine trials; four side by side, they take three turns as the twelve do.
    assert affordable(3, 3, 9, drop=True) == (3, 3)
    assert affordable(3, 3, 8, drop=True) == (2, 3)
    assert affordable(3, 3, 12, drop=True, concurrent=4) == (3, 3)
    # Two candidates: three trials, then four with the other two seeds, which need not wait for each other.
    assert affordable(3, 3, 8, drop=True, concurrent=4) == (2, 3)
    assert affordable(3, 3, 8, concurrent=4) == (1, 3)


# Time


def test_time_counts_on_after_a_resume() -> None:
    clock = Clock()
    clock.now = 500.0
    spent = spending(clock, before=100.0, hours=1)
    assert spent.elapsed == 100.0
    clock.now += 50.0
    assert spent.elapsed == 150.0
    assert spent.left([]) == 3600 - 150


def test_wall_time_is_that_of_all_trials_side_by_side() -> None:
    clock = Clock()
    spent = spending(clock, concurrent=4, hours=0.5)
    clock.now = 600.0
    assert spent.left([trial(2000.0, 9)]) == 4 * 1200


def test_gpu_hours_are_shared_by_the_trials_on_a_gpu() -> None:
    # Two trials on a GPU: each of their seconds costs half a GPU second.
    spent = spending(Clock(), concurrent=2, gpus=0.5, gpu_hours=1)
    assert spent.left([]) == 7200
    assert spent.left([trial(3000.0, 9), trial(1000.0, 9)]) == 3200


def test_of_two_budgets_the_one_that_ends_first_counts() -> None:
    clock = Clock()
    spent = spending(clock, concurrent=2, gpus=1.0, hours=1, gpu_hours=1)
    assert spent.left([]) == 3600
    clock.now = 3000.0
    assert spent.left([trial(1000.0, 9)]) == 1200


@pytest.mark.parametrize(
    ("budget", "gpus", "limited"),
    [({}, 1.0, False), ({"hours": 1}, 0.0, True), ({"gpu_hours": 1}, 0.5, True), ({"gpu_hours": 1}, 0.0, False)],
)
def test_without_a_limit_time_is_endless(budget: dict[str, Any], gpus: float, limited: bool) -> None:
    spent = spending(Clock(), gpus=gpus, **budget)
    assert spent.limited == limited
    assert (spent.left([trial(1e9, 1)]) == math.inf) == (not limited)


# What an epoch costs


def test_an_epoch_costs_what_the_slower_half_of_the_trials_take() -> None:
    assert epoch_seconds([]) == 0.0
    assert epoch_seconds([trial(0.0, 0)]) == 0.0
    assert epoch_seconds([trial(30.0, 3)]) == 10.0
    assert epoch_seconds([trial(30.0, 3), trial(80.0, 2)]) == 40.0
    assert epoch_seconds([trial(3.0, 3), trial(4.0, 2), trial(30.0, 1), trial(0.0, 0), trial(50.0, 1)]) == 40.0


@given(st.lists(st.tuples(st.floats(0.1, 100), st.integers(1, 30)), min_size=1))
def test_an_epoch_is_never_told_cheaper_than_the_middle_one(trials: Sequence[tuple[float, int]]) -> None:
    each = sorted(seconds for seconds, _ in trials)
    told = epoch_seconds([trial(seconds * epochs, epochs) for seconds, epochs in trials])
    assert each[len(each) // 2] * (1 - 1e-9) <= told <= each[-1] * (1 + 1e-9)
