"""What a search has spent of its budget of time, and what it may still spend.

Time is counted in trial-seconds: what all trials side by side use together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phenoscape_tune.search.confirm_rounds import count_slots
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.space import Budget

# Trials of other values, and a busier machine, take longer than those that were measured.
RESERVE = 1.15


@dataclass
class Spending:
    """Elapsed time of a search over all its resumes.

    Args:
        budget: hours (wall) and gpu_hours (of all GPUs together), either or both without a limit.
        concurrent: trials side by side.
        gpus: GPUs, or the share of one, that each trial reserves.
        before: seconds that the search ran before it was resumed.
        clock: seconds; a replay of recorded curves has a clock of its own.
    """

    budget: Budget
    concurrent: int = 1
    gpus: float = 0.0
    before: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds of the search's own time."""
        return self.before + self.clock() - self._started

    @property
    def limited(self) -> bool:
        """Whether the budget has a limit of time at all."""
        return math.isfinite(self.total)

    @property
    def wall_left(self) -> float:
        """Seconds until the wall time ends; infinite without such a limit."""
        return _seconds(self.budget.hours) - self.elapsed

    @property
    def total(self) -> float:
        """Trial-seconds of the whole budget; infinite without a limit."""
        return min(_seconds(self.budget.hours) * self.concurrent, self._gpu_seconds)

    @property
    def _gpu_seconds(self) -> float:
        """Trial-seconds that the GPU hours hold; infinite without such a limit, and without a GPU."""
        return _seconds(self.budget.gpu_hours) / self.gpus if self.gpus else math.inf

    def left(self, records: Sequence[TrialRecord]) -> float:
        """Trial-seconds that the budget still holds, after what `records` used; infinite without a limit."""
        return min(self.wall_left * self.concurrent, self._gpu_seconds - sum(record.seconds for record in records))


def _seconds(hours: float | None) -> float:
    return math.inf if hours is None else hours * 3600


def epoch_seconds(records: Sequence[TrialRecord]) -> float:
    """Trial-seconds of one epoch, from the trials so far; 0 before the first. Of the slower half, to be on the safe
    side: what is set aside must suffice for trials that were not chosen yet."""
    each = sorted(record.seconds / len(record.curve) for record in records if record.curve)
    slower = each[len(each) // 2 :]
    return sum(slower) / len(slower) if slower else 0.0


def affordable(top_k: int, repeats: int, slots: int, drop: bool = False, concurrent: int = 1) -> tuple[int, int]:
    """The confirmation that so many trial-long slots allow: the best k and the baseline with so many fresh seeds.

    Fewer candidates come before fewer seeds: one seed tells nothing of the noise of training. (0, 0) where not even the
    winner and the baseline can be repeated once.
    """
    while top_k and count_slots(top_k, repeats, drop, concurrent) > slots:
        if top_k > 1:
            top_k -= 1
        elif repeats > 1:
            repeats -= 1
        else:
            return 0, 0
    return top_k, repeats
