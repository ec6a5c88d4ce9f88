"""What a search found, in plain sentences: the words of the report's page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from phenoscape_tune.layers import get_key
from phenoscape_tune.search.ceiling import first_ceiling
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import ENDED_BY, WIDENED
from phenoscape_tune.search.figures import direction
from phenoscape_tune.search.marks import (
    derived_keys,
    in_parts,
    searched_records,
    stage_winner,
    status_of,
    tell_value,
    tell_values,
)
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import (
    BATCH_SIZE,
    CONFIRM,
    DEFAULTS,
    JOINT,
    LR,
    OTHER,
    RECHECK,
    REFINE,
    Stage,
)
from phenoscape_tune.search.record import CAPPED, COMPLETED, FAILED, INFEASIBLE, PRUNED, TrialRecord
from phenoscape_tune.search.report import INTERRUPTED, Agreement, early_agreement
from phenoscape_tune.search.verdict import Outcome, outcome_edges

STAGE_TITLES = {
    DEFAULTS: "your configuration as it stands",
    LR: "learning rate",
    BATCH_SIZE: "batch size",
    RECHECK: "learning rate again, where the batch size changed",
    OTHER: "other settings",
    REFINE: "all settings, close to the best so far",
    JOINT: "all settings at once",
    CONFIRM: "confirmation",
}
STRONG, WEAK = 0.7, 0.4  # rank correlations
FEW, VERY_FEW = 10, 5  # trials behind a rank correlation


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def stage_title(stage: Stage) -> str:
    return f"Stage {stage.number}: {STAGE_TITLES.get(stage.name, stage.name)}"


def headline(conductor: Conductor, outcome: Outcome | None) -> str:
    """The result in one sentence."""
    if outcome is None:
        return "No valid trial: none ran to its end" if conductor.done else "No trial has run to its end yet"
    return outcome.verdict[:1].upper() + outcome.verdict[1:] if conductor.done else f"So far: {outcome.verdict}"


def tell_hours(hours: float) -> str:
    """A duration in the unit that suits it."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def tell_range(parameter: Parameter) -> str:
    """`1e-05 to 0.1 (log scale)`, or the values of a choice."""
    if parameter.type == "choice":
        return "one of " + ", ".join(map(tell_value, parameter.values or []))
    assert parameter.low is not None and parameter.high is not None
    steps = f", in steps of {parameter.step:g}" if parameter.step is not None else ""
    scale = " (log scale)" if parameter.type.startswith("log") else ""
    return f"{parameter.low:.4g} to {parameter.high:.4g}{scale}{steps}"


def describe_stage(conductor: Conductor, stage: Stage) -> list[str]:
    """What a stage varied, how its trials ended, what won, and what was out of the ordinary."""
    records, winner = conductor.records(stage), stage_winner(conductor, stage)
    if not stage.trials:
        return ["Not needed: the batch size did not change, so its trials went to the later stages."]
    if not records and not conductor.study.warm_trials(stage):
        return [f"Not reached: {conductor.study.get_note(stage, ENDED_BY) or 'the search ended before'}."]
    lines = []
    if stage.keys and records:
        ranges = conductor.study.ranges(stage)
        lines.append("Varied: " + "; ".join(f"{key}, {tell_range(ranges[key])}" for key in stage.keys) + ".")
    lines.append(f"{count(len(records), 'trial')} started: {tell_ends(records)}.")
    lines += [f"The learning rate followed the batch size: {_derived(records)}."] if derived_keys(stage) else []
    lines += _stage_ceiling(conductor, stage)
    if stage.name != DEFAULTS:
        lines.append(_tell_winner(conductor, stage, winner))
    lines += [f"{line} (dashed line: the bound before)." for line in _widened(conductor, stage)]
    if ended_by := conductor.study.get_note(stage, ENDED_BY):
        lines.append(f"Ended early, after {len(records)} of {stage.trials} trials, by {ended_by}.")
    if told := len(conductor.study.warm_trials(stage)):
        lines.append(f"{count(told, 'trial')} of an earlier search counted too (--warm-start).")
    return lines


def tell_ends(records: Sequence[TrialRecord]) -> str:
    """`3 ran to their end, 2 were stopped early`."""
    words = {
        COMPLETED: "ran to the end",
        CAPPED: "ran to the ceiling",
        PRUNED: "stopped early",
        FAILED: "failed",
        INFEASIBLE: "out of memory",
        INTERRUPTED: "interrupted",
    }
    counts = Counter(status_of(record) for record in records)
    return ", ".join(f"{counts[status]} {told}" for status, told in words.items() if counts[status]) or "none"


