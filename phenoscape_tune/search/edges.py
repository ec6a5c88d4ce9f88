"""Winners at the edge of their range: where the best may lie beyond it, and the range to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import set_key
from phenoscape_tune.search.parameter import Parameter

MARGIN = 0.05  # of the range, on a logarithmic scale where it has one


@dataclass(frozen=True)
class Edge:
    """A value at the edge of its range.

    Attributes:
        side: lower or upper.
        further: the bound to try instead, which the configuration accepts; None where there is none.
        choice: the range is a list of values, and `further` is one to add.
    """

    key: str
    value: float
    side: str
    further: float | None
    choice: bool = False

    @property
    def bound(self) -> str:
        return "low" if self.side == "lower" else "high"

    def __str__(self) -> str:
        advised = ", beyond which little is possible"
        if self.further is not None:
            advised = (
                f"; add {self.further:g} to its values" if self.choice else f"; try {self.bound}: {self.further:g}"
            )
        shown = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.key}={shown} is at the {self.side} edge of its range{advised}"


def find_edge(key: str, parameter: Parameter, value: Any) -> Edge | None:
    """The edge at which a value stands; None inside the range, and for values without an order."""
    bounds = parameter.bounds
    if bounds is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high = bounds
    if parameter.type != "choice" and parameter.grid:
        high = float(parameter.grid[-1])  # type: ignore[arg-type]  # the last value that a trial can have
    choice, logarithmic = parameter.type == "choice", _is_logarithmic(parameter)
    share = 0.0 if choice else MARGIN  # a choice's first and last value are its edges
    margin = (high / low) ** share if logarithmic else share * (high - low)
    if value <= (low * margin if logarithmic else low + margin):
        side = "lower"
    elif value >= (high / margin if logarithmic else high - margin):
        side = "upper"
    else:
        return None
    return Edge(key, value, side, _further(key, parameter, side, value), choice)


def _is_logarithmic(parameter: Parameter) -> bool:
    """On whose scale a range is widened. A batch size doubles; so do choices that were written in ratios."""
    assert parameter.bounds is not None
    return parameter.type.startswith("log") or (parameter.type == "choice" and parameter.bounds[0] > 0)


def _further(key: str, parameter: Parameter, side: str, value: float) -> float | None:
    """The bound to try next: half the range further, or as far as the configuration accepts; None where nothing is."""
    assert parameter.bounds is not None
    low, high = min(parameter.bounds[0], value), max(parameter.bounds[1], value)
    logarithmic = _is_logarithmic(parameter)
    whole = all(isinstance(bound, int) for bound in (low, high)) or parameter.type in ("int", "logint")
    for share in (1 / 2, 1 / 4, 1 / 8, 1 / 16):
        if logarithmic:
            ratio = 2.0 if parameter.type == "choice" else (high / low) ** share
            further = low / ratio if side == "lower" else high * ratio
        else:
            further = low - share * (high - low) if side == "lower" else high + share * (high - low)
        if parameter.step is not None:  # the widened range keeps the grid
            steps = -(-abs(further - low) // parameter.step)
            further = low - steps * parameter.step if side == "lower" else low + steps * parameter.step
        if whole:
            rounded: float = math.floor(further) if side == "lower" else math.ceil(further)
        else:
            rounded = float(f"{further:{'.12g' if parameter.step is not None else '.3g'}}")
        if rounded not in (low, high, value) and _is_accepted(key, rounded):
            return rounded
    return None


def widen(key: str, parameter: Parameter, value: Any) -> Parameter | None:
    """The range widened beyond the edge at which a value stands; None where it stands at none, or cannot be widened.

    A choice is not widened: its author named all values.
    """
    edge = find_edge(key, parameter, value)
    if edge is None or edge.further is None or parameter.type == "choice":
        return None
    return parameter.model_copy(update={edge.bound: float(edge.further)})


def find_edges(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> list[Edge]:
    """The edges at which searched values stand."""
    found = (find_edge(key, parameters[key], value) for key, value in values.items() if key in parameters)
    return [edge for edge in found if edge is not None]


def _is_accepted(key: str, value: float) -> bool:
    values: dict[str, object] = {}
    set_key(values, key, value)
    try:
        build_config(values)
    except UserError:
        return False
    return True
