"""What a search leaves for people and programs: leaderboard.csv, best.yaml, summary.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.evaluate.objective import Metric, trial_objective
from phenoscape_tune.files import write_whole
from phenoscape_tune.layers import get_key, set_key
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.confirm import Gain, paired_gain, seed_gain
from phenoscape_tune.search.course import ENDED_BY, WIDENED
from phenoscape_tune.search.edges import Edge, find_edges
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS, Stage
from phenoscape_tune.search.record import COMPLETED, PRUNED, RUNNING, TrialRecord
from phenoscape_tune.settling import vary
from phenoscape_tune.storage import join_url
from phenoscape_tune.versions import versions
from phenoscape_tune.yaml_file import dump_mapping

INTERRUPTED = "interrupted"
CHEAPER = 0.9  # a configuration is called cheaper below this share of the other's training time
# Keys that change what an epoch costs; without a difference in these, a difference in seconds is the machine's noise.
COST_KEYS = {"batch_size", "backbone", "input_size", "transforms.input_size", "stem", "projection_dim", "precision"}

COLUMNS = ("rank", "trial", "stage", "status", "epochs", "objective", "objective_sd", "seconds", "gpu_hours", "reason")


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
        base = _repeated(first, runs[first.name]) if runs[first.name] else _single(first)
    # A configuration that survives some seeds only must not win by the lucky ones.
    failed = [r for r in conductor.records() if r.stage == CONFIRM and r.status not in (COMPLETED, RUNNING)]
    unsteady = {repeat.of for repeat in failed if repeat.status != PRUNED}  # not what time cut off
    steady = [record for record in searched if record.name not in unsteady]
    searched = steady if any(runs[record.name] for record in steady) else searched
    most = max((len(runs[record.name]) for record in searched), default=0)
    candidate = max(
        (_repeated(r, runs[r.name]) if most else _single(r) for r in searched if len(runs[r.name]) == most),
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


def _single(record: TrialRecord) -> Standing:
    assert record.objective is not None
    return Standing(record, record.objective, record.error, record.seconds)


def _repeated(record: TrialRecord, runs: Sequence[TrialRecord]) -> Standing:
    values = [run.objective for run in runs if run.objective is not None]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Standing(record, float(np.mean(values)), sd, float(np.mean([run.seconds for run in runs])))


def write_leaderboard(conductor: Conductor) -> None:
    """A row for each trial that was started: completed ones by objective, then those stopped early, then the rest."""
    plan = conductor.plan
    keys = sorted(plan.space.parameters)
    records = conductor.records()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *keys])
    searched = sorted((r for r in records if r.stage != CONFIRM), key=lambda record: _order(record, plan.objective))
    defaults = plan.base.to_mapping()
    for rank, record in enumerate([*searched, *(r for r in records if r.stage == CONFIRM)], start=1):
        status = INTERRUPTED if record.status == RUNNING else record.status
        scored = record.objective is not None and record.stage != CONFIRM and status in (COMPLETED, PRUNED)
        row = [
            rank if scored else "",
            record.name,
            record.stage,
            status,
            len(record.curve),
            _number(record.objective),
            _number(record.error),
            f"{record.seconds:.1f}",
            f"{record.seconds * record.gpus / 3600:.4f}",
            record.reason or (f"repeats {record.of} with seed {record.seed}" if record.of else ""),
        ]
        writer.writerow([*row, *(record.values.get(key, get_key(defaults, key)) for key in keys)])
    write_whole(plan.folder / "leaderboard.csv", text.getvalue())


def _order(record: TrialRecord, metric: Metric) -> tuple[int, int, float]:
    place = {COMPLETED: 0, PRUNED: 1}.get(record.status, 2)
    return place, -len(record.curve) if place else 0, -metric.sign * (record.objective or 0.0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def best_config(plan: Plan, outcome: Outcome) -> TrainConfig:
    """The base configuration with the winner's values, runnable as it is; what follows from the images' channels, and
    was not written, follows again."""
    values: dict[str, Any] = {}
    for key, value in outcome.best.record.values.items():
        set_key(values, key, value)
    values["out_dir"] = str(plan.folder / "best")
    if plan.base.storage is not None:
        values["storage"] = join_url(plan.base.storage, "best")
    return build_config(vary(plan.base, values, "best.yaml").to_unsettled_mapping(), "best.yaml")


def write_best(plan: Plan, outcome: Outcome) -> Path:
    """`best.yaml`, which holds `best_config`."""
    config = best_config(plan, outcome)
    path = plan.folder / "best.yaml"
    comment = f"# {outcome.best.record.name} of {plan.folder.name}: {outcome.verdict}\n"
    write_whole(path, comment + dump_mapping(config.to_unsettled_mapping()))
    return path


def write_summary(conductor: Conductor, outcome: Outcome | None) -> None:
    """`summary.json`: the same for programs."""
    plan = conductor.plan
    best, base = (outcome.best, outcome.baseline) if outcome else (None, None)
    interval = outcome.interval if outcome else None
    summary = {
        "objective": {"metric": plan.objective.name, "higher_is_better": plan.objective.higher_is_better},
        "baseline": base and {"objective": base.objective, "sd": base.sd},
        "winner": best
        and {"trial": best.record.name, "values": best.record.values, "objective": best.objective, "sd": best.sd},
        "gain": outcome and outcome.difference,
        "gain_ci95": interval and list(interval),
        "candidate": outcome and outcome.candidate and outcome.candidate.record.name,
        "verdict": outcome.verdict if outcome else "no valid trial",
        "stages": [_stage_summary(conductor, index, stage) for index, stage in enumerate(conductor.stages)],
        "edges": [str(edge) for edge in outcome_edges(conductor, outcome)],
        "early_stopping": [asdict(agreement) for agreement in early_agreement(conductor)],
        "batch_sizes": plan.capacity and asdict(plan.capacity),
        "budget": {
            "planned": asdict(planned_budget(plan)),
            "used": asdict(used_budget(conductor)),
            "exhaustive_grid": grid_cost(conductor),
        },
        "versions": versions(),
    }
    write_whole(plan.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


@dataclass(frozen=True)
class Cost:
    """Trials and time, planned (at most; None: without a limit) or used; `device_hours` counts each trial's own."""

    trials: int
    confirmations: int
    epochs: int
    hours: float | None
    device_hours: float | None
    gpu_hours: float | None