def _derived(records: Sequence[TrialRecord]) -> str:
    pairs = {r.values[BATCH_SIZE]: r.values[LR] for r in records if BATCH_SIZE in r.values and LR in r.values}
    shown = ", ".join(f"{size} ran at lr {tell_value(pairs[size])}" for size in sorted(pairs))
    return f"lr·√(B/B₀), within its range; {shown}"


def _tell_winner(conductor: Conductor, stage: Stage, winner: TrialRecord | None) -> str:
    before = conductor.before(stage)
    if winner is None:
        return "No trial has run to its end here."
    won, stood = conductor.score(winner, stage), None if before is None else conductor.score(before, stage)
    if before is not None and winner.name == before.name:
        return f"No trial was better than {before.name}, which stays the best ({stood:.3f})."
    told = f"Best: {winner.name} with {tell_values(winner.values, stage.keys)}. Its {won:.3f} is "
    if stood is None or won is None:
        return f"{told}the first value there is."
    better = conductor.plan.objective.sign * (won - stood)
    return f"{told}{better:.3f} better than the best before ({stood:.3f})."


def tell_ceiling(plan: Plan) -> str:
    """What PASHA's rule adds to what is said of a trial's epochs; empty where it has no room."""
    first = first_ceiling(plan.rungs)
    if not plan.space.scheduler.pasha or first >= plan.rungs.max_epochs:
        return ""
    return f"; a stage's trials end at {first} unless the ranking still changes there (pasha)"


def _stage_ceiling(conductor: Conductor, stage: Stage) -> list[str]:
    """Where PASHA's rule ended a stage's trials, and at which epochs they are compared."""
    at, most = conductor.compared_at(stage), conductor.plan.rungs.max_epochs
    if stage.name == DEFAULTS or at >= most:
        return []
    ceiling = conductor.ceiling(stage)
    rose = f", to which it rose from {first}" if ceiling > (first := first_ceiling(conductor.plan.rungs)) else ""
    return [
        f"Its trials ended at a ceiling of {ceiling} of {most} epochs{rose} (scheduler.pasha: it rises while that "
        f"changes their ranking). They are compared at epoch {at}, which is where all values here were taken."
    ]


def _widened(conductor: Conductor, stage: Stage) -> list[str]:
    space = conductor.plan.space.parameters
    notes = conductor.study.get_note(stage, WIDENED) or {}
    return [
        f"The best so far stood at the edge of the range of {key} ({tell_range(space[key])}), "
        f"so it was widened to {tell_range(Parameter(**wider))}"
        for key, wider in notes.items()
    ]


def cautions(conductor: Conductor, outcome: Outcome | None) -> list[str]:
    """What a reader has to know beside the result."""
    records, plan = searched_records(conductor), conductor.plan
    lines = []
    if not conductor.done:
        lines.append("The search has not ended: what follows is what is known so far. `--resume` goes on with it")
    if outcome is not None:
        edges = outcome_edges(conductor, outcome)
        lines += [f"The winner may not be the best there is: {edge}" for edge in edges]
        if outcome.gain is None and outcome.difference is not None:
            lines.append(
                "The gain is not confirmed on images that the search never saw, and what is best of many trials is "
                "partly luck: expect less"
            )
    repeats = [record for record in conductor.records() if record.of]
    if outcome is not None and not repeats and (at := conductor.compared_at()) < plan.rungs.max_epochs:
        lines.append(
            f"All trials were compared at epoch {at} of {plan.rungs.max_epochs} (scheduler.pasha): whether the winner "
            "is ahead at the end was not seen"
        )
    for stage in conductor.stages:
        lines += _widened(conductor, stage)
        if ended_by := conductor.study.get_note(stage, ENDED_BY):
            done = f"{len(conductor.records(stage))} of {count(stage.trials, 'trial')}"
            lines.append(f"{stage_title(stage)}: ended after {done} by {ended_by}")
    bad = [record for record in records if status_of(record) in (FAILED, INFEASIBLE, INTERRUPTED)]
    if bad:
        lines.append(f"Of {count(len(records), 'trial')} {tell_ends(bad)}")
    if len(repeats) < plan.confirmations and repeats:
        lines.append(f"{len(repeats)} of {plan.confirmations} confirmations were started")
    if parts := sum(in_parts(conductor, record) for record in records):
        lines.append(
            f"The batch of {count(parts, 'trial')} did not fit the device at once and went through the network in "
            "parts (gradient cache): the loss still saw the whole batch, batch normalisation saw the parts"
        )
    if warm := sum(len(conductor.study.warm_trials(stage)) for stage in conductor.stages):
        lines.append(f"{count(warm, 'trial')} of an earlier search counted too (--warm-start)")
    return lines


