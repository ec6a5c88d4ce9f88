"""How much cheaper: costs of equal mean regret as ratios, with intervals over the seeds of the searches.

Bootstrap: searches are drawn by their seed, the same seeds for both sides of a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

GRID = np.geomspace(1, 400, 97)  # costs of the anytime curves, in whole trainings
DRAWS = 1000
Lines = Sequence[dict[str, Any]]


def regrets_at(lines: Lines, best: float, unit: float) -> np.ndarray:
    """Regret of each search at each cost of the grid, (S, G); NaN where it has nothing to give yet.

    A search that is over keeps what it gave.
    """
    curves = []
    for line in lines:
        costs = np.array([cost for cost, _ in line["moments"]]) / unit
        given = np.array([probe for _, probe in line["moments"]])
        # What the confirmation chose is known when it is over.
        given[-1] = line["probe"]
        place = np.searchsorted(costs, GRID, side="right") - 1
        curves.append(np.where(place >= 0, best - given[place], np.nan))
    return np.array(curves)


def cost_of_quality(curve: np.ndarray, regret: float) -> float:
    """The cost on the grid from which a mean anytime curve, (G,), stays at or below a regret; infinite where it does
    not."""
    above = np.flatnonzero(~(curve <= regret))  # NaN is above
    first = above[-1] + 1 if len(above) else 0
    return float(GRID[first]) if first < len(GRID) else math.inf


def by_seed(*groups: Lines) -> list[list[dict[str, Any]]]:
    """The lines of each group whose seeds all groups have, in the order of the seeds."""
    common = sorted(set.intersection(*({line["seed"] for line in lines} for lines in groups)))
    return [[{line["seed"]: line for line in lines}[seed] for seed in common] for lines in groups]


def difference(ours: Lines, others: Lines, of: Callable[[dict[str, Any]], float]) -> tuple[float, float]:
    """Mean and standard error of `of` ours minus theirs, paired by seed."""
    one, other = by_seed(ours, others)
    values = np.array([of(a) - of(b) for a, b in zip(one, other, strict=True)])
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan


def _interval(ratio: Callable[[np.ndarray], float], seeds: int) -> dict[str, Any]:
    """The ratio of all seeds and its 95 % interval; `finite` is the share of the draws in which there is one."""
    rng = np.random.default_rng(0)
    drawn = np.array([ratio(rng.integers(seeds, size=seeds)) for _ in range(DRAWS)])
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    told = {"ratio": ratio(np.arange(seeds)), "low": float(low), "high": float(high)}
    rounded = {key: round(value, 4) if math.isfinite(value) else None for key, value in told.items()}
    return {**rounded, "finite": round(float(np.isfinite(drawn).mean()), 3)}


def ratio_to_anytime(ours: Lines, others: Lines, best: float, unit: float) -> dict[str, Any]:
    """Our cost over what others pay for the same mean regret: 0 where they never get there."""
    own, other = by_seed(ours, others)
    costs = np.array([line["seconds"] for line in own]) / unit
    regrets = best - np.array([line["probe"] for line in own])
    curves = regrets_at(other, best, unit)
    return _interval(lambda seeds: costs[seeds].mean() / cost_of_quality(curves[seeds].mean(0), regrets[seeds].mean()),
                     len(own))  # fmt: skip


def ratio_to_whole(ours: Mapping[int, Lines], others: Lines, best: float) -> dict[str, Any]:
    """The cost of our cheapest budget whose mean regret is not above that of others at their end, over their cost:
    infinite (None) where no budget gets there. `ours`: the searches of each budget."""
    *groups, other = by_seed(*ours.values(), others)
    costs = np.array([[line["seconds"] for line in lines] for lines in groups])
    regrets = np.array([[best - line["probe"] for line in lines] for lines in groups])
    theirs = np.array([(line["seconds"], best - line["probe"]) for line in other])

    def ratio(seeds: np.ndarray) -> float:
        whole, regret = theirs[seeds].mean(0)
        good = regrets[:, seeds].mean(1) <= regret
        return float(costs[:, seeds].mean(1)[good].min() / whole) if good.any() else math.inf

    return _interval(ratio, len(other))


def ratio_of_anytime_to_whole(curves: Lines, others: Lines, best: float, unit: float) -> dict[str, Any]:
    """The same of a search that can be ended at any time."""
    own, other = by_seed(curves, others)
    at = regrets_at(own, best, unit)
    theirs = np.array([(line["seconds"] / unit, best - line["probe"]) for line in other])

    def ratio(seeds: np.ndarray) -> float:
        whole, regret = theirs[seeds].mean(0)
        return float(cost_of_quality(at[seeds].mean(0), regret) / whole)

    return _interval(ratio, len(other))
