"""Still pictures of a stage's trials, for TensorBoard, which shows no interactive figures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from html import unescape

from PIL import Image, ImageDraw, ImageFont

from phenoscape_tune.search.axes import Axis, axis_for
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.figures import direction
from phenoscape_tune.search.marks import (
    IN_PARTS,
    MARKS,
    WINNER,
    Point,
    short,
    shown_marks,
    stage_points,
)
from phenoscape_tune.search.priority import Stage

WIDTH, HEIGHT = 560, 420  # TensorBoard shows them at about two thirds of this
_FINE = 2  # drawn larger and made smaller: smooth edges
_LEFT, _RIGHT, _TOP, _BOTTOM, _STRIP = 64, 20, 56, 132, 34
_INK, _SOFT, _GRID = "#1a1a1a", "#4d5560", "#e3e6ea"


def stage_pictures(conductor: Conductor, stage: Stage) -> list[tuple[str, bytes]]:
    """For each key of a stage, by its name, a PNG of the objective over its values."""
    points = stage_points(conductor, stage) if conductor.records(stage) else []
    return [(key, _draw(conductor, stage, key, points)) for key in stage.keys] if points else []


def _draw(conductor: Conductor, stage: Stage, key: str, points: Sequence[Point]) -> bytes:
    metric = conductor.plan.objective
    axis = axis_for(key, conductor.study.ranges(stage)[key], [point.values[key] for point in points])
    known = [point.objective for point in points if point.objective is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.01
    low, high = low - margin, high + margin
    rest = len(known) < len(points)
    floor = HEIGHT - _BOTTOM - (_STRIP if rest else 0)

    def across(value: float) -> float:
        ends = [axis.scale(end) for end in axis.span]
        room = 0.04 * (ends[1] - ends[0]) if axis.choices is None else 0.6
        share = (axis.scale(value) - ends[0] + room) / (ends[1] - ends[0] + 2 * room)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def up(value: float) -> float:
        return floor - (value - low) / (high - low) * (floor - _TOP)

    image = Image.new("RGB", (WIDTH * _FINE, HEIGHT * _FINE), "white")
    pen = _Pen(ImageDraw.Draw(image))
    pen.write(_LEFT, 10, f"Stage {stage.number}: {metric.title} over {short(key)}", 17, _INK, "la")
    pen.write(_LEFT, 33, f"{direction(metric)}", 13, _SOFT, "la")
    for value in _round_numbers(low, high) if known else []:
        pen.line([(_LEFT, up(value)), (WIDTH - _RIGHT, up(value))], _GRID)
        pen.write(_LEFT - 8, up(value), f"{value:g}", 13, _SOFT, "rm")
    base = HEIGHT - _BOTTOM
    for value, name in _ticks(axis):
        pen.line([(across(value), _TOP), (across(value), base)], _GRID)
        pen.write(across(value), base + 6, name, 13, _SOFT, "ma")
    pen.write((_LEFT + WIDTH - _RIGHT) / 2, base + 26, str(short(key)), 14, _INK, "ma")
    pen.line([(_LEFT, _TOP), (_LEFT, base), (WIDTH - _RIGHT, base)], _SOFT)
    if rest:
        pen.line([(_LEFT, floor), (WIDTH - _RIGHT, floor)], _SOFT)
        pen.write(_LEFT - 8, base - _STRIP / 2, "failed", 13, _SOFT, "rm")
    places = axis.spread([point.values[key] for point in points])
    for overlaid in (False, True):  # rings and crosses above all the trials' own marks
        for point, place in zip(points, places, strict=True):
            y = base - _STRIP / 2 if point.objective is None else up(point.objective)
            marks = [point.mark] if not overlaid else [WINNER] * point.winner + [IN_PARTS] * point.in_parts
            for mark in marks:
                pen.mark(across(place), y, mark)
    x, y = float(_LEFT), HEIGHT - 72.0
    for mark in shown_marks(points):
        wide = pen.width(MARKS[mark].words, 13) + 40
        if x + wide > WIDTH and x > _LEFT:
            x, y = float(_LEFT), y + 20
        pen.mark(x + 6, y, mark, small=True)
        pen.write(x + 18, y, MARKS[mark].words, 13, _SOFT, "lm")
        x += wide
    file = io.BytesIO()
    image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return file.getvalue()


class _Pen:
    """Draws in the picture's own pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0) -> None:
        self._draw.line([(x * _FINE, y * _FINE) for x, y in points], colour, round(width * _FINE), "curve")

    def write(self, x: float, y: float, words: str, size: int, colour: str, anchor: str) -> None:
        self._draw.text((x * _FINE, y * _FINE), words, colour, ImageFont.load_default(size * _FINE), anchor)

    def width(self, words: str, size: int) -> float:
        return float(ImageFont.load_default(size * _FINE).getlength(words)) / _FINE

    def mark(self, x: float, y: float, name: str, small: bool = False) -> None:
        mark = MARKS[name]
        scale = 1.0 if small else mark.size / 10 if name == WINNER else 1.2
        for line in mark.lines:
            placed = [(x + scale * at_x, y + scale * at_y) for at_x, at_y in line]
            if mark.filled:
                self._draw.polygon([(at_x * _FINE, at_y * _FINE) for at_x, at_y in placed], mark.colour)
            else:
                self.line(placed, mark.colour, 1.7)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    # The figures' names are HTML.
    return [(value, unescape(name)) for value, name in axis.ticks] or [
        (value, f"{value:g}") for value in _round_numbers(*axis.span)
    ]


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to nine round numbers between two."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]
