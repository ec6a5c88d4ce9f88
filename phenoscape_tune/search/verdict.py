"""What a search found: its best candidate against the baseline, by fresh seeds, and which of them to train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phenoscape_tune.evaluate.objective import Metric
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.confirm import Gain, paired_gain, seed_gain
from phenoscape_tune.search.edges import Edge, find_edges
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import CONFIRM
from phenoscape_tune.search.record import COMPLETED, PRUNED, RUNNING, TrialRecord

CHEAPER = 0.9  # a configuration is called cheaper below this share of the other's training time
# Keys that change what an epoch costs; without a difference in these, a difference in seconds is the machine's noise.
COST_KEYS = {"batch_size", "backbone", "input_size", "transforms.input_size", "stem", "projection_dim", "precision"}


@dataclass(frozen=True)
class Standing:
    """A configuration at the end of a search: its trial, and mean and standard deviation of its objective."""

    record: TrialRecord
    objective: float
    sd: float | None
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        baseline: the defaults; None where they did not train.
        candidate: the best of what was searched.
        gain: candidate minus baseline on the test part; None where that could not be measured.
        best: what `best.yaml` holds: the candidate, or the baseline where that is no worse and cheaper.
        verdict: one sentence for people.
        metric: the objective.
    """

    baseline: Standing | None
    candidate: Standing | None
    gain: Gain | None
    best: Standing
    verdict: str
    metric: Metric

    @property
    def difference(self) -> float | None:
        """How much better the candidate is than the baseline: on the test part where that was measured, else in the
        objectives of the search. Positive is better, whatever the objective's direction."""
        if self.gain is not None:
            return self.gain.value
        if self.baseline is None or self.candidate is None:
            return None
        return self.metric.sign * (self.candidate.objective - self.baseline.objective)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain; None where it was not measured, or with one seed, which tells none."""
        return (self.gain.low, self.gain.high) if self.gain and math.isfinite(self.gain.low) else None


def decide(conductor: Conductor) -> Outcome | None:
    """The outcome of a search that is done; None where no trial was valid."""
    repeats = [r for r in _whole_seeds(conductor) if r.status == COMPLETED]
    valid, metric = conductor.ranked(), conductor.plan.objective
    if not valid:
        return None
    runs = {record.name: [run for run in repeats if run.of == record.name] for record in valid}
    first = conductor.baseline
    searched = [record for record in valid if first is None or record.name != first.name]
    base = None
    if first is not None and first.name in runs:
        base = _repeated(first, runs[first.name]) if runs[first.name] else _single(conductor, first)
    # A configuration that survives some seeds only must not win by the lucky ones.
    failed = [r for r in conductor.records() if r.stage == CONFIRM and r.status not in (COMPLETED, RUNNING)]
    unsteady = {repeat.of for repeat in failed if repeat.status != PRUNED}  # not what time cut off
    steady = [record for record in searched if record.name not in unsteady]
    searched = steady if any(runs[record.name] for record in steady) else searched
    most = max((len(runs[record.name]) for record in searched), default=0)
    candidate = max(
        (_repeated(r, runs[r.name]) if most else _single(conductor, r) for r in searched if len(runs[r.name]) == most),
        key=lambda standing: metric.sign * standing.objective,
        default=None,
    )
    if base is None:
        assert candidate is not None
        return Outcome(None, candidate, None, candidate, "the defaults did not train: there is no gain to tell", metric)
    if candidate is None:
        verdict = "no trial but the defaults was valid; best.yaml keeps the defaults"
        return Outcome(base, None, None, base, verdict, metric)
    gain = _measure_gain(conductor.plan, candidate, base, repeats)
    best, verdict = _judge(candidate, base, gain, metric)
    if failed:
        verdict += f"; {len(failed)} confirmations failed, the first: {failed[0].reason}"
    return Outcome(base, candidate, gain, best, verdict, metric)


def _whole_seeds(conductor: Conductor) -> list[TrialRecord]:
    """The confirmations of the seeds that every candidate that was left was given: one cut off by time says nothing of
    the rest."""
    records = [record for record in conductor.records() if record.stage == CONFIRM]
    ended = [record for record in records if record.status not in (RUNNING, PRUNED)]
    first = conductor.plan.seed + 1
    rounds = {first + number: set(names) for number, names in enumerate(conductor.rounds)}
    whole = {seed for seed, names in rounds.items() if {r.of for r in ended if r.seed == seed} == names}
    return [record for record in ended if not whole or record.seed in whole]


def _judge(candidate: Standing, base: Standing, gain: Gain | None, metric: Metric) -> tuple[Standing, str]:
    """What best.yaml holds, and why."""
    keeps, takes = "best.yaml keeps the defaults", "best.yaml takes the winner"
    if gain is None:
        better = metric.sign * (candidate.objective - base.objective)
        shown = f"{better:+.3f} against the defaults in {metric.title}, not confirmed on a test part"
        return (candidate, shown) if better > 0 else (base, f"{shown}; {keeps}")
    interval = f" (95 % interval {gain.low:+.3f} to {gain.high:+.3f})" if math.isfinite(gain.low) else ""
    shown = f"{gain.value:+.3f}{interval} in {metric.title} on the test part"
    if not metric.higher_is_better:
        shown += " (lower is better there; + is a gain)"
    if gain.seeds < 2:
        shown += ", of one fresh seed, which tells nothing of the noise of training"
    if gain.clear and gain.value > 0:
        return candidate, f"clear gain over the defaults: {shown}"
    if gain.clear:
        return base, f"no gain: the best of the search is worse than the defaults, {shown}; {keeps}"
    unclear = f"no clear gain over the defaults: {shown}"
    costs_differ = bool(COST_KEYS & set(candidate.record.values))
    if costs_differ and base.seconds < CHEAPER * candidate.seconds:
        return base, f"{unclear}; {keeps}, which are cheaper"
    if costs_differ and candidate.seconds < CHEAPER * base.seconds:
        return candidate, f"{unclear}; {takes}, which is cheaper"
    if gain.value <= 0:
        return base, f"{unclear}; both cost the same, {keeps}"
    return candidate, f"{unclear}; both cost the same, {takes}"


def _measure_gain(plan: Plan, candidate: Standing, base: Standing, repeats: Sequence[TrialRecord]) -> Gain | None:
    """The paired gain on the test part; None without repeats or without a test part."""
    runs = {(run.of, run.seed): run for run in repeats}
    pairs = [
        (run, other)
        for (name, seed), run in runs.items()
        if name == candidate.record.name and (other := runs.get((base.record.name, seed)))
    ]
    sign = plan.objective.sign
    files = [tuple(plan.folder / "trials" / run.name / "test_scores.csv" for run in pair) for pair in pairs]
    if files and all(file.is_file() for pair in files for file in pair):
        return paired_gain([won for won, _ in files], [other for _, other in files], plan.seed, sign)
    values = [(won.test_objective, other.test_objective) for won, other in pairs]
    known = [sign * (won - other) for won, other in values if won is not None and other is not None]
    return seed_gain(known) if known else None


def _single(conductor: Conductor, record: TrialRecord) -> Standing:
    objective = conductor.score(record)
    assert objective is not None
    whole = conductor.plan.rungs.max_epochs / len(record.curve)  # trainings that it was a part of
    error = record.error if objective == record.objective else None  # that of the last epoch
    return Standing(record, objective, error, record.seconds * whole)


def _repeated(record: TrialRecord, runs: Sequence[TrialRecord]) -> Standing:
    values = [run.objective for run in runs if run.objective is not None]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Standing(record, float(np.mean(values)), sd, float(np.mean([run.seconds for run in runs])))


def outcome_edges(conductor: Conductor, outcome: Outcome | None) -> list[Edge]:
    """The edges at which the best of the search stands, whether best.yaml takes it or keeps the defaults."""
    best = None if outcome is None else outcome.candidate or outcome.best
    return find_edges(conductor.ranges, best.record.values) if best else []
