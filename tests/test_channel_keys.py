from __future__ import annotations

from typing import Any

import pytest

from phenoscape_tune.channel_keys import chosen_channels
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build_config(values, "my.yaml")
    return str(caught.value)


RANGE = "write auto, bit_depth, percentile, or a range in the files' own units such as [0, 10000]"


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        ("8bit", RANGE),
        ([1], RANGE),
        ([0, 1, 2], RANGE),
        ([0, "full"], RANGE),
        ([False, True], RANGE),
        ([0, float("inf")], RANGE),
        (None, RANGE),
        ([10, 0], "the bounds are reversed; write the smaller one first"),
    ],
)
def test_a_range_that_is_none_is_told_once_with_an_example(scaling: Any, told: str) -> None:
    message = refusal({"value_scaling": scaling})
    assert message == f"my.yaml: value_scaling: {scaling!r} is not valid: {told} (default auto)"


def test_a_range_of_two_numbers_is_one() -> None:
    assert build_config({"value_scaling": [0, 10000]}).value_scaling == (0, 10000)


@pytest.mark.parametrize(("key", "modality"), [("channels", "multispectral"), ("bands", "hyperspectral")])
@pytest.mark.parametrize("value", [[True, 0], [False], ["red", True]])
def test_true_and_false_are_no_channels(key: str, modality: str, value: list[Any]) -> None:
    message = refusal({"modality": modality, key: value})
    assert message.startswith(f"my.yaml: {key}: {value!r} is not valid: true and false are no indices; write numbers")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("modality", "channels", "names", "bands", "expected"),
    [
        ("auto", None, None, "all", (True, False, False)),
        ("rgb", None, None, "all", (True, False, False)),
        ("multispectral", None, None, "all", (True, True, False)),
        ("multispectral", "full", None, "all", (True, True, False)),
        ("multispectral", "rgb_only", None, "all", (True, False, False)),
        ("multispectral", "uv_only", None, "all", (False, True, False)),
        ("multispectral", [0, 1, 2], None, "all", (True, False, False)),
        ("multispectral", [2, 1, 0, 5], None, "all", (True, True, False)),
        ("multispectral", [0, 1, 3], None, "all", (False, True, False)),
        ("multispectral", ["red", "UV1"], None, "all", (False, True, False)),
        ("multispectral", ["blue", "green", "Red"], None, "all", (True, False, False)),
        ("multispectral", [0, 1, 2, 99], None, "all", (True, False, False)),
        ("multispectral", None, ["nir", "red", "green", "blue"], "all", (True, False, False)),
        ("multispectral", [0, 1, 2], ["uv_a", "red", "green", "blue"], "all", (False, True, False)),
        ("multispectral", None, ["nir", "swir"], "all", (False, False, False)),
        ("hyperspectral", None, None, "all", (False, False, True)),
        ("hyperspectral", None, None, "range:400-700nm", (False, False, True)),
        ("hyperspectral", None, None, "rgb", (True, False, False)),
        ("hyperspectral", None, None, "uniform:2", (False, False, False)),
        ("hyperspectral", None, None, "uniform:20", (False, False, True)),
        ("hyperspectral", None, None, [1, 2], (False, False, False)),
        ("hyperspectral", None, None, [1, 2, 3], (False, False, True)),
    ],
)
def test_what_a_configuration_tells_of_the_channels(
    modality: str,
    channels: str | list[int | str] | None,
    names: list[str] | None,
    bands: str | list[int | str],
    expected: tuple[bool, bool, bool],
) -> None:
    assert chosen_channels(modality, channels, names, bands) == expected
