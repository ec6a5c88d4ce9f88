"""The range of one searched key: what it may hold, its values and its parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from phenoscape_tune.errors import UserError
from phenoscape_tune.key_faults import MadeByName, nearest
from phenoscape_tune.transforms import Keys

Scalar = bool | int | float | str | None
LONGEST_GRID = 64  # values of one key beyond which a range is no longer tried value by value


class Parameter(Keys, MadeByName):
    """The range of one searched key: `low` and `high`, perhaps in steps of `step`, or a choice's `values`.

    `default` is tried first. Raises UserError where they have no meaning.
    """

    model_config = ConfigDict(coerce_numbers_to_str=False)  # a value stays the number that it is

    type: Literal["uniform", "loguniform", "int", "logint", "choice"]
    low: float | None = None
    high: float | None = None
    step: float | None = Field(default=None, gt=0)
    values: list[Scalar] | None = None
    default: Scalar = None

    @classmethod
    def refuse(cls, values: Mapping[str, Any], source: str) -> None:
        """Raise UserError of all faults that the range has by itself; its key is judged with the space."""
        try:
            cls.model_validate(dict(values))
        except ValidationError as error:
            faults = [f"{source}: {describe(fault, cls.model_fields)}" for fault in error.errors()]
            raise UserError("\n".join(faults)) from None

    @model_validator(mode="after")
    def _consistent(self) -> Parameter:
        if self.type == "choice":
            self._check_choice()
        else:
            self._check_range()
        return self

    def _check_choice(self) -> None:
        if any(value is not None for value in (self.low, self.high, self.step)):
            raise ValueError("a choice has values, not low, high or step")
        if not self.values:
            raise ValueError("the choice is empty; write values: [a, b]")
        if len({(type(value), value) for value in self.values}) < len(self.values):
            raise ValueError(f"the choice {self.values} holds a value twice; write each once")
        if self.default is not None and self.default not in self.values:
            raise ValueError(f"default {self.default!r} is none of the values {self.values}")

    def _check_range(self) -> None:
        if self.values is not None:
            raise ValueError(f"'values' goes with type: choice; a {self.type} has low and high")
        if self.low is None or self.high is None:
            raise ValueError(f"a {self.type} needs low and high")
        if self.low > self.high:
            raise ValueError(f"the bounds are reversed: low {self.low:g} is above high {self.high:g}; swap them")
        if self.low == self.high:
            raise ValueError(f"low and high are both {self.low:g}; set the key to that value in the configuration")
        if self.type.startswith("log") and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; write low > 0, for example {self.high / 1000:g}")
        if self.type in ("int", "logint") and any(
            value is not None and value != int(value) for value in (self.low, self.high, self.step)
        ):
            raise ValueError(f"a {self.type} has whole numbers for low, high and step")
        if self.step is not None and self.type.startswith("log"):
            raise ValueError(f"a {self.type} has no step")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step {self.step:g} is wider than the range; write at most {self.high - self.low:g}")
        if self.default is not None and not self.contains(self.default):
            steps = "" if self.step is None else f", in steps of {self.step:g}"
            raise ValueError(f"default {self.default!r} is not between {self.low:g} and {self.high:g}{steps}")

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range (on its grid, where there is a step)."""
        if self.type == "choice":
            assert self.values is not None
            return value in self.values
        assert self.low is not None and self.high is not None
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        step = self.step or (1.0 if self.type in ("int", "logint") else None)
        return step is None or math.isclose((value - self.low) / step, round((value - self.low) / step), abs_tol=1e-6)

    @property
    def grid(self) -> list[Scalar] | None:
        """All values, where they are few enough to be counted (a choice, a short range of whole numbers or steps)."""
        if self.type == "choice":
            return list(self.values or [])
        assert self.low is not None and self.high is not None
        whole = self.type in ("int", "logint")
        step = self.step or (1.0 if whole else None)
        if step is None or (self.high - self.low) / step >= LONGEST_GRID:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        values = [self.at_step(i) for i in range(count)]
        return [int(value) for value in values] if whole else list(values)

    def at_step(self, number: int) -> float:
        """The value at a step of a stepped range, as it is written: 0.1 + 2 * 0.1 is not 0.3."""
        assert self.low is not None and self.high is not None
        return min(max(float(f"{self.low + number * (self.step or 1.0):.12g}"), self.low), self.high)

    def size_in_grid(self, values: int) -> int:
        """Points of this parameter in an exhaustive grid that has `values` points a range."""
        return (
            len(self.grid) if self.grid is not None and (self.type == "choice" or len(self.grid) < values) else values
        )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest value; None for a choice of other things than numbers."""
        if self.type != "choice":
            assert self.low is not None and self.high is not None
            return self.low, self.high
        numbers = [v for v in self.values or [] if isinstance(v, int | float) and not isinstance(v, bool)]
        return (min(numbers), max(numbers)) if len(numbers) == len(self.values or []) > 1 else None

    def narrowed(self, around: Scalar, share: float = 0.5) -> Parameter:
        """The part of the range, `share` of its length, that lies around a value; of a choice the neighbours."""
        if self.type == "choice":
            values = self.values or []
            numbers = [v for v in values if isinstance(v, int | float)]
            if around in values:
                place = values.index(around)
            elif len(numbers) == len(values) and isinstance(around, int | float):
                # A learning rate that was scaled with the batch size lies between the values.
                place = numbers.index(min(numbers, key=lambda value: abs(value - around)))
            else:
                return self.model_copy(update={"default": None})
            return self.model_copy(update={"values": values[max(0, place - 1) : place + 2], "default": None})
        assert self.low is not None and self.high is not None
        if not isinstance(around, int | float):  # nothing has won yet, or the configuration leaves the key open
            return self.model_copy(update={"default": None})
        log = self.type.startswith("log")
        low, high, at = (
            math.log(v) if log else v for v in (self.low, self.high, min(max(around, self.low), self.high))
        )
        half = share * (high - low) / 2
        ends = [max(low, at - half), min(high, at + half)]
        ends = [math.exp(end) if log else end for end in ends]
        if self.type in ("int", "logint") or self.step is not None:
            step = self.step or 1.0
            first, last = (round((end - self.low) / step) for end in ends)
            ends = [self.low + step * first, self.low + step * max(last, first + 1)]
            if ends[1] > self.high:
                ends = [end - step for end in ends]
        # Logarithm and back must not leave the range, or lose the value, by the last digit.
        inside = min(max(around, self.low), self.high)
        ends = [max(min(ends[0], inside), self.low), min(max(ends[1], inside), self.high)]
        return self.model_copy(update={"low": ends[0], "high": ends[1], "default": None})

    def extremes(self) -> list[tuple[str, Scalar]]:
        """The values by which the range is checked against the configuration's schema, with the name of each."""
        if self.type == "choice":
            return [(f"values[{i}]", value) for i, value in enumerate(self.values or [])]
        whole = self.type in ("int", "logint")
        bounds = (("low", self.low), ("high", self.high))
        return [(name, int(bound) if whole and bound is not None else bound) for name, bound in bounds]


def describe(fault: ErrorDetails, known: Iterable[str]) -> str:
    """One validation fault of a search space as `key: what is wrong; what to write instead`; `known`: keys there."""
    location = [str(part) for part in fault["loc"]]
    message = fault["msg"].removeprefix("Value error, ")
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(location[-1], known)}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    if fault["type"] == "too_short":
        return f"{key}: names no key to search, for example lr: {{type: loguniform, low: 1.0e-5, high: 1.0e-1}}"
    if fault["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {fault['input']!r} is not valid: {message[0].lower()}{message[1:]}"
