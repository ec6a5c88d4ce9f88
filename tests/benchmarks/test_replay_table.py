"""What is concluded from replayed searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from replay_ratios import GRID
from replay_table import anytime, compare, lost_by_key, mean_and_error, print_tables, summary


def line(moments: list[list[float]], probe: float, **more: Any) -> dict[str, Any]:
    return {"strategy": "joint", "budget": 8, "moments": moments, "probe": probe, "seconds": moments[-1][0], **more}


def test_the_mean_of_all_seeds_is_none_until_each_has_something_to_give() -> None:
    lines = [line([[20, 0.3]], 0.4), line([[40, 0.3]], 0.3)]
    curve = anytime(lines, best=0.5, unit=10.0)
    assert len(curve) == len(GRID)
    assert [value is None for value in curve] == (GRID < 4).tolist()
    assert curve[-1] == pytest.approx(0.15)


def test_means_have_their_standard_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == pytest.approx((2.0, 1 / 3**0.5))
    more = {"defaults": 0.35, "confirming": 10.0, "covered": True, "overstated": 0.01}
    lines = [
        line([[20, 0.3]], 0.4, clear=True, held=0.4, **more),
        line([[40, 0.3]], 0.44, clear=False, held=0.35, **more),
    ]
    row = summary(lines, best=0.5, unit=10.0)
    assert (row["regret"], row["cost"], row["clear_share"]) == (0.08, 3.0, 0.5)
    assert row["gain_over_defaults"] == pytest.approx(0.07)
    assert (row["held_regret"], row["confirming"]) == (0.125, 1.0)


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


def test_all_strategies_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    class Known:
        """A probe that is the same everywhere."""

        training_seconds = 10.0

        @staticmethod
        def best() -> float:
            return 0.5

        @staticmethod
        def probe(x: np.ndarray) -> np.ndarray:
            return np.full(len(x), 0.3)

    def search(strategy: str, budget: int, seed: int, cost: float, probe: float) -> dict[str, Any]:
        found = {"strategy": strategy, "budget": budget, "seed": seed, "seconds": cost, "moments": [[cost, probe]]}
        point = [0.5, 0.5, 0.0, 0.5, 0.5]
        if strategy in peers:
            return {**found, "probe": probe, "point": point}
        told = {"probe": probe, "held": probe - 0.01, "point": point, "clear": True, "covered": True}
        told |= {"gain": 0.02, "true_gain": 0.01, "seconds": 120.0}
        return {**found, "defaults": 0.3, "confirmed": {"whole": told, "top_k 1": {**told, "seconds": 60.0}}}

    peers = {
        "random": (256, 2000.0, 0.45),
        "TPE + ASHA": (256, 400.0, 0.45),
        "TPE + ASHA, Ray's defaults": (256, 300.0, 0.44),
    }
    searched = {"joint": (24, 200.0, 0.45), "joint, PASHA": (24, 180.0, 0.46), "staged": (24, 220.0, 0.44)}
    lines = [
        search(name, *rest[:1], seed, *rest[1:]) for name, rest in {**peers, **searched}.items() for seed in range(3)
    ]
    found = compare(lines, Known())  # type: ignore[arg-type]
    rows = {row["strategy"]: row for row in found["searches"]}
    ours = ["staged", "staged, top_k 1", "joint", "joint, top_k 1", "joint, PASHA"]
    assert list(rows) == [*ours, *peers]
    assert (rows["joint"]["cost"], rows["joint, top_k 1"]["cost"], rows["joint"]["confirming"]) == (20.0, 14.0, 12.0)
    assert rows["joint"]["overstated"][0] == 0.01
    assert rows["joint"]["of_stock"]["TPE + ASHA"]["ratio"] == pytest.approx(0.5, rel=0.07)
    assert rows["joint"]["of_stock"]["TPE + ASHA, Ray's defaults"]["ratio"] == 0.0  # they never get there
    assert rows["joint, PASHA"]["regret_minus_random"] == [-0.01, 0.0]
    assert found["as_good_as_random"]["joint"]["ratio"] == 0.1
    assert found["as_good_as_random"]["joint, top_k 1"]["ratio"] == 0.07
    assert found["as_good_as_random"]["staged"]["ratio"] is None
    pairs = {(pair["strategy"], pair["minus"]): pair for pair in found["pairs"]}
    assert set(pairs) == {
        ("joint, PASHA", "joint"), ("staged", "joint"),
        *((f"{name}, top_k 1", name) for name in ("staged", "joint")),
    }  # fmt: skip
    assert pairs["joint, PASHA", "joint"]["regret"] == [-0.01, 0.0]
    assert pairs["joint, PASHA", "joint"]["cost_share"] == [pytest.approx(np.log(0.9), abs=1e-4), 0.0]
    print_tables(found)
    assert "| staged | 24 | 22.0 (12.0) | 0.0600 ± 0.0000 | 0.0700 ± 0.0000 |" in capsys.readouterr().out
