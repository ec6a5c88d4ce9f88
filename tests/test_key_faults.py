from __future__ import annotations

from typing import Any

import pytest

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build_config(values, "my.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("temprature", "temperature"),
        ("lrr", "lr"),
        ("batchsize", "batch_size"),
        ("epochs", "max_epochs"),
        ("t_max", "T_max"),
        ("cj_strength", "transforms.cj_strength"),
        ("transform", "transforms"),
    ],
)
def test_an_unknown_key_names_the_nearest(misspelt: str, meant: str) -> None:
    assert refusal({misspelt: 1}) == f"my.yaml: {misspelt}: unknown key; did you mean '{meant}'?"


def test_an_unknown_nested_key_names_the_nearest() -> None:
    message = refusal({"transforms": {"cj_stength": 1}, "early_stopping": {"patients": 3}})
    dotted = refusal({"transforms.cj_strength": 0.8})
    assert (
        dotted
        == "my.yaml: transforms.cj_strength: here it stands within another key: write transforms: {cj_strength: 0.8}"
    )
    assert "my.yaml: transforms.cj_stength: unknown key; did you mean 'transforms.cj_strength'?" in message
    assert "my.yaml: early_stopping.patients: unknown key; did you mean 'early_stopping.patience'?" in message


def test_an_unknown_key_near_to_none_lists_the_known_ones() -> None:
    message = refusal({"qqqqqqqqq": 1})
    assert "qqqqqqqqq: unknown key; known: T_max, accelerator" in message
