from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import set_key
from phenoscape_tune.search.edges import find_edge, find_edges, widen
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.space import load_space

LR = Parameter(type="loguniform", low=1e-4, high=1e-2)
TEMPERATURE = Parameter(type="uniform", low=1, high=3)


def advised(key: str, parameter: Parameter, value: Any) -> str:
    edge = find_edge(key, parameter, value)
    return "" if edge is None else str(edge)


def accepted(key: str, value: object) -> bool:
    mapping: dict[str, Any] = {}
    set_key(mapping, key, value)
    try:
        build_config(mapping)
    except UserError:
        return False
    return True


# Where an edge is


def test_a_value_at_the_edge_is_told_with_the_range_to_try_next() -> None:
    assert advised("lr", LR, 1.1e-4) == "lr=0.00011 is at the lower edge of its range; try low: 1e-05"
    assert advised("lr", LR, 0.0095) == "lr=0.0095 is at the upper edge of its range; try high: 0.1"
    assert advised("lr", LR, 0.001) == ""


def test_an_edge_of_an_even_range_is_a_twentieth_of_it() -> None:
    key = "temperature"
    assert advised(key, TEMPERATURE, 2.95) == "temperature=2.95 is at the upper edge of its range; try high: 4"
    assert advised(key, TEMPERATURE, 2.85) == ""
    assert advised(key, TEMPERATURE, 1.15) == ""


def test_beyond_what_the_configuration_accepts_nothing_is_advised() -> None:
    strength = Parameter(type="uniform", low=0, high=1)
    told = "transforms.cj_strength=0.01 is at the lower edge of its range, beyond which little is possible"
    assert advised("transforms.cj_strength", strength, 0.01) == told
    assert widen("transforms.cj_strength", strength, 0.01) is None


def test_whole_numbers_are_advised_as_such() -> None:
    batch = Parameter(type="int", low=16, high=64)
    assert advised("batch_size", batch, 64) == "batch_size=64 is at the upper edge of its range; try high: 88"
    assert advised("batch_size", Parameter(type="logint", low=16, high=64), 16).endswith("try low: 8")


def test_a_choice_of_numbers_has_its_ends_for_edges() -> None:
    batch = Parameter(type="choice", values=[16, 32, 64])
    edge = find_edge("batch_size", batch, 64)
    assert edge is not None
    assert (edge.side, edge.further) == ("upper", 128)
    edge = find_edge("batch_size", batch, 16)
    assert edge is not None
    assert (edge.side, edge.further) == ("lower", 8)
    assert find_edge("batch_size", batch, 32) is None
    # Its author named all values.
    assert widen("batch_size", batch, 64) is None


@pytest.mark.parametrize(
    ("key", "values", "value"),
    [
        ("optimizer", ["sgd", "adamw"], "adamw"),
        ("weights", [None, "DEFAULT"], None),
        ("balance", [False, True], True),
        ("batch_size", [32], 32),
    ],
)
def test_values_without_an_order_have_no_edge(key: str, values: list[Any], value: Any) -> None:
    assert find_edge(key, Parameter(type="choice", values=values), value) is None


def test_a_value_that_is_no_number_stands_at_no_edge() -> None:
    # The configuration leaves the floor of the learning rate open.
    assert find_edge("eta_min", Parameter(type="loguniform", low=1e-6, high=1e-4), None) is None


def test_the_edges_of_a_configuration_are_those_of_its_searched_keys() -> None:
    ranges = {"lr": LR, "temperature": TEMPERATURE, "batch_size": Parameter(type="choice", values=[16, 32])}
    found = find_edges(ranges, {"lr": 0.01, "temperature": 2.0, "weight_decay": 0.0, "batch_size": 16})
    assert [(edge.key, edge.side) for edge in found] == [("lr", "upper"), ("batch_size", "lower")]


