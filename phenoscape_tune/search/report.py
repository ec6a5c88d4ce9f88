"""What a search leaves for people and programs: leaderboard.csv, best.yaml, summary.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.evaluate.objective import Metric, trial_objective
from phenoscape_tune.files import write_whole
from phenoscape_tune.layers import get_key, set_key
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import ENDED_BY, WIDENED
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS, Stage
from phenoscape_tune.search.record import COMPLETED, RUNNING, SCORED, TrialRecord
from phenoscape_tune.search.verdict import Outcome, outcome_edges
from phenoscape_tune.settling import vary
from phenoscape_tune.storage import join_url
from phenoscape_tune.versions import versions
from phenoscape_tune.yaml_file import dump_mapping

INTERRUPTED = "interrupted"
COLUMNS = ("rank", "trial", "stage", "status", "epochs", "objective", "objective_sd", "seconds", "gpu_hours", "reason")


def write_leaderboard(conductor: Conductor) -> None:
    """A row for each trial that was started: those that are compared by objective, then those stopped early, then the
    rest."""
    plan = conductor.plan
    keys = sorted(plan.space.parameters)
    records = conductor.records()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *keys])
    at, started = conductor.compared_at(), [record for record in records if record.stage != CONFIRM]
    compared = conductor.comparable(started)
    first = {record.name for record in compared}
    rest = [record for record in started if record.name not in first]
    searched = [*compared, *sorted(rest, key=lambda record: _order(record, plan.objective))]
    defaults = plan.base.to_mapping()
    for rank, record in enumerate([*searched, *(r for r in records if r.stage == CONFIRM)], start=1):
        status = INTERRUPTED if record.status == RUNNING else record.status
        scored = record.objective is not None and record.stage != CONFIRM and status in SCORED
        objective, error, reason = record.objective, record.error, record.reason
        if record.name in first and len(record.curve) > at:
            objective, error = conductor.score(record), None  # that of the last epoch
            reason = "; ".join(filter(None, (reason, f"objective: at epoch {at}, where trials are compared")))
        row = [
            rank if scored else "",
            record.name,
            record.stage,
            status,
            len(record.curve),
            _number(objective),
            _number(error),
            f"{record.seconds:.1f}",
            f"{record.seconds * record.gpus / 3600:.4f}",
            reason or (f"repeats {record.of} with seed {record.seed}" if record.of else ""),
        ]
        writer.writerow([*row, *(record.values.get(key, get_key(defaults, key)) for key in keys)])
    write_whole(plan.folder / "leaderboard.csv", text.getvalue())


def _order(record: TrialRecord, metric: Metric) -> tuple[bool, int, float]:
    return record.status not in SCORED, -len(record.curve), -metric.sign * (record.objective or 0.0)


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
