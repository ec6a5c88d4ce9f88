"""PASHA's rule (Bohdal et al. 2023, arXiv 2207.06940) on this project's search, to be compared with it in replay.

Trials end at a ceiling, at first the second rung. It rises by a rung whenever the ranking of the trials that reached
the two highest rungs differs between these two, by more than the noise of the curves. Per stage: each starts anew.

Unlike the paper's, a trial that ended at a ceiling is over: it does not go on when the ceiling rises. The noise is that
of what is ranked: of the means of three evaluations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS, Stage
from phenoscape_tune.search.record import PRUNED, TrialRecord

CRISS_CROSS_PERCENTILE = 90  # the paper's N
FIRST_CEILING = 1  # place of the second rung


def noise(curves: Sequence[Sequence[float]]) -> float:
    """The paper's epsilon: differences that mean nothing.

    Of all pairs of curves whose objectives change places at least twice, the 90th percentile of their last difference;
    0 where no pair does. A trial's objective after each epoch is what it is ranked by: a mean of evaluations.
    """
    distances = []
    ranked = [[trial_objective(curve[:epoch]) for epoch in range(1, len(curve) + 1)] for curve in curves]
    for one, other in combinations(ranked, 2):
        common = min(len(one), len(other))
        signs = np.sign(np.subtract(one[:common], other[:common]))
        signs = signs[signs != 0]
        if int((np.diff(signs) != 0).sum()) >= 2:
            distances.append(abs(one[common - 1] - other[common - 1]))
    return float(np.percentile(distances, CRISS_CROSS_PERCENTILE)) if distances else 0.0


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


@dataclass
class PashaConductor(Conductor):
    """The project's search with trials that end at a rising ceiling; the baseline and the confirmation run whole."""

    ceilings: dict[str, int] = field(default_factory=dict)

    @property
    def _heights(self) -> tuple[int, ...]:
        return (*self.plan.rungs.levels, self.plan.rungs.max_epochs)

    def _height(self, stage: Stage) -> int:
        """Epochs of a stage's ceiling."""
        return self._heights[min(self.ceilings.get(stage.name, FIRST_CEILING), len(self._heights) - 1)]

    def _goes_on(self, record: TrialRecord) -> bool:
        stage = self._stage
        if stage.name in (DEFAULTS, CONFIRM):
            return super()._goes_on(record)
        epoch = len(record.curve)
        place = self.ceilings.get(stage.name, FIRST_CEILING)
        if place < len(self._heights) - 1 and epoch >= self._heights[place]:
            curves = [record.curve, *self._others(record)]
            if not stable(curves, self._heights[place - 1], self._heights[place], self.plan.objective.sign):
                self.ceilings[stage.name] = place + 1
        if epoch >= self._height(stage):
            return self.is_exempt(record)
        return super()._goes_on(record)

    # Trials that ended at a ceiling were not trained to the end, yet they are what is compared: at equal epochs.

    def _finalists(self, records: Iterable[TrialRecord], epochs: int) -> list[TrialRecord]:
        def score(record: TrialRecord) -> float:
            return self.plan.objective.sign * trial_objective(record.curve[:epochs])

        valid = [r for r in records if r.status in ("completed", PRUNED) and len(r.curve) >= epochs]
        return sorted(valid, key=score, reverse=True)

    def _best(self, stage: Stage) -> TrialRecord | None:
        standing = [self._standing] if self._standing else []
        if stage.name == DEFAULTS:
            return super()._best(stage)
        epochs = min([self._height(stage), *(len(record.curve) for record in standing)])
        return next(iter(self._finalists([*standing, *self._known(stage)], epochs)), None)

    def ranked(self) -> list[TrialRecord]:
        records = {record.name: record for stage in self._stages for record in self._known(stage)}
        searched = [stage for stage in self._stages if stage.name != DEFAULTS and self._known(stage)]
        epochs = min([self.plan.rungs.max_epochs, *(self._height(stage) for stage in searched)])
        return self._finalists(records.values(), epochs)
