import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.search.axes import axis_for, log_ticks
from phenoscape_tune.search.parameter import Parameter


@pytest.mark.parametrize(
    ("low", "high", "names"),
    [
        (1e-5, 1e-1, ["1e-5", "1e-4", "0.001", "0.01", "0.1"]),
        (0.002, 0.03, ["0.002", "0.005", "0.01", "0.02"]),
        (0.05, 0.5, ["0.05", "0.1", "0.2", "0.5"]),
        (1e-9, 1e-1, ["1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1"]),
    ],
)
def test_a_logarithmic_axis_has_round_ticks(low: float, high: float, names: list[str]) -> None:
    assert [name for _, name in log_ticks(low, high)] == names


def test_whole_numbers_have_powers_of_two() -> None:
    assert [name for _, name in log_ticks(16, 512, whole=True)] == ["16", "32", "64", "128", "256", "512"]


@given(low=st.floats(1e-12, 1e6), ratio=st.floats(1.0001, 1e12), whole=st.booleans())
def test_any_logarithmic_range_has_ticks_within_it(low: float, ratio: float, whole: bool) -> None:
    high = low * ratio
    ticks = [at for at, _ in log_ticks(low, high, whole)]
    assert 2 <= len(ticks) <= 30
    assert ticks == sorted(set(ticks))
    assert low * (1 - 1e-6) <= ticks[0] and ticks[-1] <= high * (1 + 1e-6)


def test_a_logarithmic_range_reaches_as_far_as_its_values() -> None:
    axis = axis_for("lr", Parameter(type="loguniform", low=1e-4, high=1e-2), [0.1, 1e-3])
    assert axis.layout["type"] == "log"
    low, high = axis.layout["range"]
    assert low < -4 and high > -1
    assert axis.dimension([0.1])["values"] == [pytest.approx(-1)]
    assert "lr (log scale)" in axis.layout["title"]["text"]


def test_choices_stand_in_their_order_and_foreign_values_behind_them() -> None:
    axis = axis_for("weights", Parameter(type="choice", values=["DEFAULT", None, "a<b"]), ["mine", None])
    assert axis.layout["ticktext"] == ["DEFAULT", "null", "a&lt;b", "mine"]
    assert [axis.place(value) for value in (None, "mine", "DEFAULT")] == [1, 3, 0]


def test_true_is_not_one() -> None:
    axis = axis_for("x", Parameter(type="choice", values=[1, True, 0, False]), [])
    assert [axis.place(value) for value in (1, True, 0, False)] == [0, 1, 2, 3]
    assert axis.layout["ticktext"] == ["1", "true", "0", "false"]


@given(st.lists(st.sampled_from([16, 32, 64]), max_size=60))
def test_equal_choices_stand_side_by_side_near_their_place(values: list[int]) -> None:
    axis = axis_for("batch_size", Parameter(type="choice", values=[16, 32, 64]), values)
    places = axis.spread(values)
    assert len(set(places)) == len(values)
    assert all(abs(place - axis.place(value)) < 0.4 for place, value in zip(places, values, strict=True))


@pytest.mark.parametrize(
    "parameter",
    [
        {"type": "uniform", "low": 0.0, "high": 1.0},
        {"type": "int", "low": 1, "high": 9},
        {"type": "choice", "values": ["only"]},
    ],
)
def test_a_dimension_holds_its_values(parameter: dict[str, Any]) -> None:
    built = Parameter(**parameter)
    values = ["only"] if built.type == "choice" else [built.low, built.high]
    dimension = axis_for("x", built, values).dimension(values)
    low, high = dimension["range"]
    assert all(low <= value <= high and math.isfinite(value) for value in dimension["values"])
    assert low < high


def test_a_widened_range_has_a_line_at_its_old_bound() -> None:
    before, after = Parameter(type="uniform", low=0.3, high=0.5), Parameter(type="uniform", low=0.2, high=0.5)
    axis = axis_for("temperature", after, [])
    assert [line["x0"] for line in axis.old_bounds(before, after)] == [0.3]
    assert axis.old_bounds(after, after) == []
