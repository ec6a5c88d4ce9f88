"""What is concluded from replayed searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from replay_table import GRID, anytime, cheapest, cost_of_quality, lost_by_key, mean_and_error, summary


def line(moments: list[list[float]], probe: float, **more: Any) -> dict[str, Any]:
    return {"strategy": "joint", "budget": 8, "moments": moments, "probe": probe, "seconds": moments[-1][0], **more}


def test_regret_at_any_time_is_that_of_what_the_search_would_give() -> None:
    # Costs in whole trainings of 10 s: 2, 4 and 8.
    curve = anytime([line([[20, 0.3], [40, 0.4], [80, 0.35]], probe=0.45)], best=0.5, unit=10.0)
    at = dict(zip(GRID.round(3).tolist(), curve, strict=True))
    assert curve[0] is None  # nothing to give yet
    assert [value for cost, value in at.items() if 2 <= cost < 3.99] == pytest.approx([0.2] * 6)
    assert at[256.0] == pytest.approx(0.05)  # what the confirmation chose, not what led before
    assert len(curve) == len(GRID)


def test_a_quality_counts_from_where_it_is_kept() -> None:
    curve: list[float | None] = [None, 0.1, 0.3, *[0.2] * (len(GRID) - 4), 0.19]
    assert cost_of_quality(curve, 0.25) == pytest.approx(GRID[3], abs=0.01)
    assert cost_of_quality(curve, 0.19) == 256.0
    assert cost_of_quality(curve, 0.05) is None


def test_the_cheapest_budget_that_is_good_enough() -> None:
    rows = [
        {"strategy": "joint", "regret": 0.05, "cost": 9.0, "clear_share": 0.0},
        {"strategy": "joint", "regret": 0.03, "cost": 15.0, "clear_share": 0.0},
        {"strategy": "joint", "regret": 0.02, "cost": 30.0, "clear_share": 0.0},
        {"strategy": "staged", "regret": 0.06, "cost": 8.0, "clear_share": 0.0},
        {"strategy": "random", "regret": 0.01, "cost": 1.0},
    ]
    assert cheapest(rows, 0.03) == {"joint": 15.0, "staged": None}


def test_means_have_their_standard_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    lines = [line([[20, 0.3]], 0.4, clear=True, defaults=0.35), line([[40, 0.3]], 0.44, clear=False, defaults=0.35)]
    row = summary(lines, best=0.5, unit=10.0)
    assert (row["regret"], row["cost"], row["clear_share"]) == (0.08, 3.0, 0.5)
    assert row["gain_over_defaults"] == pytest.approx(0.07)


def test_the_loss_by_key_is_what_its_best_value_would_add() -> None:
    class Known:
        """A probe that depends on the learning rate alone, best at a share of a quarter."""

        @staticmethod
        def probe(x: np.ndarray) -> np.ndarray:
            return 0.5 - np.abs(x[:, 0] - 0.25)

    lines = [{"point": [0.75, 0.1, 0.0, 0.5, 0.5], "probe": 0.0}, {"point": [0.25, 0.9, 1.0, 0.5, 0.5], "probe": 0.5}]
    lost = lost_by_key(lines, Known())  # type: ignore[arg-type]
    assert lost["lr"] == pytest.approx(0.25)
    assert [lost[key] for key in lost if key != "lr"] == [0.0] * 4
