"""Which channels are taken, by name, index and wavelength; and what is said of those that are not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.channel_keys import CHANNEL_SETS
from phenoscape_tune.config import build_config
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.layout import Layout
from phenoscape_tune.data.recipe import Request
from phenoscape_tune.data.selection import choose_channels
from phenoscape_tune.data.squares import Square
from phenoscape_tune.errors import UserError

SQUARE = Square(16, "pad", (128, 128, 128))
SEVEN = ("red", "green", "blue", "uv1", "uv2", "uv3", "mask")
NM = tuple(np.linspace(350, 1000, 408))


def layout_of(channels: int, **changes: Any) -> Layout:
    return replace(Layout(channels, 8, 8, (65535.0,) * channels), **changes)


def choose(layout: Layout, **asked: Any) -> tuple[Channels, tuple[int, ...], int | None]:
    asked = {key: tuple(value) if isinstance(value, list) else value for key, value in asked.items()}
    return choose_channels(Request(SQUARE, "multispectral", **asked), layout)


def bands(layout: Layout, asked: Any) -> tuple[Channels, tuple[int, ...], int | None]:
    asked = tuple(asked) if isinstance(asked, list) else asked
    return choose_channels(Request(SQUARE, "hyperspectral", bands=asked), layout)


def test_pictures_have_three_colours() -> None:
    assert choose_channels(Request(SQUARE), layout_of(3)) == (Channels(SEVEN[:3], (0, 1, 2)), (0, 1, 2), None)


@pytest.mark.parametrize("word", CHANNEL_SETS)
def test_every_word_that_a_configuration_may_have_for_channels_is_known(word: str) -> None:
    chosen, taken, _ = choose(layout_of(7), channels=word)
    assert chosen.names == tuple(SEVEN[channel] for channel in taken)


@pytest.mark.parametrize(
    ("asked", "names", "taken", "rgb", "uv"),
    [
        ("full", SEVEN[:6], (0, 1, 2, 3, 4, 5), (0, 1, 2), (3, 4, 5)),
        ("rgb_only", SEVEN[:3], (0, 1, 2), (0, 1, 2), ()),
        ("uv_only", SEVEN[3:6], (3, 4, 5), None, (0, 1, 2)),
        ([5, "blue", "R", 1], ("uv3", "blue", "red", "green"), (5, 2, 0, 1), (2, 3, 1), (0,)),
        ([6, 0], ("mask", "red"), (6, 0), None, ()),
    ],
)
def test_seven_channels_are_rgb_uv_and_a_mask(asked: Any, names: Any, taken: Any, rgb: Any, uv: Any) -> None:
    assert choose(layout_of(7), channels=asked) == (Channels(names, rgb, uv), taken, 6)


def test_names_come_from_the_configuration_then_the_file_then_the_number_of_channels() -> None:
    told = layout_of(4, names=("UV_a", "B", "G", "R"))
    assert choose(told) == (Channels(("uv_a", "blue", "green", "red"), (3, 2, 1), (0,)), (0, 1, 2, 3), None)
    named = choose(told, channel_names=("red", "green", "blue", "mask"))
    assert named == (Channels(("red", "green", "blue"), (0, 1, 2)), (0, 1, 2), 3)
    # What names no channel we know is no name worth having.
    page_labels = layout_of(4, names=("c:1/4", "c:2/4", "c:3/4", "c:4/4"))
    assert choose(page_labels)[0].names == ("red", "green", "blue", "uv")
    assert choose(layout_of(5))[0] == Channels(tuple(f"channel {number}" for number in range(5)))


@pytest.mark.parametrize(
    ("channels", "asked", "message"),
    [
        (5, {"channels": "rgb_only"}, "rgb_only: the files' channels are channel 0, .* channel_names"),
        (
            3,
            {"channels": "uv_only"},
            "uv_only: the files' channels are red, green, blue; name",
        ),
        (7, {"channels": [7]}, "channels: 7: .*mask; write an index from 0 to 6"),
        (7, {"channels": ["nir"]}, "channels: 'nir': .* write one of them"),
        (7, {"channels": [0, "red"]}, "twice"),
        (7, {"channel_names": ["a", "b"]}, r"names 2 channels \(a, b\), and the files have 7"),
        (1, {"channel_names": ["mask"]}, "nothing is left without the mask"),
    ],
)
def test_channels_that_are_not_there_are_told_with_those_that_are(channels: int, asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(layout_of(channels), **asked)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("all", range(408)),
        ("every:100", (0, 100, 200, 300, 400)),
        ("uniform:3", (0, 204, 407)),
        ("uniform:1", (0,)),
        ("range:10-12", (10, 11, 12)),
        ("range:400-402nm", (32,)),
        ("range:998.5-2000nm", (407,)),
        ("rgb", (188, 125, 63)),
        ([407, 0, "400nm"], (407, 0, 31)),
    ],
)
def test_bands(asked: Any, expected: Any) -> None:
    channels, taken, mask = bands(layout_of(408, wavelengths=NM), asked)
    assert taken == tuple(expected)
    assert mask is None
    assert channels.wavelengths == tuple(NM[band] for band in expected)
    assert channels.rgb == ((0, 1, 2) if asked == "rgb" else None)
    assert channels.uv == tuple(place for place, band in enumerate(expected) if NM[band] < 400)


def test_bands_have_their_wavelengths_or_names_for_names() -> None:
    assert bands(layout_of(2, wavelengths=(400.0, 450.25)), "all")[0].names == ("400 nm", "450.25 nm")
    assert bands(layout_of(2, names=("B2", "B3")), "all")[0].names == ("B2", "B3")
    assert bands(layout_of(2), "all")[0].names == ("band 0", "band 1")
    assert bands(layout_of(2, wavelengths=(700.0, 700.0)), "all")[0].names == ("700 nm (0)", "700 nm (1)")


def test_bad_bands_and_the_mask_are_left_out_unless_they_are_asked_for_by_index() -> None:
    layout = layout_of(5, wavelengths=(400.0, 500.0, 600.0, 700.0, 0.0), names=(*"abcd", "Mask"), bad=(1,))
    assert bands(layout, "all")[1:] == ((0, 2, 3), 4)
    assert bands(layout, "every:2")[1] == (0, 3)
    assert bands(layout, "range:450-650nm")[1] == (2,)
    assert bands(layout, [1])[1] == (1,)
    with pytest.raises(UserError, match="all 2 bands are marked as bad"):
        bands(layout_of(2, bad=(0, 1)), "all")


@pytest.mark.parametrize(
    ("asked", "known", "message"),
    [
        ("range:400-700nm", None, "tell no wavelengths; add `wavelength = .*range:0-407"),
        ("rgb", None, "tell no wavelengths"),
        (["550nm"], None, "tell no wavelengths"),
        ("range:100-200nm", NM, "no band lies there; the files' are from 350 to 1000 nm"),
        ("range:408-500", NM, "range:408-500: the files have 408 bands, 0 to 407; for wavelengths write nm at the end"),
        ("range:400-700", NM, "range:400-700: the files have 408 bands, 0 to 407; for wavelengths write nm at the end"),
        ("rgb", (*np.linspace(500, 600, 2), *np.linspace(900, 1000, 406)), "rgb: two of them are the same band"),
        ("uniform:409", NM, "the files have 408 usable bands"),
        ([408], NM, "bands: 408: the files have 408 bands; .* from 0 to 407, or a wavelength such as 408nm"),
        (["1200nm"], NM, "the band nearest to 1200 nm lies at 1000 nm"),
        (["550nm", "550.1nm"], NM, "two of them are the same band"),
    ],
)
def test_bands_that_are_not_there_are_told(asked: Any, known: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bands(layout_of(408, wavelengths=known), asked)


ASKED = (
    st.sampled_from(["all", "rgb"])
    | st.integers(1, 99).map("every:{}".format)
    | st.integers(1, 60).map("uniform:{}".format)
    | st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda ends: "range:{}-{}".format(*sorted(ends)))
    | st.tuples(st.integers(300, 900), st.integers(300, 900)).map(lambda ends: "range:{}-{}nm".format(*sorted(ends)))
    | st.lists(st.integers(0, 60), min_size=1, max_size=5, unique=True)
)


@given(ASKED, st.integers(1, 60), st.booleans(), st.sets(st.integers(0, 59)))
def test_whatever_is_asked_the_bands_exist_once_each_or_a_message_says_why(
    asked: Any, count: int, spectrum: bool, bad: set[int]
) -> None:
    known = tuple(np.linspace(380, 720, count)) if spectrum else None
    layout = layout_of(count, wavelengths=known, bad=tuple(sorted(band for band in bad if band < count)))
    asked = build_config({"bands": asked}).bands  # as it comes from a configuration
    try:
        channels, taken, _ = bands(layout, asked)
    except UserError:
        with pytest.raises(UserError, match="^bands: "):
            bands(layout, asked)
        return
    assert 0 < len(taken) == len(channels) == len(set(channels.names))
    assert all(0 <= band < count for band in taken)
    if asked != "rgb":
        assert len(set(taken)) == len(taken)
