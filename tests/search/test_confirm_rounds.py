import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.search.confirm_rounds import count_repeats, count_slots, round_sizes, worst
from phenoscape_tune.search.record import COMPLETED, FAILED, TrialRecord

COUNTS = st.integers(1, 12)


def repeat(of: str, seed: int, value: float, status: str = COMPLETED) -> TrialRecord:
    return TrialRecord(f"confirm-{of}-{seed}", "confirm", 0, {}, status, (value,), of=of, seed=seed)


def test_one_candidate_fewer_with_each_seed() -> None:
    assert round_sizes(3, 3, drop=False) == [3, 3, 3]
    assert round_sizes(3, 3, drop=True) == [3, 2, 1]
    assert round_sizes(2, 4, drop=True) == [2, 1, 1, 1]
    assert (count_repeats(3, 3, drop=False), count_repeats(3, 3, drop=True)) == (12, 9)
    assert count_repeats(3, 3, drop=True, baseline=False) == 6


@given(COUNTS, COUNTS)
def test_dropping_never_costs_more_and_keeps_each_seed(candidates: int, repeats: int) -> None:
    kept, dropped = (round_sizes(candidates, repeats, drop) for drop in (False, True))
    assert len(kept) == len(dropped) == repeats
    assert all(1 <= fewer <= all_ for fewer, all_ in zip(dropped, kept, strict=True))
    assert dropped[0] == candidates
    assert count_repeats(candidates, repeats, True) <= count_repeats(candidates, repeats, False)


@given(COUNTS, COUNTS, st.booleans(), COUNTS)
def test_slots_hold_all_repeats_and_idle_for_less_than_a_turn_at_each_end(
    candidates: int, repeats: int, drop: bool, concurrent: int
) -> None:
    slots, runs = count_slots(candidates, repeats, drop, concurrent), count_repeats(candidates, repeats, drop)
    ends = min(candidates, repeats) if drop else 1
    assert runs <= slots < runs + ends * concurrent
    assert slots % concurrent == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_worst_in_the_mean_of_its_seeds_goes(sign: int) -> None:
    repeats = [repeat("a", 1, sign * 0.9), repeat("a", 2, sign * 0.1), repeat("b", 1, sign * 0.5)]
    repeats += [repeat("b", 2, sign * 0.6), repeat("base", 1, 0.0), repeat("base", 2, 0.0)]
    assert worst(["b", "a"], repeats, sign) == "a"


def test_a_candidate_that_fails_with_a_seed_goes_before_one_that_is_worse() -> None:
    repeats = [repeat("a", 1, 0.9), repeat("a", 2, 0.9, FAILED), repeat("b", 1, 0.2), repeat("b", 2, 0.2)]
    assert worst(["a", "b"], repeats, 1) == "a"
    assert worst(["a", "b"], [repeat("a", 1, math.nan, FAILED), repeat("b", 1, 0.2)], 1) == "a"


@given(st.permutations(["a", "b", "c"]))
def test_of_equals_the_last_in_the_search_goes(names: Sequence[str]) -> None:
    assert worst(names, [repeat(name, 1, 0.5) for name in "abc"], 1) == names[-1]
