"""`report.html`: what a search found, for people, on one page that needs no network."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phenoscape_tune.files import write_whole
from phenoscape_tune.search import story
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.display import describe_capacity
from phenoscape_tune.search.figures import (
    Table,
    curve_figures,
    curve_table,
    direction,
    stage_figures,
)
from phenoscape_tune.search.importance import importances
from phenoscape_tune.search.marks import (
    IN_PARTS,
    STANDING,
    derived_keys,
    shown_marks,
    stage_points,
    status_of,
    tell_reach,
    tell_values,
)
from phenoscape_tune.search.markup import Page, bullets, folded, legend, paragraphs, table, text
from phenoscape_tune.search.priority import BATCH_SIZE, CONFIRM, Stage
from phenoscape_tune.search.record import FAILED, INFEASIBLE
from phenoscape_tune.search.report import INTERRUPTED, early_agreement, planned_budget, used_budget
from phenoscape_tune.search.result_figures import capacity_figure, coordinates_figure, importance_figure
from phenoscape_tune.search.result_section import result_section, train_command
from phenoscape_tune.search.verdict import Outcome
from phenoscape_tune.versions import versions

FILE = "report.html"


def write_report(conductor: Conductor, outcome: Outcome | None) -> Path:
    """Write `report.html` into the search's folder; `outcome` is what `report.decide` says.

    Works for a search that has not ended, too. About 5 MB: the script that draws the figures is part of the page.
    """
    from plotly.offline import get_plotlyjs

    path = conductor.plan.folder / FILE
    write_whole(path, build_report(conductor, outcome, get_plotlyjs()))
    return path


def build_report(conductor: Conductor, outcome: Outcome | None, script: str) -> str:
    """The page's HTML; `script` is plotly's."""
    page = Page()
    page.section("result", "The result", result_section(page, conductor, outcome))
    page.section("stages", "Stage by stage", _stages(page, conductor))
    page.section("curves", "Learning curves", _curves(page, conductor))
    page.section("importances", "Which settings mattered", _importances(page, conductor))
    page.section("coordinates", "All settings at once", _coordinates(page, conductor))
    page.section("failures", "What failed, and why", _failures(conductor))
    page.section("configuration", "The winner's configuration", _configuration(conductor, outcome))
    page.section("train", "How to train it", _train(conductor, outcome))
    page.section("details", "What this rests on", _details(conductor))
    keys = ", ".join(sorted(conductor.plan.space.parameters))
    lead = f"With which settings should the SimCLR encoder be trained? The result of a search for {keys}."
    return page.render(f"Search {conductor.plan.folder.name}", lead, script)


# Stages and trials


def _stages(page: Page, conductor: Conductor) -> str:
    parts, capacity = [], conductor.plan.capacity
    for stage in conductor.stages:
        if stage.name == CONFIRM:
            continue
        parts.append(f'<div class="stage" id="stage-{stage.number}"><h3>{text(story.stage_title(stage))}</h3>')
        points = stage_points(conductor, stage) if conductor.records(stage) else []
        words = paragraphs(story.describe_stage(conductor, stage))
        words += legend(shown_marks(points)) if stage.keys else ""
        parts.append(page.beside(words, stage_figures(conductor, stage) if points else []))
        if points:
            parts.append(folded("The trials of this stage", _trials_table(conductor, stage)))
        if BATCH_SIZE in stage.keys and capacity is not None:
            told = describe_capacity(capacity) + (f"; {capacity.explanation}" if capacity.explanation else "")
            figure = capacity_figure(capacity)
            parts.append(page.beside(paragraphs([f"{told[:1].upper()}{told[1:]}."]), [figure] if figure else []))
            capacity = None  # told once, with the first stage that varies it
        parts.append("</div>")
    return "".join(parts)


def _trials_table(conductor: Conductor, stage: Stage) -> str:
    keys = list(dict.fromkeys((*stage.keys, *derived_keys(stage))))
    rows: list[tuple[Any, ...]] = []
    for point in stage_points(conductor, stage):
        record = point.record
        ended = {STANDING: "best before this stage"}.get(point.mark, status_of(record))
        ended += " (earlier search)" if record.warm else ""
        ended += ", in parts" if point.in_parts else ""
        ended += ", best of the stage" if point.winner else ""
        compared = record.objective if point.objective is None else point.objective
        numbers = (compared, record.error, record.seconds)
        rows.append(
            (record.name, ended, len(record.curve), *(point.values[key] for key in keys), *numbers, record.reason)
        )
    metric = conductor.plan.objective
    objective = f"{metric.title} ({direction(metric)})"
    header = ("trial", "how it ended", "epochs", *keys, objective, "standard error", "seconds", "reason")
    return table(Table(header, rows), story.stage_title(stage))


def _curves(page: Page, conductor: Conductor) -> str:
    figures = curve_figures(conductor)
    if not figures:
        return paragraphs(["No trial has reported an epoch."])
    levels = conductor.plan.rungs.levels
    shown = (
        f"Dotted lines: the epochs at which trials were compared ({', '.join(map(str, levels))}). " if levels else ""
    )
    lines = [
        f"{shown}A line is a trial, its mark how it ended; thick: the best of the stage; thick and dashed: the best "
        f"before it. At a comparison one in {conductor.plan.rungs.factor} goes on."
    ]
    points = [p for stage in conductor.stages for p in stage_points(conductor, stage) if p.record.curve]
    marks = [mark for mark in shown_marks(points) if mark != IN_PARTS]
    parts = [paragraphs(lines), legend(marks), page.figures(figures)]
    parts.append(folded("The objective at each comparison", table(curve_table(conductor))))
    parts.append(
        f'<h3 id="early-stopping">Was it safe to stop early?</h3>{paragraphs(story.tell_agreement(conductor))}'
    )
    rows: list[tuple[Any, ...]] = [
        (each.epoch, each.unselected, each.unselected_trials, each.completed, each.trials)
        for each in early_agreement(conductor)
    ]
    header = ("epoch", "agreement: could not be stopped", "trials", "agreement: ran to the end", "trials")
    parts.append(table(Table(header, rows)) if rows else "")
    return "".join(parts)


def _importances(page: Page, conductor: Conductor) -> str:
    found = importances(conductor)
    if not found:
        return paragraphs(["One setting was searched: there is nothing to weigh it against."])
    lines = [
        "The share of the differences between trials that each setting explains (fANOVA, by Optuna). Only trials that "
        f"{tell_reach(conductor)} count: where early stopping removed the bad values of a setting, it looks less "
        "important than it is."
    ]
    for each in found:
        lead = f"{each.title}, {story.count(each.trials, 'trial')} that {tell_reach(conductor)}: "
        lines.append(lead + (each.remark or "see the figure") + ".")
        if not each.shares:
            lines[-1] = f"{each.title}: not shown, {each.remark}."
    return paragraphs(lines) + page.figures([importance_figure(each) for each in found if each.shares])


def _coordinates(page: Page, conductor: Conductor) -> str:
    figure = coordinates_figure(conductor)
    if figure is None:
        return paragraphs([f"It takes two trials that {tell_reach(conductor)}."])
    lines = [
        f"A line is a trial that {tell_reach(conductor)}; the darker, the better. Drag along an axis to see only the "
        "trials that pass there; a click beside the drag shows all again."
    ]
    return paragraphs(lines) + page.figures([figure])


def _failures(conductor: Conductor) -> str:
    bad = [record for record in conductor.records() if status_of(record) in (FAILED, INFEASIBLE, INTERRUPTED)]
    if not bad:
        return paragraphs(["No trial failed."])
    rows = [
        (r.name, status_of(r), len(r.curve), r.reason or None, tell_values(r.values) or "the defaults") for r in bad
    ]
    note = "Stopped early is no failure: those trials stand with their stages."
    return table(Table(("trial", "how it ended", "epochs", "reason", "values"), rows)) + paragraphs([note])


# What to do with it


def _configuration(conductor: Conductor, outcome: Outcome | None) -> str:
    if outcome is None:
        return paragraphs(["There is none: no trial was valid."])
    rows = story.changes(conductor, outcome)
    kept = "The winner is the configuration as it was given: nothing is changed."
    parts = [table(Table(("key", "the defaults", "the winner"), list(rows))) if rows else paragraphs([kept])]
    best = conductor.plan.folder / "best.yaml"
    if best.is_file():
        whole = best.read_text(encoding="utf-8", errors="replace")
        parts.append(folded("best.yaml, the whole configuration", f"<pre>{text(whole)}</pre>"))
    return "".join(parts)


def _train(conductor: Conductor, outcome: Outcome | None) -> str:
    plan = conductor.plan
    if outcome is None:
        return paragraphs(["Nothing yet. The reasons stand above; then search again."])
    lines = [
        f"This trains for {story.count(plan.base.max_epochs, 'epoch')} into {plan.folder / 'best'} (the trials of the "
        f"search ran at most {plan.rungs.max_epochs}). best.yaml is a plain configuration: edit it, or set a key on "
        "the command line, as in max_epochs=200."
    ]
    watch = f"tensorboard --logdir {shlex.quote(str(plan.folder))}"
    return f"<pre>{text(train_command(conductor))}\n{text(watch)}</pre>{paragraphs(lines)}"


def _details(conductor: Conductor) -> str:
    plan, metric = conductor.plan, conductor.plan.objective
    lines = [
        f"Images: {story.data_line(conductor)}.",
        f"Objective: {metric.title}, {direction(metric)}. Seed {plan.seed}.",
    ]
    planned, used = asdict(planned_budget(plan)), asdict(used_budget(conductor))
    budget = [(key.replace("_", " ").replace("gpu", "GPU"), planned[key], used[key]) for key in planned]
    parts = [paragraphs(lines), table(Table(("budget", "planned, at most", "used"), budget), "Budget")]
    parts.append(table(Table(("key", "range", "widened to"), _ranges(conductor)), "Search space"))
    if plan.notes:
        parts.append(f"<h3>Where the plan gave way</h3>{bullets(plan.notes)}")
    parts.append(folded("Versions", table(Table(("package", "version"), list(versions().items())))))
    files = [
        ("leaderboard.csv", "all trials"),
        ("summary.json", "the result for programs"),
        ("best.yaml", "the winner's configuration"),
    ]
    links = "".join(f'<li><a href="{name}">{name}</a>: {told}</li>' for name, told in files)
    parts.append(f"<h3>Beside this page</h3><ul>{links}</ul>")
    return "".join(parts)


def _ranges(conductor: Conductor) -> list[tuple[Any, ...]]:
    space, now = conductor.plan.space.parameters, conductor.ranges
    return [
        (key, story.tell_range(space[key]), story.tell_range(now[key]) if now[key] != space[key] else None)
        for key in sorted(space)
    ]
