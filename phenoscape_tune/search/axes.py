"""Axes for searched values: logarithmic where the range is, named places for a choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from phenoscape_tune.search.marks import short, tell_value
from phenoscape_tune.search.parameter import Parameter

LONGEST_NAME = 24  # characters of a choice's name beyond which it is cut in a figure
_PLAIN = (1e-3, 1e4)  # numbers between these are written out


@dataclass(frozen=True)
class Axis:
    """The axis of one searched key.

    Attributes:
        layout: plotly's.
        logarithmic: whether plotly takes the logarithm; a parallel coordinate has to be given it.
        choices: the values of a choice, in their order; None for numbers.
        span: lowest and highest number.
        ticks: (place, name) of each tick.
    """

    key: str
    layout: dict[str, Any]
    logarithmic: bool
    choices: list[Any] | None
    span: tuple[float, float]
    ticks: list[tuple[float, str]] = field(default_factory=list)

    def place(self, value: Any) -> float:
        """Where a value stands on the axis."""
        return float(value) if self.choices is None else _index(self.choices, value)

    def spread(self, values: Sequence[Any]) -> list[float]:
        """Where values stand; equal ones of a choice side by side, so that none hides another."""
        places = [self.place(value) for value in values]
        if self.choices is None:
            return places
        total, seen = Counter(places), Counter[float]()
        shifted = []
        for place in places:
            width = min(0.3, 0.06 * (total[place] - 1))
            share = seen[place] / (total[place] - 1) - 0.5 if total[place] > 1 else 0.0
            shifted.append(place + width * share * 2)
            seen[place] += 1
        return shifted

    def scale(self, place: float) -> float:
        """A place as it is drawn: its logarithm on a logarithmic axis."""
        return math.log10(place) if self.logarithmic else place

    def dimension(self, values: Sequence[Any]) -> dict[str, Any]:
        """The axis of parallel coordinates, with the values on it."""
        ends = [self.scale(end) for end in self.span]
        ticks = {"tickvals": [self.scale(at) for at, _ in self.ticks], "ticktext": [name for _, name in self.ticks]}
        margin = 0.02 * (ends[1] - ends[0])
        placed = [self.scale(self.place(value)) for value in values]
        return {
            "label": escape(short(self.key)),
            "values": placed,
            "range": [ends[0] - margin, ends[1] + margin],
            **(ticks if self.ticks else {}),
        }

    def old_bounds(self, before: Parameter, searched: Parameter) -> list[dict[str, Any]]:
        """Lines at the bounds that a stage widened."""
        if self.choices is not None or before.low is None or searched.low is None:
            return []
        assert before.high is not None and searched.high is not None
        old = [before.low] if searched.low < before.low else []
        old += [before.high] if searched.high > before.high else []
        line = {"color": "#8a929c", "width": 1.5, "dash": "dash"}
        return [{"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line} for x in old]


def axis_for(key: str, parameter: Parameter, values: Sequence[Any]) -> Axis:
    """The axis of a key for its range and the values that trials had, which may lie outside."""
    title = {"title": {"text": escape(short(key))}}
    if parameter.type == "choice":
        choices = list(parameter.values or [])
        for value in values:
            if not any(_same(value, each) for each in choices):
                choices.append(value)
        names = [_name(value) for value in choices]
        ticks = [(float(index), name) for index, name in enumerate(names)]
        layout = {"tickvals": [at for at, _ in ticks], "ticktext": names, "range": [-0.6, len(choices) - 0.4]}
        return Axis(key, {**title, **layout}, False, choices, (0.0, max(1.0, len(choices) - 1.0)), ticks)
    assert parameter.low is not None and parameter.high is not None
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    low, high = min([parameter.low, *numbers]), max([parameter.high, *numbers])
    if parameter.type.startswith("log") and low > 0:
        title["title"]["text"] += " (log scale)"
        margin = 0.04 * math.log10(high / low)
        ticks = log_ticks(low, high, whole=parameter.type == "logint")
        layout = {
            "type": "log",
            "range": [math.log10(low) - margin, math.log10(high) + margin],
            "tickvals": [at for at, _ in ticks],
            "ticktext": [name for _, name in ticks],
        }
        return Axis(key, {**title, **layout}, True, None, (low, high), ticks)
    margin = 0.04 * (high - low)
    return Axis(key, {**title, "range": [low - margin, high + margin], "nticks": 7}, False, None, (low, high))


def log_ticks(low: float, high: float, whole: bool = False) -> list[tuple[float, str]]:
    """Ticks of a logarithmic axis: powers of ten; between few of these 2 and 5 too; of whole numbers powers of two."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if whole:
        powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
        step = max(1, len(powers) // 6)
        found = [float(2**n) for n in powers[::step] if low <= 2**n <= high]
    else:
        step = max(1, len(exponents) // 6)
        found = [10.0**n for n in exponents[::step] if low <= 10.0**n * (1 + 1e-9) and 10.0**n <= high * (1 + 1e-9)]
    if len(found) < 3:
        multiples = (1, 2, 5) if high / low > 4 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        found = [m * 10.0**n for n in exponents for m in multiples if low <= m * 10.0**n <= high]
    if len(found) < 2:
        found = [low, high]
    return [(at, _number(at)) for at in found]


def _number(value: float) -> str:
    if _PLAIN[0] <= value < _PLAIN[1]:
        return f"{value:g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _name(value: Any) -> str:
    text = tell_value(value)
    return escape(text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…")


def _same(one: Any, other: Any) -> bool:
    # True == 1 in Python, and not in a configuration.
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _index(choices: Sequence[Any], value: Any) -> float:
    return float(next(index for index, each in enumerate(choices) if _same(value, each)))
