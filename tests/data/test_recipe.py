"""A recipe survives being written, and says what it does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.squares import Square

SQUARE = Square(16, "pad", (255, 0, 51))
SEVEN = Recipe(
    SQUARE,
    Channels(("uv1", "blue", "green", "red"), (3, 2, 1), (0,)),
    "multispectral",
    of=7,
    taken=(3, 2, 1, 0),
    value_range=(0.0, 10000.0),
    mask=6,
    crop_to_mask=True,
)


@pytest.mark.parametrize("recipe", [Recipe(SQUARE), SEVEN])
def test_it_survives_being_written(recipe: Recipe) -> None:
    assert Recipe.from_mapping(json.loads(json.dumps(recipe.to_mapping()))) == recipe


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=9))
def test_wavelengths_survive_to_the_last_digit(known: list[float]) -> None:
    channels = Channels(tuple(map(str, range(len(known)))), wavelengths=tuple(known))
    recipe = Recipe(SQUARE, channels, "hyperspectral", wavelengths=tuple(known))
    assert Recipe.from_mapping(json.loads(json.dumps(recipe.to_mapping()))) == recipe


@pytest.mark.parametrize("mapping", [{}, {"square": 3}, {**SEVEN.to_mapping(), "modality": "x-ray"}, []])
def test_what_is_no_recipe_is_refused(mapping: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (pydantic's own)
        Recipe.from_mapping(mapping)


def test_squares_have_its_channels_and_the_backgrounds_colour_or_grey() -> None:
    assert (Recipe(SQUARE).dtype, Recipe(SQUARE).shape, Recipe(SQUARE).nbytes) == ("uint8", (3, 16, 16), 768)
    assert (SEVEN.dtype, SEVEN.shape, SEVEN.nbytes) == ("uint16", (4, 16, 16), 2048)
    assert Recipe(SQUARE).fill == pytest.approx((1, 0, 0.2))
    assert SEVEN.fill == pytest.approx((0.299 + 0.114 * 0.2, 0.2, 0, 1))
    assert SEVEN.at(8).shape == (4, 8, 8)


def test_it_says_what_is_taken() -> None:
    assert SEVEN.describe() == (
        "multispectral, 4 of 7 channels (uv1, blue, green, red), 0 to 10000 become 0 to 1, background removed by the "
        "mask, cut to the specimen"
    )
    many = Recipe(SQUARE, Channels(tuple(f"{nm} nm" for nm in range(400, 420))), "hyperspectral", of=21)
    assert many.describe() == "hyperspectral, 20 of 21 channels (400 nm, 401 nm, ..., 419 nm)"
