"""PASHA's rule (Bohdal et al. 2023, arXiv 2207.06940): trials end at a ceiling that rises while the ranking changes.

The ceiling is at first the second rung. It rises by a rung whenever the ranking of the trials that reached the two
highest rungs differs between these two, by more than the noise of the curves. Each stage starts anew; the baseline and
the confirmation run to their ends.

A trial that reached the ceiling waits there: when the ceiling rises, it goes on from its checkpoint where it is among
the best of that rung, and is over otherwise. The noise is that of what is ranked: of the means of three evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.search.rungs import Rungs

CRISS_CROSS_PERCENTILE = 90  # the paper's N
FIRST = 1  # place of the second rung among the epochs at which a ceiling may lie


def noise(curves: Sequence[Sequence[float]]) -> float:
    """The paper's epsilon: differences that mean nothing.

    Of all pairs of curves whose objectives change places at least twice, the 90th percentile of their last difference;
    0 where no pair does. A trial's objective after each epoch is what it is ranked by: a mean of evaluations.

    Args:
        curves: of equally many epochs.
    """
    if len(curves) < 2:
        return 0.0
    ranked = np.array([[trial_objective(curve[:epoch]) for epoch in range(1, len(curve) + 1)] for curve in curves])
    one, other = np.triu_indices(len(ranked), k=1)
    leads = np.zeros(len(one))  # who was ahead last: 1, -1, or 0 as long as both are equal
    changes = np.zeros(len(one), np.int64)
    for epoch in range(ranked.shape[1]):
        signs = np.sign(ranked[one, epoch] - ranked[other, epoch])
        changes += signs * leads < 0
        leads = np.where(signs != 0, signs, leads)
    distances = np.abs(ranked[one, -1] - ranked[other, -1])[changes >= 2]
    return float(np.percentile(distances, CRISS_CROSS_PERCENTILE)) if len(distances) else 0.0


def stable(curves: Sequence[Sequence[float]], lower: int, upper: int, sign: int) -> bool:
    """Whether the curves rank at `lower` epochs as they do at `upper`, but for noise.

    The soft ranking of the paper: the trial in each place of the upper rung's ranking is, in the lower's, no further
    from the one in that place than the noise.
    """
    reached = [curve for curve in curves if len(curve) >= upper]
    epsilon = noise([curve[:upper] for curve in reached])
    above = sorted(reached, key=lambda curve: -sign * trial_objective(curve[:upper]))
    below = sorted((trial_objective(curve[:lower]) for curve in reached), reverse=sign > 0)
    return all(
        abs(trial_objective(curve[:lower]) - at) <= epsilon for curve, at in zip(above, below, strict=True)
    )  # fmt: skip


def first_ceiling(rungs: Rungs) -> int:
    """Epochs of a stage's ceiling before anything is known."""
    heights = rungs.heights
    return heights[min(FIRST, len(heights) - 1)]


def next_ceiling(rungs: Rungs, ceiling: int, curves: Sequence[Sequence[float]], sign: int) -> int:
    """Epochs of the ceiling once the curves are known: the same, or a rung higher."""
    heights = rungs.heights
    place = heights.index(ceiling)
    if place == len(heights) - 1 or stable(curves, heights[place - 1], ceiling, sign):
        return ceiling
    return heights[place + 1]
