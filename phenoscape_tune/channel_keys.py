"""The keys that choose channels: what may be written there, and what it tells of the images without their files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

CHANNEL_SETS = ("rgb_only", "uv_only", "full")
VALUE_SCALINGS = ("auto", "bit_depth", "percentile")
# Names of a multispectral file's channels where neither it nor the configuration tells them.
MULTISPECTRAL_NAMES = ("red", "green", "blue", "uv1", "uv2", "uv3", "mask")
# Whose channels a key chooses or names; it has no meaning for images of another modality.
MODALITY_OF = {"channels": "multispectral", "channel_names": "multispectral", "bands": "hyperspectral"}
FEWEST_BANDS = 3  # that have a spectrum to shift


_BANDS = re.compile(
    r"all|rgb|(every|uniform):[1-9]\d*|range:\d+-\d+|range:\d+(\.\d+)?-\d+(\.\d+)?nm",
)
_WAVELENGTH = re.compile(r"\d+(\.\d+)?nm")


def _bands(bands: str | list[int | str]) -> str | list[int | str]:
    if isinstance(bands, list):
        if not bands:
            raise ValueError("the list is empty; write indices (from 0) or wavelengths such as 550nm")
        for band in bands:
            if isinstance(band, int) and band < 0:
                raise ValueError(f"{band} is below 0; indices count from 0")
            if isinstance(band, str) and not _WAVELENGTH.fullmatch(band):
                raise ValueError(f"{band!r} is no band; write an index (from 0) or a wavelength such as 550nm")
        _refuse_twice(bands)
        return bands
    text = "".join(bands.split())
    if not _BANDS.fullmatch(text):
        raise ValueError(
            "write all, every:4, uniform:32, range:400-700nm, range:10-90, rgb, or a list such as [0, 5, 9]"
        )
    if text.startswith("range:"):
        low, high = (float(bound) for bound in text.removeprefix("range:").removesuffix("nm").split("-"))
        if low > high:
            raise ValueError("the bounds are reversed; write the smaller one first")
    return text


def _channels(channels: str | list[int | str]) -> str | list[int | str]:
    if isinstance(channels, str):
        if channels not in CHANNEL_SETS:
            raise ValueError(f"write {', '.join(CHANNEL_SETS)}, or a list such as [0, 1, 2] or [red, uv1]")
        return channels
    if not channels:
        raise ValueError("the list is empty; write indices (from 0) or names")
    if any(isinstance(channel, int) and channel < 0 for channel in channels):
        raise ValueError("an index is below 0; indices count from 0")
    _refuse_twice(channels)
    return channels


def _channel_names(names: list[str]) -> list[str]:
    _refuse_twice(names)
    return names


def _refuse_twice(values: Sequence[int | str]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands twice; write each once")


def _no_booleans(values: Any) -> Any:
    # Otherwise taken for 1 and 0.
    if isinstance(values, list | tuple) and any(isinstance(value, bool) for value in values):
        raise ValueError("true and false are no indices; write numbers from 0, or names")
    return values


def _value_scaling(scaling: Any) -> Any:
    if isinstance(scaling, str) and scaling in VALUE_SCALINGS:
        return scaling
    if not isinstance(scaling, list | tuple) or len(scaling) != 2 or not all(map(_is_finite, scaling)):
        raise ValueError(f"write {', '.join(VALUE_SCALINGS)}, or a range in the files' own units such as [0, 10000]")
    if scaling[0] >= scaling[1]:
        raise ValueError("the bounds are reversed; write the smaller one first")
    return scaling


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


ChannelChoice = Annotated[str | list[int | str], BeforeValidator(_no_booleans), AfterValidator(_channels)]
ChannelNames = Annotated[list[str], AfterValidator(_channel_names)]
Bands = Annotated[str | list[int | str], BeforeValidator(_no_booleans), AfterValidator(_bands)]
ValueScaling = Annotated[
    Literal["auto", "bit_depth", "percentile"] | tuple[float, float], BeforeValidator(_value_scaling)
]


def chosen_channels(
    modality: str,
    channels: str | Sequence[int | str] | None,
    channel_names: Sequence[str] | None,
    bands: str | Sequence[int | str],
) -> tuple[bool, bool, bool]:
    """`rgb`, `uv` and `ordered` of `transforms.defaults_of`, as far as a configuration tells them without the files."""
    if modality == "hyperspectral":
        few = isinstance(bands, Sequence) and not isinstance(bands, str) and len(bands) < FEWEST_BANDS
        return bands == "rgb", False, not (few or bands in ("rgb", "uniform:1", "uniform:2"))
    if modality != "multispectral":
        return True, False, False
    names = [name.lower() for name in channel_names or MULTISPECTRAL_NAMES]
    if channels == "rgb_only":
        return True, False, False
    if channels == "uv_only":
        return False, True, False
    if not isinstance(channels, str) and channels is not None:
        names = [
            c.lower() if isinstance(c, str) else names[c] for c in channels if isinstance(c, str) or c < len(names)
        ]
    return {"red", "green", "blue"} <= set(names), any(name.startswith("uv") for name in names), False