def tell_agreement(conductor: Conductor) -> list[str]:
    """Whether stopping early was safe, with what that rests on."""
    found, records = early_agreement(conductor), searched_records(conductor)
    stopped = sum(record.status == PRUNED for record in records)
    if not found:
        return ["No trial could be stopped early: there is no comparison before the last epoch."]
    first = found[0]
    told = (
        f"{stopped} of {count(len(records), 'trial')} were stopped early" if stopped else "No trial was stopped early"
    )
    lines = [f"{told}; the first comparison was at epoch {first.epoch}."]
    if first.unselected is None:
        lines.append(
            f"Was that safe? It cannot be told: only {count(first.unselected_trials, 'trial')} ran to the end whatever "
            "they looked like early, or all ended alike."
        )
    else:
        lines.append(
            f"Was that safe? {_judge(first, conductor.plan)} Among the {first.unselected_trials} trials that nothing "
            "could stop (the defaults, one random trial a stage) the order at that epoch agreed "
            f"with the order at the end by {first.unselected:+.2f} (Spearman's rank correlation: +1 is the same order, "
            "0 is no relation)."
        )
    if first.completed is not None:
        lines.append(
            f"Among all {first.trials} trials that ran to the end it is {first.completed:+.2f}. Most of these are "
            "survivors: what looked bad early was stopped and never seen at its end, so the true agreement may be "
            "higher or lower than this."
        )
    return lines


def _judge(agreement: Agreement, plan: Plan) -> str:
    assert agreement.unselected is not None
    if agreement.unselected_trials < VERY_FEW:
        return "There are too few trials to say."
    if agreement.unselected >= STRONG:
        told = "Yes: an early look told who would end well."
    elif agreement.unselected >= WEAK:
        told = "In part: a trial that learns late may have been stopped."
    else:
        told = (
            "No: an early look told little of the end, and good trials may have been stopped. Search again with a "
            f"later first comparison (scheduler.grace_epochs, now {plan.rungs.grace})."
        )
    few = (
        f" With {agreement.unselected_trials} trials this is a hint, no more."
        if agreement.unselected_trials < FEW
        else ""
    )
    return told + few


def tell_error(conductor: Conductor, outcome: Outcome) -> str:
    """What the ± of baseline and winner is."""
    metric = conductor.plan.objective
    repeated = any(record.of == outcome.best.record.name for record in conductor.records())
    error = (
        "± is the standard deviation over repeats with fresh seeds"
        if repeated
        else "± is the standard error of the last evaluation"
    )
    return f"{metric.title}, {direction(metric)}, on the validation part; {error}"


def data_line(conductor: Conductor) -> str:
    """The images: as a trial's log tells them, else as the configuration does."""
    base = conductor.plan.base
    start = re.compile(rf"INFO +{re.escape(str(base.data_dir))}: (.+)")
    for record in conductor.records():
        log = conductor.plan.folder / "trials" / record.name / "logs" / "training.log"
        if log.is_file():
            with log.open(encoding="utf-8", errors="surrogateescape") as file:
                for line in file:
                    if found := start.search(line):
                        return f"{base.data_dir}: {found[1]}"
            break
    labels = f"labels of {base.labels}" if base.labels else "no labels file"
    return (
        f"{base.data_dir or 'no folder given'}; {labels}; validation {base.val_fraction:g}, test {base.test_fraction:g}"
    )


def changes(conductor: Conductor, outcome: Outcome) -> list[tuple[str, str, str]]:
    """Each key that differs between the defaults and the winner, with both values."""
    defaults = conductor.plan.base.to_mapping()
    return [
        (key, tell_value(get_key(defaults, key)), tell_value(value))
        for key, value in sorted(outcome.best.record.values.items())
    ]