# Which range comes next


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, Parameter]:
    kind = draw(st.sampled_from(["loguniform", "uniform", "stepped", "int", "stepped int", "logint"]))
    if "int" in kind:
        first, length = draw(st.integers(2, 200)), draw(st.integers(1, 500))
        whole = draw(st.integers(1, length)) if kind == "stepped int" else None
        return "batch_size", Parameter(type=kind.split()[-1], low=first, high=first + length, step=whole)
    low = draw(st.floats(1e-6, 1))
    high = low * draw(st.floats(1.01, 1e4))
    if kind == "loguniform":
        return "lr", Parameter(type=kind, low=low, high=high)
    step = draw(st.floats(0.05, 1).map(lambda share: share * (high - low))) if kind == "stepped" else None
    return "temperature", Parameter(type="uniform", low=low, high=high, step=step)


@given(ranges(), st.sampled_from(["low", "high"]))
def test_a_range_is_widened_beyond_the_edge_at_which_the_value_stands(found: tuple[str, Parameter], side: str) -> None:
    key, parameter = found
    value = getattr(parameter, side)
    wide = widen(key, parameter, int(value) if "int" in parameter.type else value)
    if wide is None:  # no smaller one is accepted
        assert side == "low"
        return
    assert parameter.low is not None and parameter.high is not None
    assert wide.low is not None and wide.high is not None
    other = {"low": "high", "high": "low"}[side]
    assert getattr(wide, other) == getattr(parameter, other)
    assert (wide.low < parameter.low) if side == "low" else (wide.high > parameter.high)
    # Nothing else changes, and it is a range that a file could hold.
    assert wide == Parameter(**{**parameter.model_dump(), side: getattr(wide, side)})
    assert accepted(key, getattr(wide, side))


@given(ranges())
def test_a_widened_range_keeps_the_grid(found: tuple[str, Parameter]) -> None:
    key, parameter = found
    grid = parameter.grid
    assume(grid is not None and len(grid) > 1)
    assert grid is not None
    for value in (grid[0], grid[-1]):
        wide = widen(key, parameter, value)
        if wide is not None:
            assert all(wide.contains(old) for old in grid)


@given(ranges(), st.floats(0, 1))
def test_inside_its_range_a_value_stands_at_no_edge(found: tuple[str, Parameter], share: float) -> None:
    key, parameter = found
    assume(parameter.grid is None)
    assert parameter.bounds is not None
    low, high = parameter.bounds
    inside = 0.06 + 0.88 * share
    value = low * (high / low) ** inside if parameter.type.startswith("log") else low + (high - low) * inside
    assert find_edge(key, parameter, value) is None
    assert widen(key, parameter, value) is None


@pytest.mark.parametrize("name", ["lr", "lr_temp", "full", "demo"])
def test_the_range_to_try_next_is_one_that_the_configuration_accepts(name: str) -> None:
    told = 0
    for key, parameter in load_space(name)[0].parameters.items():
        for value in parameter.bounds or ():
            edge = find_edge(key, parameter, value)
            assert edge is not None
            if edge.further is not None:
                told += 1
                assert accepted(key, edge.further), edge
                assert f" {edge.further:g}" in str(edge)
            else:
                assert str(edge).endswith("beyond which little is possible")
    assert told


# A winner that the space does not hold: the defaults'


@pytest.mark.parametrize("value", [1e-3, 2e-4])
def test_a_value_outside_of_the_range_is_advised_a_range_that_holds_it(value: float) -> None:
    edge = find_edge("lr", Parameter(type="loguniform", low=1e-2, high=1), value)
    assert edge is not None
    assert edge.side == "lower"
    assert edge.further is not None
    assert edge.further <= value


def test_the_last_value_on_the_grid_is_the_edge() -> None:
    assert find_edge("temperature", Parameter(type="uniform", low=0.1, high=0.45, step=0.1), 0.4) is not None
    assert find_edge("batch_size", Parameter(type="int", low=16, high=70, step=16), 64) is not None
