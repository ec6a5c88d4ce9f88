"""Shorter confirmations, from the trials that the whole one ran: what each would have chosen, said and cost.

The search before it is the same, so that one replay tells of all of them. The verdict is the project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.confirm_rounds import worst
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.verdict import Outcome, decide


@dataclass(frozen=True)
class Kept:
    """What a shorter confirmation runs, and of that what it decides on."""

    ran: list[TrialRecord]
    decides: list[TrialRecord]


Rule = Callable[[Sequence[TrialRecord], Sequence[str], str, int], Kept]


def first(candidates: int | None = None, seeds: int | None = None) -> Rule:
    """The first of the candidates, with the first of the seeds."""

    def rule(runs: Sequence[TrialRecord], names: Sequence[str], baseline: str, sign: int) -> Kept:
        known = {baseline, *[name for name in names if name != baseline][:candidates]}
        given = sorted({run.seed for run in runs if run.seed is not None})[:seeds]
        kept = [run for run in runs if run.of in known and run.seed in given]
        return Kept(kept, kept)

    return rule


def dropping(runs: Sequence[TrialRecord], names: Sequence[str], baseline: str, sign: int) -> Kept:
    """`confirm.drop`: after each seed the worst candidate is dropped, until one is left; never the baseline."""
    left, ran = [name for name in names if name != baseline], []
    seeds = sorted({run.seed for run in runs if run.seed is not None})
    for seed in seeds:
        ran += [run for run in runs if run.seed == seed and run.of in (baseline, *left)]
        if len(left) > 1 and seed != seeds[-1]:
            left.remove(worst(left, ran, sign))
    return Kept(ran, [run for run in ran if run.of in (baseline, *left)])


RULES: dict[str, Rule] = {
    "top_k 1": first(candidates=1),
    "top_k 2": first(candidates=2),
    "seeds 2": first(seeds=2),
    "drop": dropping,
}


class Shortened:
    """A search that is over, as its verdict sees it, with some of its confirmations only."""

    def __init__(self, conductor: Conductor, confirmations: Sequence[TrialRecord]) -> None:
        self._conductor, self._confirmations = conductor, list(confirmations)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conductor, name)

    def records(self) -> list[TrialRecord]:
        return [*(record for record in self._conductor.records() if not record.of), *self._confirmations]

    def ranked(self) -> list[TrialRecord]:
        # A candidate that the confirmation did not repeat is none.
        names = {record.of for record in self._confirmations}
        return [record for record in self._conductor.ranked() if record.name in names]


def shortened(conductor: Conductor, rule: Rule) -> tuple[Outcome, float]:
    """The outcome of a search that is over under another rule of confirmation, and the seconds of that."""
    baseline = conductor.baseline
    assert baseline is not None
    runs = [record for record in conductor.records() if record.of]
    names = list(dict.fromkeys(run.of for run in runs if run.of is not None))
    kept = rule(runs, names, baseline.name, conductor.plan.objective.sign)
    outcome = decide(Shortened(conductor, kept.decides))  # type: ignore[arg-type]
    assert outcome is not None
    return outcome, sum(run.seconds for run in kept.ran)
