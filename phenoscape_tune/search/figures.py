"""The figures of a search's report, as plotly's own JSON, each with its numbers as a table.

Plain mappings, and not plotly's Python objects: the page needs nothing of plotly but its script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from phenoscape_tune.evaluate.objective import Metric, trial_objective
from phenoscape_tune.search.axes import axis_for
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.course import WIDENED
from phenoscape_tune.search.marks import (
    IN_PARTS,
    MARKS,
    STANDING,
    WINNER,
    Point,
    shown_marks,
    stage_points,
    status_of,
    tell_values,
)
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS, Stage
from phenoscape_tune.search.record import CAPPED, COMPLETED, PRUNED

PANEL, WIDE = "panel", "wide"
MOST_ERROR_BARS = 40  # beyond which they hide the points
GREY, BLACK, BLUE = "#8a929c", "#1a1a1a", "#0072b2"


@dataclass(frozen=True)
class Table:
    """Rows of plain values, the numbers of a figure."""

    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        title: a few words above it.
        alt: what it shows, for those who do not see it.
        data, layout: plotly's.
        table: its numbers; None where the section has one table for several figures.
        width: PANEL stands beside others where there is room, WIDE has a row of its own.
        least_width: pixels below which it would be unreadable: a phone scrolls it sideways.
    """

    title: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    table: Table | None = None
    width: str = PANEL
    least_width: int = 0


def direction(metric: Metric) -> str:
    return "higher is better" if metric.higher_is_better else "lower is better"


def axis_title(metric: Metric) -> str:
    return f"{metric.title}<br>({direction(metric)})"


