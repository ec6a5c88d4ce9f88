"""Pictures for people of images of any channels: three of them are shown as red, green and blue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from phenoscape_tune.data.channels import COLOUR_NM, FARTHEST_NM, RGB, Channels

_BRIGHT_SHARE = 99.5  # percentile
_BRIGHT = 0.9  # images whose bright pixels reach this are shown as they are


@dataclass(frozen=True)
class FalseColour:
    """Which channels are shown, and how bright."""

    indices: tuple[int, int, int]
    """Of the channels shown as red, green and blue."""
    title: str
    """What stands for red, green and blue, such as `uv3, uv2, uv1` or `650, 550, 450 nm`."""
    white: float = 1.0
    """The value, in 0..1, that is shown at full brightness: the same for all channels, so that colours are kept."""

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The picture, uint8 (H, W, 3), of an image (C, H, W): uint8, uint16, or floats in 0..1."""
        return self.paint(pixels[list(self.indices)])

    def paint(self, chosen: np.ndarray) -> np.ndarray:
        """The picture, uint8 (H, W, 3), of the three channels alone: (3, H, W)."""
        shown = chosen.transpose(1, 2, 0)
        if shown.dtype == np.uint8 and self.white == 1:
            return np.ascontiguousarray(shown)
        values = _to_unit(shown) / self.white
        return (255 * values).round().clip(0, 255).astype(np.uint8)

    def brightened(self, images: Iterable[np.ndarray]) -> FalseColour:
        """The same channels with the white that suits these images, each (C, H, W): one for all, since reflectance may
        be dark. Their brightest pixels but half a percent, of any channel, become white; what is bright stays as it is.
        """
        brightest = [_to_unit(image[list(self.indices)]).max(axis=0).ravel() for image in images]
        white = float(np.percentile(np.concatenate(brightest), _BRIGHT_SHARE)) if brightest else 1.0
        return replace(self, white=white if 0 < white < _BRIGHT else 1.0)


def false_colour(channels: Channels, images: Iterable[np.ndarray] = ()) -> FalseColour:
    """How to show images of these channels.

    Red, green and blue where there are such; of a spectrum the bands nearest to 650, 550 and 450 nm, and where it has
    none near them, as of other channels, the last, middle and first (of a spectrum the longest waves first).

    Args:
        images: each (C, H, W), that are to be shown side by side: dark ones are brightened alike, but photographs,
            which are shown as they are.
    """
    colours = _colours(channels)
    return colours.brightened(images) if channels != RGB else colours


def uv_colour(channels: Channels, images: Iterable[np.ndarray] = ()) -> FalseColour | None:
    """How to show the ultraviolet channels, as `false_colour`; None where there are none, or it shows them already."""
    if not channels.uv or set(_colours(channels).indices) <= set(channels.uv):
        return None
    return _spread(channels, channels.uv).brightened(images)


def pictures_of(channels: Channels, images: np.ndarray | Sequence[np.ndarray] = ()) -> list[FalseColour]:
    """The one or two pictures that show these channels: `false_colour`, then `uv_colour` where there is one."""
    ultraviolet = uv_colour(channels, images)
    return [false_colour(channels, images), *([] if ultraviolet is None else [ultraviolet])]


def _colours(channels: Channels) -> FalseColour:
    if channels.rgb is not None:
        return _named(channels, channels.rgb)
    known = channels.wavelengths
    if known is not None:
        nearest = [int(np.abs(np.subtract(known, wave)).argmin()) for wave in COLOUR_NM]
        far = max(abs(known[index] - wave) for index, wave in zip(nearest, COLOUR_NM, strict=True))
        if far <= FARTHEST_NM and len(set(nearest)) == 3:
            return _named(channels, (nearest[0], nearest[1], nearest[2]))
    return _spread(channels, range(len(channels)))


def _spread(channels: Channels, among: Sequence[int]) -> FalseColour:
    """The last, middle and first of the channels `among` which are to be shown; the longest first where that is known.

    One of them is repeated where there are two, and all are the same where there is one.
    """
    known = channels.wavelengths
    order = list(among) if known is None else sorted(among, key=lambda index: known[index])
    return _named(channels, (order[-1], order[(len(order) - 1) // 2], order[0]))


def _named(channels: Channels, indices: tuple[int, int, int]) -> FalseColour:
    known = channels.wavelengths
    if known is not None:
        return FalseColour(indices, ", ".join(f"{known[index]:.0f}" for index in indices) + " nm")
    return FalseColour(indices, ", ".join(channels.names[index] for index in indices))


def _to_unit(values: np.ndarray) -> np.ndarray:
    """Integers in 0..1 by the largest value of their type; floats as they are."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32) / np.iinfo(values.dtype).max
    return values
