from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ranges

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.parameter import LONGEST_GRID, Parameter
from phenoscape_tune.search.sampler import spread_points

# What a range holds


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Parameter(type="uniform", low=0.1, high=0.5), [0.1, 0.3, 0.5], [0.09, 0.51, "0.3", None, True]),
        (Parameter(type="uniform", low=0.1, high=0.5, step=0.1), [0.1, 0.30000000000000004, 0.5], [0.25]),
        (Parameter(type="int", low=0, high=9), [0, 5, 9], [10, 4.5, False]),
        (Parameter(type="int", low=1, high=9, step=4), [1, 5, 9], [3]),
        (Parameter(type="choice", values=[16, 32]), [16, 32], [24, None]),
        (Parameter(type="choice", values=[None, "DEFAULT"]), [None, "DEFAULT"], ["default"]),
    ],
)
def test_a_range_knows_what_lies_in_it(parameter: Parameter, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not parameter.contains(value)] == []
    assert [value for value in outside if parameter.contains(value)] == []


@given(st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_bounds_are_accepted_in_one_order_only(one: float, other: float) -> None:
    def accepts(low: float, high: float) -> bool:
        try:
            Parameter(type="loguniform", low=low, high=high)
        except UserError:
            return False
        return True

    assert accepts(one, other) == (one < other)
    assert accepts(other, one) == (other < one)


# The part of a range around a value


def some_value(parameter: Parameter, data: st.DataObject) -> Any:
    """A value that a trial may have."""
    seed = data.draw(st.integers(0, 999))
    ends = [value for _, value in parameter.extremes()] if parameter.step is None else []
    return data.draw(st.sampled_from([*(spread_points({"x": parameter}, 3, seed)[i]["x"] for i in range(3)), *ends]))


@given(ranges(fractions_in_steps=False), st.floats(0.05, 1), st.data())
def test_a_narrowed_range_lies_in_the_old_one_and_holds_the_value(
    parameter: Parameter, share: float, data: st.DataObject
) -> None:
    value = some_value(parameter, data)
    narrow = parameter.narrowed(value, share)
    assert narrow.contains(value)
    # What a file could hold: built anew it is checked.
    assert Parameter(**narrow.model_dump()) == narrow
    assert narrow.type == parameter.type
    if parameter.type == "choice":
        values, kept = parameter.values or [], narrow.values or []
        assert len(kept) <= 3
        assert kept == values[values.index(kept[0]) :][: len(kept)]
        return
    assert parameter.low is not None and parameter.high is not None and narrow.low is not None
    assert narrow.high is not None
    assert parameter.low <= narrow.low < narrow.high <= parameter.high
    # Every value of the narrow range is one of the wide one.
    assert all(parameter.contains(point["x"]) for point in spread_points({"x": narrow}, 5, 0))
    if parameter.type == "uniform" and parameter.step is None:
        rounding = 1e-9 * max(abs(parameter.low), abs(parameter.high))
        assert narrow.high - narrow.low <= share * (parameter.high - parameter.low) + rounding


def test_half_a_range_on_its_own_scale_lies_around_the_value() -> None:
    narrow = Parameter(type="loguniform", low=1e-5, high=1e-1).narrowed(1e-3, 0.5)
    assert (narrow.low, narrow.high) == (pytest.approx(1e-4), pytest.approx(1e-2))
    narrow = Parameter(type="uniform", low=0, high=1).narrowed(0.9, 0.5)
    assert (narrow.low, narrow.high) == (pytest.approx(0.65), 1)
    narrow = Parameter(type="int", low=10, high=90, step=10).narrowed(50, 0.5)
    assert (narrow.low, narrow.high) == (30, 70)
    assert Parameter(type="choice", values=[8, 16, 32, 64]).narrowed(16).values == [8, 16, 32]


@pytest.mark.parametrize("value", [1e-9, 5.0])
def test_around_a_value_outside_of_it_the_near_end_of_a_range_is_left(value: float) -> None:
    parameter = Parameter(type="loguniform", low=1e-4, high=1e-1)
    narrow = parameter.narrowed(value, 0.25)
    assert narrow.contains(1e-4 if value < 1 else 1e-1)
    assert not narrow.contains(1e-1 if value < 1 else 1e-4)


def test_of_a_choice_without_the_value_the_nearest_and_its_neighbours_are_left() -> None:
    # A learning rate that was scaled with the batch size.
    assert Parameter(type="choice", values=[1e-4, 1e-3, 1e-2, 1e-1]).narrowed(0.02).values == [1e-3, 1e-2, 1e-1]


@pytest.mark.parametrize("parameter", [
    Parameter(type="loguniform", low=1e-6, high=1e-4, default=1e-5),
    Parameter(type="choice", values=["sgd", "adamw"], default="sgd"),
    Parameter(type="int", low=2, high=9),
])  # fmt: skip
def test_around_nothing_the_whole_range_is_left_and_its_default_was_tried(parameter: Parameter) -> None:
    # No trial was valid, or the configuration leaves the key open.
    assert parameter.narrowed(None) == parameter.model_copy(update={"default": None})


# Values that can be counted


@given(ranges(fractions_in_steps=False))
def test_a_grid_is_all_of_a_range(parameter: Parameter) -> None:
    grid = parameter.grid
    if grid is None:
        assert (
            parameter.type in ("uniform", "loguniform") or (parameter.high or 0) - (parameter.low or 0) >= LONGEST_GRID
        )
        return
    assert all(parameter.contains(value) for value in grid)
    points = [point["x"] for point in spread_points({"x": parameter}, 3 * len(grid), 0)]
    if parameter.type != "logint":  # where rounding makes the small ones rare
        assert {round(value, 9) if isinstance(value, float) else value for value in points} == {
            round(value, 9) if isinstance(value, float) else value for value in grid
        }
    bounds = parameter.bounds
    assert bounds is None or all(bounds[0] <= value <= bounds[1] for value in grid if isinstance(value, int | float))


@pytest.mark.parametrize(("low", "step", "count"), [(0.1, 0.1, 7), (0.05, 0.05, 9), (0.0, 0.15, 21), (0.2, 0.07, 8)])
def test_steps_of_fractions_are_the_values_as_they_are_written(low: float, step: float, count: int) -> None:
    written = [round(low + i * step, 2) for i in range(count)]
    parameter = Parameter(type="uniform", low=low, high=written[-1], step=step)
    assert parameter.grid == written
    assert {point["x"] for point in spread_points({"x": parameter}, 3 * count, 0)} == set(written)
    assert all(parameter.contains(value) for value in written)


@pytest.mark.parametrize(
    ("parameter", "bounds"),
    [
        (Parameter(type="uniform", low=0.1, high=0.5), (0.1, 0.5)),
        (Parameter(type="choice", values=[64, 16, 32]), (16, 64)),
        (Parameter(type="choice", values=[64]), None),
        (Parameter(type="choice", values=[64, None]), None),
        (Parameter(type="choice", values=["a", "b"]), None),
        (Parameter(type="choice", values=[True, False]), None),
    ],
)
def test_numbers_have_bounds(parameter: Parameter, bounds: tuple[float, float] | None) -> None:
    assert parameter.bounds == bounds
