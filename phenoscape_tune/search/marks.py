"""How each trial is shown: one shape, colour and name for every way that a trial can end, the same in all figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from phenoscape_tune.layers import get_key
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.priority import BATCH_SIZE, Stage
from phenoscape_tune.search.record import CAPPED, COMPLETED, FAILED, INFEASIBLE, PRUNED, RUNNING, TrialRecord
from phenoscape_tune.search.report import INTERRUPTED

Line = tuple[tuple[float, float], ...]
WARM, WARM_PRUNED, STANDING, WINNER, IN_PARTS = "warm", "warm_pruned", "standing", "winner", "in_parts"


@dataclass(frozen=True)
class Mark:
    """How a kind of trial is drawn, and what it is called.

    Attributes:
        symbol: plotly's name of the marker.
        colour: from the palette of Okabe and Ito (2008), darkened where it would be faint on white.
        words: for the legend.
        lines: the same shape, for what plotly does not draw: lines of points in a square of -8..8.
        filled: whether the (closed) shape is filled.
        size: pixels in a figure.
    """

    symbol: str
    colour: str
    words: str
    lines: tuple[Line, ...]
    filled: bool = False
    size: int = 10

    @property
    def path(self) -> str:
        """The shape as an SVG path."""
        return "".join(f"M{' '.join(f'{x:g},{y:g}' for x, y in line)}" for line in self.lines)


def _ring(radii: Sequence[float], turn: float = -90.0) -> tuple[Line]:
    """A closed line of points around the middle, the first one at the top."""
    angles = [math.radians(turn + 360 * index / len(radii)) for index in range(len(radii))]
    points = [(round(r * math.cos(a), 2), round(r * math.sin(a), 2)) for r, a in zip(radii, angles, strict=True)]
    return ((*points, points[0]),)


MARKS = {
    COMPLETED: Mark("circle", "#0072b2", "ran to its end", _ring([5] * 24), filled=True),
    CAPPED: Mark("square", "#0072b2", "ran to the stage's ceiling", _ring([6] * 4, 45), filled=True),
    PRUNED: Mark("triangle-down-open", "#68707a", "stopped early (its value then)", _ring([6.5] * 3, 90)),
    FAILED: Mark("x-thin-open", "#c43c00", "failed", (((-5, -5), (5, 5)), ((-5, 5), (5, -5)))),
    INFEASIBLE: Mark("square-open", "#a0437f", "out of memory", _ring([7] * 4, 45)),
    INTERRUPTED: Mark(
        "hourglass-open", "#1a1a1a", "interrupted (its value then)", (((-5, -5), (5, -5), (-5, 5), (5, 5), (-5, -5)),)
    ),
    WARM: Mark("diamond", "#007a5a", "earlier search, ran to its end", _ring([6.5] * 4), filled=True, size=11),
    WARM_PRUNED: Mark("diamond-open", "#007a5a", "earlier search, stopped early", _ring([6.5] * 4), size=11),
    STANDING: Mark("star", "#1a1a1a", "best before this stage", _ring([7, 3] * 5), filled=True, size=13),
    WINNER: Mark("circle-open", "#1a1a1a", "best of the stage", _ring([7.3] * 24), size=21),
    IN_PARTS: Mark(
        "cross-thin-open",
        "#1a1a1a",
        "its batch went through the network in parts",
        (((0, -7), (0, 7)), ((-7, 0), (7, 0))),
        size=17,
    ),
}
WITHOUT_VALUE = (FAILED, INFEASIBLE)  # what they last measured is no score


@dataclass(frozen=True)
class Point:
    """A trial as a stage's figures show it.

    Attributes:
        mark: a key of MARKS.
        values: of the stage's keys, and of all other searched ones, as the trial ran.
        objective: the value to draw, at the epochs at which the stage's trials are compared; None where there is none,
            or it is no score.
        winner: whether it is the best when the stage ended.
        in_parts: whether its batch did not fit at once (gradient cache).
    """

    record: TrialRecord
    mark: str
    values: dict[str, Any]
    objective: float | None
    winner: bool = False
    in_parts: bool = False


def tell_reach(conductor: Conductor) -> str:
    """What the trials that are compared have in common."""
    return "reached the epoch of comparison" if conductor.plan.space.scheduler.pasha else "ran to the end"


def status_of(record: TrialRecord) -> str:
    """How a trial ended; one that was running when the search stopped is interrupted."""
    return INTERRUPTED if record.status == RUNNING else record.status


def stage_winner(conductor: Conductor, stage: Stage) -> TrialRecord | None:
    """The best trial when a stage ended; None for one that has not."""
    names = [each.name for each in conductor.stages]
    index = names.index(stage.name)
    return conductor.winners[index] if index < len(conductor.winners) else None


def stage_points(conductor: Conductor, stage: Stage) -> list[Point]:
    """The trials of a stage with those that it was told: the best before it, and those of an earlier search."""
    before = conductor.before(stage)
    marked = [] if before is None else [(before, STANDING)]
    for record in conductor.study.warm_trials(stage):
        marked.append((record, WARM if record.status == COMPLETED else WARM_PRUNED))
    marked += [(record, status_of(record)) for record in conductor.records(stage)]
    return [_point(conductor, stage, record, mark) for record, mark in marked]


def _point(conductor: Conductor, stage: Stage, record: TrialRecord, mark: str) -> Point:
    winner = stage_winner(conductor, stage)
    won = winner is not None and record.name == winner.name
    objective = None if mark in WITHOUT_VALUE else conductor.score(record, stage)
    return Point(record, mark, searched_values(conductor, record), objective, won, in_parts(conductor, record))


def searched_values(conductor: Conductor, record: TrialRecord) -> dict[str, Any]:
    """The values of all searched keys with which a trial ran, and what a stage derived from them."""
    defaults = conductor.plan.base.to_mapping()
    return {key: get_key(defaults, key) for key in sorted(conductor.plan.space.parameters)} | record.values


def in_parts(conductor: Conductor, record: TrialRecord) -> bool:
    """Whether a trial's batch went through the network in parts (gradient cache)."""
    config = conductor.config_of(record)
    return isinstance(config.micro_batch_size, int) and config.micro_batch_size < config.batch_size


def shown_marks(points: Sequence[Point]) -> list[str]:
    """The marks that a legend of these points needs, in the order of MARKS."""
    used = {point.mark for point in points}
    used |= {WINNER for point in points if point.winner} | {IN_PARTS for point in points if point.in_parts}
    return [mark for mark in MARKS if mark in used]


def tell_value(value: Any) -> str:
    """A value in few characters, spelt as YAML does."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short(key: str) -> str:
    """A configuration key as figures and tables name it."""
    return key.removeprefix("transforms.")


def tell_values(values: dict[str, Any], keys: Iterable[str] | None = None) -> str:
    """`lr=0.01, temperature=0.2`."""
    return ", ".join(f"{short(key)}={tell_value(values[key])}" for key in (keys or values) if key in values)


def searched_records(conductor: Conductor) -> list[TrialRecord]:
    """All trials but the confirmation's."""
    return [record for record in conductor.records() if not record.of]


def derived_keys(stage: Stage) -> tuple[str, ...]:
    """Keys that a stage sets itself beside the ones that it varies."""
    return ("lr",) if stage.name == BATCH_SIZE else ()
