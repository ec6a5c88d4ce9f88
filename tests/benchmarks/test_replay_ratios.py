"""Costs of equal quality as ratios."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from replay_ratios import (
    GRID,
    by_seed,
    cost_of_quality,
    difference,
    ratio_of_anytime_to_whole,
    ratio_to_anytime,
    ratio_to_whole,
    regrets_at,
)


def line(seed: int, moments: list[list[float]], probe: float) -> dict[str, Any]:
    return {"seed": seed, "moments": moments, "probe": probe, "seconds": moments[-1][0]}


def test_regret_at_any_time_is_that_of_what_the_search_would_give() -> None:
    # Costs in whole trainings of 10 s: 2, 4 and 8.
    (curve,) = regrets_at([line(0, [[20, 0.3], [40, 0.4], [80, 0.35]], probe=0.45)], best=0.5, unit=10.0)
    assert np.isnan(curve[GRID < 2]).all()  # nothing to give yet
    assert curve[(GRID >= 2) & (GRID < 4)] == pytest.approx(0.2)
    assert curve[(GRID >= 4) & (GRID < 8)] == pytest.approx(0.1)
    assert curve[GRID >= 8] == pytest.approx(0.05)  # what the confirmation chose, not what led before


def test_a_quality_counts_from_where_it_is_kept() -> None:
    curve = np.array([np.nan, 0.1, 0.3, *[0.2] * (len(GRID) - 4), 0.19])
    assert cost_of_quality(curve, 0.25) == pytest.approx(GRID[3])
    assert cost_of_quality(curve, 0.19) == pytest.approx(400)
    assert cost_of_quality(curve, 0.05) == math.inf
    assert cost_of_quality(np.full(len(GRID), 0.1), 0.1) == GRID[0]


def test_lines_are_paired_by_their_seed() -> None:
    ours = [line(seed, [[10.0 * seed, 0.3]], 0.3) for seed in (2, 1, 0)]
    others = [line(seed, [[20.0 * seed, 0.3]], 0.3) for seed in (1, 2, 3)]
    one, other = by_seed(ours, others)
    assert [row["seed"] for row in one] == [row["seed"] for row in other] == [1, 2]
    mean, error = difference(ours, others, lambda row: row["seconds"])
    assert (mean, error) == pytest.approx((-15.0, 5.0))


def test_our_cost_is_told_as_a_share_of_what_others_pay_for_the_same() -> None:
    rng = np.random.default_rng(0)
    ours = [line(seed, [[200.0, 0.4]], 0.40 + 0.01 * rng.standard_normal()) for seed in range(20)]
    slow = [line(seed, [[100.0, 0.3], [1000.0, 0.4], [2000.0, 0.45]], 0.45) for seed in range(20)]
    found = ratio_to_anytime(ours, slow, best=0.5, unit=10.0)
    # 20 trainings; they have 0.40 from 100 on, and what is more from 200 on: which of the two hangs on the seeds.
    assert found["low"] == pytest.approx(0.1, rel=0.05) and found["high"] == pytest.approx(0.2, rel=0.05)
    assert found["ratio"] in (found["low"], found["high"])
    never = ratio_to_anytime(ours, [line(seed, [[100.0, 0.3]], 0.3) for seed in range(20)], best=0.5, unit=10.0)
    assert (never["ratio"], never["high"], never["finite"]) == (0.0, 0.0, 1.0)


def test_the_cheapest_budget_that_is_good_enough_counts() -> None:
    budgets = {
        8: [line(seed, [[90.0, 0.4]], 0.45) for seed in range(5)],
        16: [line(seed, [[150.0, 0.4]], 0.47) for seed in range(5)],
        24: [line(seed, [[300.0, 0.4]], 0.48) for seed in range(5)],
    }
    whole = [line(seed, [[1500.0, 0.47]], 0.47) for seed in range(5)]
    assert ratio_to_whole(budgets, whole, best=0.5) == {"ratio": 0.1, "low": 0.1, "high": 0.1, "finite": 1.0}
    better = [line(seed, [[1500.0, 0.49]], 0.49) for seed in range(5)]
    assert ratio_to_whole(budgets, better, best=0.5) == {"ratio": None, "low": None, "high": None, "finite": 0.0}


def test_a_quality_that_some_seeds_reach_has_an_open_interval() -> None:
    ours = [line(seed, [[100.0, 0.4]], 0.45 + 0.02 * (seed % 2)) for seed in range(10)]
    whole = [line(seed, [[1000.0, 0.46]], 0.46) for seed in range(10)]
    found = ratio_to_whole({8: ours}, whole, best=0.5)
    assert found["low"] == 0.1 and found["high"] is None
    assert 0.4 < found["finite"] < 0.9


def test_a_search_that_can_be_ended_has_the_quality_when_it_keeps_it() -> None:
    stock = [line(seed, [[50.0, 0.4], [200.0, 0.47]], 0.47) for seed in range(4)]
    whole = [line(seed, [[2000.0, 0.47]], 0.47) for seed in range(4)]
    found = ratio_of_anytime_to_whole(stock, whole, best=0.5, unit=10.0)
    assert found["ratio"] == pytest.approx(0.1, rel=0.07)  # of the grid
    assert found["ratio"] == found["low"] == found["high"]