def layout_of(height: int, x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    axis = {"gridcolor": "#e3e6ea", "zeroline": False, "linecolor": GREY, "ticks": "outside", "automargin": True}
    return {
        "height": height,
        "margin": {"l": 66, "r": 14, "t": 14, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": BLACK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "xaxis": _titled({**axis, **x}),
        "yaxis": _titled({**axis, **y}),
        **more,
    }


def _titled(axis: dict[str, Any]) -> dict[str, Any]:
    return axis | {"title": {"font": {"size": 13}, "standoff": 10, **axis["title"]}} if "title" in axis else axis


def hover_text(lines: Iterable[str]) -> str:
    """Lines of a hover box: plotly reads them as a little HTML."""
    return "<br>".join(escape(line if len(line) <= 90 else f"{line[:89]}…") for line in lines if line)


def _hover(point: Point, metric: Metric) -> str:
    record = point.record
    shown = record.objective if point.objective is None else point.objective
    value = "" if shown is None else f"{metric.title} {shown:.4f}"
    if record.error is not None and shown is not None:
        value += f" ± {record.error:.4f}"
    parts = "its batch went through the network in parts" if point.in_parts else ""
    told = f"{MARKS[point.mark].words}, {len(record.curve)} epochs"
    return hover_text([record.name, tell_values(point.values), value, told, record.reason, parts])


def _marker(mark: str) -> dict[str, Any]:
    drawn = MARKS[mark]
    line = {"width": 1 if drawn.filled else 2, "color": "#ffffff" if drawn.filled else drawn.colour}
    return {"symbol": drawn.symbol, "color": drawn.colour, "size": drawn.size, "line": line}


def stage_figures(conductor: Conductor, stage: Stage) -> list[Figure]:
    """For each key of a stage the objective over its values; trials without an objective stand in a strip below."""
    points = stage_points(conductor, stage)
    return [_value_figure(conductor, stage, key, points) for key in stage.keys] if points else []


def _value_figure(conductor: Conductor, stage: Stage, key: str, points: Sequence[Point]) -> Figure:
    metric = conductor.plan.objective
    space, opened = conductor.plan.space.parameters[key], bool(conductor.records(stage))
    searched = conductor.study.ranges(stage)[key] if opened else space
    axis = axis_for(key, searched, [point.values[key] for point in points])
    valued = [point for point in points if point.objective is not None]
    rest = [point for point in points if point.objective is None]
    data: list[dict[str, Any]] = []
    compared = {record.name for record in conductor.comparable([p.record for p in valued], stage)}
    ran = sorted((p for p in valued if p.record.name in compared), key=lambda point: axis.place(point.values[key]))
    if len(stage.keys) == 1 and len(ran) > 1:  # with several keys, neighbours on one axis differ in the others
        places = [axis.place(p.values[key]) for p in ran]
        line = {"color": BLUE, "width": 1.5, "dash": "dot"}
        data.append(trace_of(places, [p.objective for p in ran], mode="lines", line=line, hoverinfo="skip"))
    for group, y_axis in ((valued, "y"), (rest, "y2" if valued else "y")):
        for mark in shown_marks(group):
            chosen = [p for p in group if _has(p, mark)]
            heights = ["failed" if p.objective is None else p.objective for p in chosen]
            trace = trace_of(axis.spread([p.values[key] for p in chosen]), heights, yaxis=y_axis, marker=_marker(mark))
            if mark in (WINNER, IN_PARTS):  # drawn over the trial's own mark
                trace["hoverinfo"] = "skip"
            else:
                trace |= {"text": [_hover(p, metric) for p in chosen], "hovertemplate": "%{text}<extra></extra>"}
            if mark in (COMPLETED, CAPPED) and group is valued and len(chosen) <= MOST_ERROR_BARS:
                errors = [p.record.error or 0.0 for p in chosen]
                trace["error_y"] = {"type": "data", "array": errors, "thickness": 1, "width": 3, "color": GREY}
            data.append(trace)
    y: dict[str, Any] = {"title": {"text": axis_title(metric)}}
    widened = key in (conductor.study.get_note(stage, WIDENED) or {})
    more: dict[str, Any] = {"shapes": axis.old_bounds(space, searched) if widened else []}
    if rest:
        strip = {"type": "category", "zeroline": False, "fixedrange": True, "automargin": True, "showgrid": False}
        if valued:
            y["domain"] = [0.2, 1.0]
            more["yaxis2"] = {**strip, "domain": [0.0, 0.12], "linecolor": GREY}
            axis.layout["anchor"] = "y2"
        else:
            y = strip
    best = next((p for p in points if p.winner), None)
    told = f"The best is at {tell_values(best.values, [key])}" if best else "None of them ran to its end"
    alt = f"{metric.title} ({direction(metric)}) of {len(points)} trials over {key}. {told}."
    layout = layout_of(330 if valued else 130, axis.layout, y, **more)
    return Figure(f"{metric.title} over {key}", alt, data, layout)


def _has(point: Point, mark: str) -> bool:
    return {WINNER: point.winner, IN_PARTS: point.in_parts}.get(mark, point.mark == mark)


def trace_of(x: Sequence[Any], y: Sequence[Any], **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "x": list(x), "y": list(y), "mode": "markers", **more}


def curve_figures(conductor: Conductor) -> list[Figure]:
    """The learning curves of each stage, with the epochs at which its trials were compared."""
    figures = []
    known = [value for record in conductor.records() for value in record.curve if not record.of]
    for stage in conductor.stages:
        points = [point for point in stage_points(conductor, stage) if point.record.curve]
        # The defaults' curve stands in the next stage's figure too, as the best before it.
        alone = stage.name == DEFAULTS and any(conductor.records(later) for later in conductor.stages[1:])
        if stage.name != CONFIRM and conductor.records(stage) and points and not alone:
            figures.append(_curves_figure(conductor, stage, points, (min(known, default=0), max(known, default=1))))
    return figures


def _curves_figure(conductor: Conductor, stage: Stage, points: Sequence[Point], span: tuple[float, float]) -> Figure:
    metric, levels = conductor.plan.objective, conductor.plan.rungs.levels
    data = []
    for mark in [*shown_marks([point for point in points if not point.winner]), WINNER]:
        chosen = [p for p in points if (p.winner if mark == WINNER else p.mark == mark and not p.winner)]
        if not chosen:
            continue
        x: list[int | None] = []
        y: list[float | None] = []
        for point in chosen:  # one trace for all of them, with gaps: three hundred traces are slow
            x += [*range(1, len(point.record.curve) + 1), None]
            y += [*point.record.curve, None]
        bold = mark in (WINNER, STANDING)
        colour = MARKS[COMPLETED if mark == WINNER else mark].colour
        line = {"color": colour, "width": 3 if bold else 1.2, "dash": "dash" if mark == STANDING else "solid"}
        data.append(trace_of(x, y, mode="lines", line=line, hoverinfo="skip", opacity=1 if bold else 0.65))
        ends = trace_of([len(p.record.curve) for p in chosen], [p.record.curve[-1] for p in chosen])
        ends["marker"] = _marker(chosen[0].mark if mark == WINNER else mark)
        data.append(ends | {"text": [_hover(p, metric) for p in chosen], "hovertemplate": "%{text}<extra></extra>"})
    if won := [p for p in points if p.winner]:
        ring = trace_of([len(p.record.curve) for p in won], [p.record.curve[-1] for p in won], marker=_marker(WINNER))
        data.append(ring | {"hoverinfo": "skip"})
    line = {"color": GREY, "width": 1, "dash": "dot"}
    rungs = [{"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": e, "x1": e, "line": line} for e in levels]
    margin = 0.06 * (span[1] - span[0]) or 0.01
    epochs = conductor.plan.rungs.max_epochs
    x_axis = {"title": {"text": "epoch"}, "range": [0, epochs * 1.06], "tickformat": "d"}
    y_axis = {"title": {"text": axis_title(metric)}, "range": [span[0] - margin, span[1] + margin]}
    stopped = sum(p.mark == PRUNED for p in points)
    alt = f"Learning curves of {len(points)} trials in stage {stage.name}: {metric.title} ({direction(metric)}) by "
    alt += f"epoch, up to {epochs}. {stopped} were stopped early; trials were compared at {_listed(levels)}."
    return Figure(f"Stage {stage.number}: {stage.name}", alt, data, layout_of(300, x_axis, y_axis, shapes=rungs))


def _listed(levels: Sequence[int]) -> str:
    return f"epoch {', '.join(map(str, levels))}" if levels else "no epoch before the end"


def curve_table(conductor: Conductor) -> Table:
    """The objective of each trial at the epochs at which trials were compared, and at its end."""
    levels = conductor.plan.rungs.levels
    rows = []
    for record in conductor.records():
        if not record.of:
            reached = [trial_objective(record.curve[:e]) if len(record.curve) >= e else None for e in levels]
            rows.append((record.name, status_of(record), len(record.curve), *reached, record.objective))
    return Table(("trial", "how it ended", "epochs", *(f"at epoch {e}" for e in levels), "at its end"), rows)


def finite(value: Any) -> Any:
    """The same with None instead of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
