"""Asynchronous successive halving (ASHA, arXiv 1810.05934) over the curves that the study has recorded.

No state of its own: a decision follows from recorded values, so a resumed search decides as an unbroken one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from phenoscape_tune.evaluate.objective import trial_objective


@dataclass(frozen=True)
class Rungs:
    """The epochs at which trials are compared, and the share of them that goes on from each.

    Attributes:
        grace: first rung, in epochs; beyond the warm-up.
        factor: one in `factor` trials goes on.
        max_epochs: where a trial ends anyway.
    """

    grace: int
    factor: int
    max_epochs: int

    @property
    def levels(self) -> tuple[int, ...]:
        """Epochs of the rungs, ascending, below max_epochs."""
        levels = []
        level = self.grace
        while level < self.max_epochs:
            levels.append(level)
            level *= self.factor
        return tuple(levels)

    @property
    def heights(self) -> tuple[int, ...]:
        """Epochs at which trials may end: of the rungs, and max_epochs."""
        return (*self.levels, self.max_epochs)

    def goes_on(self, own: Sequence[float], others: Iterable[Sequence[float]], higher_is_better: bool = True) -> bool:
        """Whether a trial with the evaluations `own` (one an epoch) goes on; `others` are the other trials' curves.

        At a rung it goes on if it is among the best 1/factor of all that reached the rung so far, itself included
        (at least one); between rungs it always does. Trials are compared at equal epochs by the objective that counts
        at the end too, the mean of the last three evaluations. Equal ones go on together.
        """
        epoch = len(own)
        if epoch not in self.levels:
            return True
        sign = 1 if higher_is_better else -1
        score = sign * trial_objective(own)
        peers = [sign * trial_objective(curve[:epoch]) for curve in others if len(curve) >= epoch]
        better = sum(peer > score for peer in peers)
        return better < max(1, math.ceil((len(peers) + 1) / self.factor))


def plan_rungs(grace_epochs: int, factor: int, max_epochs: int, warmup_epochs: float) -> tuple[Rungs, list[str]]:
    """Rungs for a schedule, with one line for each value that had to give way."""
    notes = []
    grace = max(min(grace_epochs, max_epochs - 1), math.ceil(warmup_epochs) + 1)
    if grace >= max_epochs:
        notes.append(f"no early stopping: {max_epochs} epochs leave no room after a grace of {grace}")
    elif grace > grace_epochs:
        notes.append(f"grace_epochs: {grace} instead of {grace_epochs}: beyond the warm-up of {warmup_epochs:g} epochs")
    elif grace < grace_epochs:
        notes.append(f"grace_epochs: {grace} instead of {grace_epochs}: a trial has {max_epochs} epochs")
    return Rungs(grace, factor, max_epochs), notes
