from __future__ import annotations

import numpy as np
import pytest

from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.data.false_colour import FalseColour, false_colour, pictures_of, uv_colour

RGB_UV = Channels(("red", "green", "blue", "uv1", "uv2", "uv3"), rgb=(0, 1, 2), uv=(3, 4, 5))


def bands(*wavelengths: float) -> Channels:
    uv = tuple(place for place, wave in enumerate(wavelengths) if wave < 400)
    return Channels(tuple(f"{wave:g} nm" for wave in wavelengths), uv=uv, wavelengths=wavelengths)


@pytest.mark.parametrize(
    ("channels", "shown"),
    [
        (RGB, "red, green, blue"),
        (RGB_UV, "red, green, blue"),
        (Channels(("uv1", "blue", "green", "red"), rgb=(3, 2, 1), uv=(0,)), "red, green, blue"),
        (Channels(("uv1", "uv2", "uv3"), uv=(0, 1, 2)), "uv3, uv2, uv1"),
        (Channels(("uv1", "uv2"), uv=(0, 1)), "uv2, uv1, uv1"),
        (Channels(("grey",)), "grey, grey, grey"),
        (bands(*np.arange(400, 1001, 1.5)), "650, 550, 450 nm"),
        (bands(*np.arange(1000, 400, -50.0)), "650, 550, 450 nm"),
        (bands(900, 1100, 1300, 1500, 1700), "1700, 1300, 900 nm"),
        (bands(1700, 900, 1300), "1700, 1300, 900 nm"),
        (bands(320, 340, 360, 380), "380, 340, 320 nm"),
        (bands(500, 550), "550, 500, 500 nm"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} channels",
)
def test_which_channels_are_shown(channels: Channels, shown: str) -> None:
    picture = false_colour(channels)
    assert picture.title == shown
    for index, name in zip(picture.indices, shown.removesuffix(" nm").split(", "), strict=True):
        told = channels.names[index] if channels.wavelengths is None else f"{channels.wavelengths[index]:.0f}"
        assert told == name


@pytest.mark.parametrize(
    ("channels", "shown"),
    [
        (RGB, None),
        (RGB_UV, "uv3, uv2, uv1"),
        (Channels(("red", "green", "blue", "uv"), rgb=(0, 1, 2), uv=(3,)), "uv, uv, uv"),
        (Channels(("uv1", "uv2", "uv3"), uv=(0, 1, 2)), None),  # shown already
        (bands(*np.arange(300, 801, 10.0)), "390, 340, 300 nm"),
        (bands(*np.arange(400, 801, 10.0)), None),
    ],
    ids=str,
)
def test_ultraviolet_is_a_picture_of_its_own_beside_colours(channels: Channels, shown: str | None) -> None:
    picture = uv_colour(channels)
    assert (picture and picture.title) == shown
    assert [each.title for each in pictures_of(channels)] == [false_colour(channels).title, *([shown] if shown else [])]


@pytest.mark.parametrize(("dtype", "full"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_values_of_every_type_are_scaled_by_its_full_range(dtype: type, full: int) -> None:
    image = np.zeros((6, 2, 3), dtype=dtype)
    image[0], image[1], image[3] = full, full / 5, full
    picture = false_colour(RGB_UV)(image)
    assert (picture.shape, picture.dtype) == ((2, 3, 3), np.uint8)
    assert picture[0, 0].tolist() == [255, 51, 0]
    assert uv_colour(RGB_UV)(image)[0, 0].tolist() == [0, 0, 255]


def test_photographs_are_shown_as_they_are() -> None:
    dark = np.random.default_rng(0).integers(0, 20, (4, 3, 8, 8), dtype=np.uint8)
    picture = false_colour(RGB, dark)
    assert all((picture(image) == image.transpose(1, 2, 0)).all() for image in dark)


def test_dark_reflectance_is_brightened_alike_for_all_images_and_channels() -> None:
    rng = np.random.default_rng(0)
    dark = (rng.uniform(0, 0.1, (4, 6, 32, 32)) * 65535).astype(np.uint16)
    dark[0] //= 2
    picture = false_colour(RGB_UV, dark)
    assert 0.09 < picture.white < 0.1
    shown = [picture(image).astype(float).mean() for image in dark]
    assert shown[0] == pytest.approx(shown[1] / 2, rel=0.05)  # darker than the others as before
    assert shown[1] == pytest.approx(127, abs=8)
    one = picture(np.full((6, 1, 1), [[[0.02]], [[0.04]], [[0.01]], [[0]], [[0]], [[0]]]))
    assert one[0, 0, 1] == pytest.approx(2 * one[0, 0, 0], abs=1)  # the colour stays


def test_bright_black_or_no_images_are_not_stretched() -> None:
    for images in (np.ones((2, 6, 4, 4)), np.zeros((2, 6, 4, 4)), np.zeros((0, 6, 4, 4)), []):
        assert false_colour(RGB_UV, images).white == 1


def test_the_three_channels_alone_make_the_same_picture() -> None:
    image = np.random.default_rng(0).uniform(0, 0.2, (6, 5, 7)).astype(np.float32)
    picture = FalseColour((5, 3, 0), "uv3, uv1, red").brightened([image])
    assert (picture.paint(image[[5, 3, 0]]) == picture(image)).all()
