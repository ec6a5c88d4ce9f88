"""The figures of what came out: repeats, importances, all values at once, speed by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from phenoscape_tune.search.axes import axis_for
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.figures import (
    BLACK,
    BLUE,
    WIDE,
    Figure,
    Table,
    axis_title,
    direction,
    hover_text,
    layout_of,
    trace_of,
)
from phenoscape_tune.search.importance import Importance
from phenoscape_tune.search.marks import searched_values, tell_values
from phenoscape_tune.search.record import COMPLETED, TrialRecord

if TYPE_CHECKING:  # the search's driver must not pay for torch
    from phenoscape_tune.training.capacity import Capacity

_SCALE = [[0.0, "#c3ccd5"], [0.5, "#5b9bc8"], [1.0, "#08306b"]]  # the best trial is the darkest


def confirmation_figures(conductor: Conductor, best: str | None) -> list[Figure]:
    """Each repeat of the candidates and the defaults, with mean and standard deviation: on both parts.

    `best` is the winner's name, which stands in bold.
    """
    runs = [record for record in conductor.records() if record.of and record.status == COMPLETED]
    figures = [_repeats_figure(conductor, runs, "validation part", {r.name: r.objective for r in runs}, best)]
    tested = {r.name: r.test_objective for r in runs if r.test_objective is not None}
    if tested:
        figures.append(_repeats_figure(conductor, runs, "test part", tested, best))
    return figures if runs else []


def _repeats_figure(
    conductor: Conductor, runs: Sequence[TrialRecord], part: str, values: Mapping[str, float | None], best: str | None
) -> Figure:
    metric, baseline = conductor.plan.objective, conductor.baseline
    names = list(dict.fromkeys(run.of for run in runs))
    labels = ["the defaults" if baseline and name == baseline.name else str(name) for name in names]
    seeds = sorted({run.seed or 0 for run in runs})
    data, rows = [], []
    for number, seed in enumerate(seeds):  # a line joins what was trained with the same seed: the pairs
        own = [run for run in runs if (run.seed or 0) == seed and values.get(run.name) is not None]
        shift = 0.16 * (number / max(1, len(seeds) - 1) - 0.5) if len(seeds) > 1 else 0.0
        text = [hover_text([f"{run.of}, seed {seed}", f"{metric.title} {values[run.name]:.4f}"]) for run in own]
        trace = trace_of([names.index(run.of) + shift for run in own], [values[run.name] for run in own])
        line, marker = {"color": "#c5ccd3", "width": 1}, {"color": BLUE, "size": 8}
        data.append({**trace, "mode": "lines+markers", "line": line, "marker": marker, "text": text})
        data[-1]["hovertemplate"] = "%{text}<extra></extra>"
    for place, (name, label) in enumerate(zip(names, labels, strict=True)):
        known = [value for run in runs if run.of == name and (value := values.get(run.name)) is not None]
        by_seed = [next((values.get(r.name) for r in runs if (r.of, r.seed) == (name, seed)), None) for seed in seeds]
        mean, sd = fmean(known) if known else None, stdev(known) if len(known) > 1 else None
        rows.append((label, *by_seed, mean, sd))
        bar = {"type": "data", "array": [sd or 0.0], "thickness": 2.5, "width": 9, "color": BLACK}
        marker = {"symbol": "line-ew-open", "size": 20, "color": BLACK, "line": {"width": 3, "color": BLACK}}
        if mean is not None:
            told = f"mean {mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}")
            mean_trace = trace_of([place + 0.24], [mean], marker=marker, error_y=bar, text=[hover_text([label, told])])
            data.append({**mean_trace, "hovertemplate": "%{text}<extra></extra>"})
    # A trial's name in two lines, so that four of them fit a phone.
    short = [escape(label).replace("-", "<br>", 1).replace("the ", "the<br>", 1) for label in labels]
    short = [f"<b>{label}</b>" if name == best else label for name, label in zip(names, short, strict=True)]
    ticks = {"tickvals": list(range(len(names))), "ticktext": short, "tickangle": 0, "tickfont": {"size": 12}}
    x_axis = {**ticks, "range": [-0.5, len(names) - 0.5]}
    alt = f"{metric.title} ({direction(metric)}) on the {part}, repeated with {len(seeds)} fresh seeds. "
    alt += "; ".join(f"{row[0]}: mean {row[-2]:.3f}" for row in rows if row[-2] is not None) + "."
    table = Table(("trial", *(f"seed {seed}" for seed in seeds), "mean", "standard deviation"), rows)
    layout = layout_of(320, x_axis, {"title": {"text": axis_title(metric)}})
    return Figure(f"On the {part}", alt, data, layout, table, least_width=90 + 85 * len(names))


def importance_figure(found: Importance) -> Figure:
    """Bars of how much of the differences each key explains."""
    keys = sorted(found.shares, key=lambda key: found.shares[key])
    shares = [found.shares[key] for key in keys]
    text = [f"{share:.0%}" if share >= 0.005 else "&lt;1%" for share in shares]
    bars: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "x": shares,
        "y": list(range(len(keys))),
        "marker": {"color": BLUE},
    }
    bars |= {"text": text, "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}
    x_axis = {"title": {"text": "share of the differences"}, "tickformat": ".0%", "range": [0, max(shares) * 1.15]}
    y_axis = {"tickvals": list(range(len(keys))), "ticktext": [escape(key) for key in keys], "ticks": ""}
    alt = "Importances: " + ", ".join(f"{key} {found.shares[key]:.0%}" for key in reversed(keys)) + "."
    table = Table(("key", "importance"), [(key, found.shares[key]) for key in reversed(keys)])
    return Figure(found.title, alt, [bars], layout_of(100 + 34 * len(keys), x_axis, y_axis, bargap=0.35), table)


def coordinates_figure(conductor: Conductor) -> Figure | None:
    """Parallel coordinates of the trials that are compared, best first; None for fewer than two."""
    metric, records = conductor.plan.objective, conductor.ranked()
    if len(records) < 2:
        return None
    objectives = [objective for record in records if (objective := conductor.score(record)) is not None]
    values = [searched_values(conductor, record) for record in records]
    dimensions = []
    ranges = conductor.ranges
    for key in sorted(ranges):
        column = [each[key] for each in values]
        dimensions.append(axis_for(key, ranges[key], column).dimension(column))
    low, high = min(objectives), max(objectives)
    margin = 0.02 * (high - low) or 0.01
    ends = {"range": [low - margin, high + margin], "tickformat": ".3~f"}
    dimensions.append({"label": f"{escape(metric.title)}<br>({direction(metric)})", "values": objectives, **ends})
    # By rank: one poor trial would leave all the others in one colour.
    line = {"color": list(range(len(records), 0, -1)), "colorscale": _SCALE, "showscale": False}
    labels = {"labelfont": {"size": 13}, "tickfont": {"size": 12}, "rangefont": {"size": 11, "color": "rgba(0,0,0,0)"}}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line, **labels}
    layout = layout_of(400, {}, {}) | {"margin": {"l": 60, "r": 100, "t": 84, "b": 24}}
    alt = f"Parallel coordinates of {len(records)} trials: a line each, through its values to its {metric.title}. "
    alt += f"The best, {objectives[0]:.3f}: {tell_values(values[0])}."
    keys = sorted(ranges)
    rows = [
        (record.name, *(each[key] for key in keys), objective)
        for record, each, objective in zip(records, values, objectives, strict=True)
    ]
    table = Table(("trial", *keys, metric.title), rows)
    return Figure("All searched values at once", alt, [trace], layout, table, WIDE, 110 * len(dimensions))


def capacity_figure(capacity: Capacity) -> Figure | None:
    """Images per second by the number that went through the network at once; None where nothing was measured."""
    sizes, speeds = list(capacity.images_per_second), list(capacity.images_per_second.values())
    if not sizes:
        return None
    text = [f"{speed:.0f}" if speed >= 10 else f"{speed:.2g}" for speed in speeds]
    bars: dict[str, Any] = {"type": "bar", "x": [str(size) for size in sizes], "y": speeds, "marker": {"color": BLUE}}
    bars |= {"text": text, "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip"}
    x_axis = {"type": "category", "title": {"text": "images at once"}}
    y_axis = {"title": {"text": "images per second"}, "rangemode": "tozero", "range": [0, max(speeds) * 1.15 or 1]}
    alt = "Images per second by the number of images at once: "
    alt += ", ".join(f"{size}: {each}" for size, each in zip(sizes, text, strict=True)) + "."
    table = Table(("images at once", "images per second"), list(zip(sizes, speeds, strict=True)))
    return Figure("Speed by batch size on this device", alt, [bars], layout_of(290, x_axis, y_axis, bargap=0.4), table)
