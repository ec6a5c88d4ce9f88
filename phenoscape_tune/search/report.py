"""What a search leaves for people and programs: leaderboard.csv, best.yaml, summary.json."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from phenoscape_tune.config import build_config, get_key, merge, set_key
from phenoscape_tune.files import write_whole
from phenoscape_tune.search.conductor import Conductor, Plan
from phenoscape_tune.search.confirm import Gain, paired_gain
from phenoscape_tune.search.priority import CONFIRM, Stage
from phenoscape_tune.search.study import COMPLETED, PRUNED, RUNNING, TrialRecord
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
    """

    baseline: Standing | None
    candidate: Standing | None
    gain: Gain | None
    best: Standing
    verdict: str

    @property
    def difference(self) -> float | None:
        """Candidate minus baseline: on the test part where that was measured, else in the objectives of the search."""
        if self.gain is not None:
            return self.gain.value
        if self.baseline is None or self.candidate is None:
            return None
        return self.candidate.objective - self.baseline.objective


def decide(conductor: Conductor) -> Outcome | None:
    """The outcome of a search that is done; None where no trial was valid."""
    repeats = [r for r in conductor.records() if r.stage == CONFIRM and r.status == COMPLETED]
    valid = conductor.ranked()
    if not valid:
        return None
    runs = {record.name: [run for run in repeats if run.of == record.name] for record in valid}
    first = conductor.baseline
    searched = [record for record in valid if first is None or record.name != first.name]
    base = None
    if first is not None and first.name in runs:
        base = _repeated(first, runs[first.name]) if runs[first.name] else _single(first)
    # A configuration that survives some seeds only must not win by the lucky ones.
    most = max((len(runs[record.name]) for record in searched), default=0)
    candidate = max(
        (_repeated(r, runs[r.name]) if most else _single(r) for r in searched if len(runs[r.name]) == most),
        key=lambda standing: standing.objective,
        default=None,
    )
    if base is None:
        assert candidate is not None
        return Outcome(None, candidate, None, candidate, "the defaults did not train: there is no gain to tell")
    if candidate is None:
        return Outcome(base, None, None, base, "no trial but the defaults was valid; best.yaml keeps the defaults")
    gain = _measure_gain(conductor.plan, candidate, base, repeats)
    best, verdict = _judge(candidate, base, gain)
    failed = [r for r in conductor.records() if r.stage == CONFIRM and r.status not in (COMPLETED, RUNNING)]
    if failed:
        verdict += f"; {len(failed)} confirmations failed, the first: {failed[0].reason}"
    return Outcome(base, candidate, gain, best, verdict)


def _judge(candidate: Standing, base: Standing, gain: Gain | None) -> tuple[Standing, str]:
    """What best.yaml holds, and why."""
    keeps, takes = "best.yaml keeps the defaults", "best.yaml takes the winner"
    if gain is None:
        better = candidate.objective > base.objective
        shown = f"{candidate.objective - base.objective:+.3f} against the defaults, not confirmed on a test part"
        return (candidate, shown) if better else (base, f"{shown}; {keeps}")
    shown = (
        f"{gain.value:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f}) in balanced accuracy on the test part"
    )
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
    files = {(run.of, run.seed): plan.folder / "trials" / run.name / "test_predictions.csv" for run in repeats}
    pairs = [
        (file, other)
        for (name, seed), file in files.items()
        if name == candidate.record.name and (other := files.get((base.record.name, seed)))
    ]
    if not pairs or not all(file.is_file() for pair in pairs for file in pair):
        return None
    return paired_gain([won for won, _ in pairs], [other for _, other in pairs], plan.seed)


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
    searched = sorted((r for r in records if r.stage != CONFIRM), key=_order)
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


def _order(record: TrialRecord) -> tuple[int, int, float]:
    place = {COMPLETED: 0, PRUNED: 1}.get(record.status, 2)
    return place, -len(record.curve) if place else 0, -(record.objective or 0.0)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def write_best(plan: Plan, outcome: Outcome) -> Path:
    """`best.yaml`: the base configuration with the winner's values, runnable as it is."""
    values: dict[str, Any] = {}
    for key, value in outcome.best.record.values.items():
        set_key(values, key, value)
    values["out_dir"] = str(plan.folder / "best")
    config = build_config(merge(plan.base.to_mapping(), values), "best.yaml")
    path = plan.folder / "best.yaml"
    comment = f"# {outcome.best.record.name} of {plan.folder.name}: {outcome.verdict}\n"
    write_whole(path, comment + dump_mapping(config.to_mapping()))
    return path


def write_summary(conductor: Conductor, outcome: Outcome | None) -> None:
    """`summary.json`: the same for programs."""
    plan = conductor.plan
    records = conductor.records()
    best, base = (outcome.best, outcome.baseline) if outcome else (None, None)
    summary = {
        "baseline": base and {"objective": base.objective, "sd": base.sd},
        "winner": best
        and {"trial": best.record.name, "values": best.record.values, "objective": best.objective, "sd": best.sd},
        "gain": outcome and outcome.difference,
        "gain_ci95": [outcome.gain.low, outcome.gain.high] if outcome and outcome.gain else None,
        "candidate": outcome and outcome.candidate and outcome.candidate.record.name,
        "verdict": outcome.verdict if outcome else "no valid trial",
        "stages": [_stage_summary(conductor, index, stage) for index, stage in enumerate(conductor.stages)],
        "budget": {
            "planned": {
                "trials": sum(s.trials for s in plan.stages),
                "confirmations": plan.confirmations,
                "epochs": plan.epochs_at_most,
            },
            "used": {
                "trials": sum(r.stage != CONFIRM for r in records),
                "confirmations": sum(r.stage == CONFIRM for r in records),
                "epochs": sum(len(r.curve) for r in records),
                "seconds": round(sum(r.seconds for r in records), 1),
                "gpu_hours": round(sum(r.seconds * r.gpus for r in records) / 3600, 4),
            },
        },
        "versions": versions(),
    }
    write_whole(plan.folder / "summary.json", json.dumps(summary, indent=2) + "\n")


def _stage_summary(conductor: Conductor, index: int, stage: Stage) -> Mapping[str, Any]:
    winner = conductor.winners[index] if index < len(conductor.winners) else None
    return {
        "name": stage.name,
        "keys": list(stage.keys),
        "winner": winner and winner.name,
        "trials": len(conductor.records(stage)),
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("phenoscape-tune", "torch", "torchvision", "timm", "ray", "optuna", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
