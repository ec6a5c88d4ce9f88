"""What the confirmation runs, a fresh seed at a time: every candidate with every seed, or, with `confirm.drop`, one
candidate fewer with each further seed.

The baseline runs with every seed, and at least one candidate with it. Who is dropped is decided by the validation part,
when the seed's trials have ended: the test part, on which the gain is told, chooses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from phenoscape_tune.search.record import COMPLETED, TrialRecord


def round_sizes(candidates: int, repeats: int, drop: bool) -> list[int]:
    """Candidates of each fresh seed, the baseline not counted."""
    return [max(1, candidates - dropped) if drop else candidates for dropped in range(repeats)]


def count_repeats(candidates: int, repeats: int, drop: bool, baseline: bool = True) -> int:
    """Trials of the whole confirmation."""
    return sum(size + baseline for size in round_sizes(candidates, repeats, drop))


def count_slots(candidates: int, repeats: int, drop: bool, concurrent: int) -> int:
    """Trial-long slots that the confirmation with the baseline takes, so many side by side: those that idle at its end
    included, and with `drop` at the end of each seed for whose last trial the next one waits: until one candidate is
    left."""
    sizes = [size + 1 for size in round_sizes(candidates, repeats, drop)]
    waited = min(candidates - 1, repeats) if drop else 0
    parts = [*sizes[:waited], sum(sizes[waited:])]
    return sum(math.ceil(part / concurrent) for part in parts) * concurrent


def worst(names: Sequence[str], repeats: Iterable[TrialRecord], sign: int) -> str:
    """The candidate to drop: one of which a repeat failed, else that with the worst mean objective.

    Args:
        names: candidates that are left, the best of the search first; of equals the last goes.
        repeats: ended ones.
        sign: -1 where a lower objective is better.
    """
    known = list(repeats)

    def score(name: str) -> float:
        own = [record for record in known if record.of == name]
        values = [record.objective for record in own if record.status == COMPLETED and record.objective is not None]
        return sign * fmean(values) if values and len(values) == len(own) else -math.inf

    return min(reversed(names), key=score)