def planned_budget(plan: Plan) -> Cost:
    """What the plan allows."""
    limits, trials = plan.space.budget, sum(stage.trials for stage in plan.stages)
    return Cost(trials, plan.confirmations, plan.epochs_at_most, limits.hours, None, limits.gpu_hours)


def used_budget(conductor: Conductor) -> Cost:
    """What the search has used so far; its hours are those at the last report."""
    records = conductor.records()
    repeats = sum(record.stage == CONFIRM for record in records)
    return Cost(
        trials=len(records) - repeats,
        confirmations=repeats,
        epochs=sum(len(record.curve) for record in records),
        hours=round(max((record.elapsed for record in records), default=0.0) / 3600, 6) or None,
        device_hours=round(sum(record.seconds for record in records) / 3600, 6),
        gpu_hours=round(sum(record.seconds * record.gpus for record in records) / 3600, 6),
    )


def outcome_edges(conductor: Conductor, outcome: Outcome | None) -> list[Edge]:
    """The edges at which the best of the search stands, whether best.yaml takes it or keeps the defaults."""
    best = None if outcome is None else outcome.candidate or outcome.best
    return find_edges(conductor.ranges, best.record.values) if best else []


def grid_cost(conductor: Conductor) -> dict[str, float]:
    """What an exhaustive grid would cost: five values a range, every value of a choice, each trial to its end."""
    plan = conductor.plan
    trials = plan.space.grid_size()
    records = [record for record in conductor.records() if record.curve]
    epochs = sum(len(record.curve) for record in records)
    each = sum(record.seconds for record in records) / epochs if epochs else 0.0
    return {"trials": trials, "device_hours": round(trials * plan.rungs.max_epochs * each / 3600, 4)}


@dataclass(frozen=True)
class Agreement:
    """How far the ranking at a rung agrees with that at the end (Spearman's rank correlation).

    Attributes:
        epoch: the rung.
        completed, trials: of all trials that ran to their end: survivors, so the true agreement is rather higher or
            lower than this shows; and how many those are. None for fewer than three.
        unselected, unselected_trials: of those that early stopping could not end (the baseline, one random trial a
            stage): free of that bias, but few.
    """

    epoch: int
    completed: float | None
    trials: int
    unselected: float | None
    unselected_trials: int


def early_agreement(conductor: Conductor) -> list[Agreement]:
    """Whether stopping early was safe: for each rung the agreement of the objective there with that at the end."""
    ended = [record for record in conductor.records() if record.status == COMPLETED and record.stage != CONFIRM]
    exempt = [record for record in ended if record.stage == DEFAULTS or conductor.is_exempt(record)]
    return [
        Agreement(level, _agreement(ended, level), len(ended), _agreement(exempt, level), len(exempt))
        for level in conductor.plan.rungs.levels
    ]


def _agreement(records: Sequence[TrialRecord], epoch: int) -> float | None:
    if len(records) < 3:
        return None
    early = [trial_objective(record.curve[:epoch]) for record in records]
    final = [record.objective for record in records]
    if len(set(early)) == 1 or len(set(final)) == 1:
        return None
    return round(float(spearmanr(early, final).statistic), 4)


def _stage_summary(conductor: Conductor, index: int, stage: Stage) -> Mapping[str, Any]:
    winner = conductor.winners[index] if index < len(conductor.winners) else None
    return {
        "name": stage.name,
        "keys": list(stage.keys),
        "winner": winner and winner.name,
        "trials": len(conductor.records(stage)),
        "widened": conductor.study.get_note(stage, WIDENED) or {},
        "ended_by": conductor.study.get_note(stage, ENDED_BY) or ("not needed" if not stage.trials else "its trials"),
    }
