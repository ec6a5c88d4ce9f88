"""Images of any height and width brought onto squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Square:
    """How each image is brought onto its square; see ``fit``."""

    size: int
    """Side of the square in pixels."""
    resize: str
    """One of pad, crop and squash."""
    background: Colour
    """Red, green, blue (0..255) under transparent pixels, where a mask is 0, and beside padded images."""


def fit(image: np.ndarray, size: int, resize: str, background: Colour) -> np.ndarray:
    """An image uint8 (3, H, W) brought onto a square: uint8 (3, size, size); see ``fit_picture``."""
    return fit_picture(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), size, resize, background)


def fit_picture(picture: Image.Image, size: int, resize: str, background: Colour) -> np.ndarray:
    """A picture of mode RGB brought onto a square: uint8 (3, size, size).

    ``resize``: "pad" scales the longer side to ``size`` and centres the image on the background, so that nothing is
    cut; "crop" scales the shorter side and cuts the centre; "squash" scales each side by itself. Scaling is bicubic and
    antialiased.
    """
    target, box = _place(picture.size, size, resize)
    scaled = picture.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if target != (size, size):
        canvas = Image.new("RGB", (size, size), background)
        canvas.paste(scaled, ((size - target[0]) // 2, (size - target[1]) // 2))
        scaled = canvas
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))


def fit_channels(values: np.ndarray, size: int, resize: str, background: Sequence[float] | np.ndarray) -> np.ndarray:
    """As ``fit``, for any number of channels: float32 (C, H, W) → float32 (C, size, size).

    ``background`` is the value of each channel beside a padded image. Where the image has the square's size already,
    its values are returned as they are; else bicubic scaling may overshoot them a little.
    """
    height, width = values.shape[1:]
    target, box = _place((width, height), size, resize)
    fitted = np.empty((len(values), size, size), np.float32)
    fitted[:] = np.asarray(background, np.float32)[:, None, None]
    left, top = (size - target[0]) // 2, (size - target[1]) // 2
    for channel, plane in zip(fitted, values, strict=True):
        if target == (width, height) == box[2:]:
            scaled = plane
        else:
            picture = Image.fromarray(np.ascontiguousarray(plane, np.float32))
            scaled = np.asarray(picture.resize(target, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
        channel[top : top + target[1], left : left + target[0]] = scaled
    return fitted


def _place(shape: tuple[int, int], size: int, resize: str) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Width and height of the scaled image, and the part of the image (left, top, right, bottom) that it shows."""
    width, height = shape
    box = (0.0, 0.0, float(width), float(height))
    if resize == "pad":
        longer = max(width, height)
        return (max(1, round(width * size / longer)), max(1, round(height * size / longer))), box
    if resize == "crop":
        shorter = min(width, height)
        left, top = (width - shorter) / 2, (height - shorter) / 2
        return (size, size), (left, top, left + shorter, top + shorter)
    if resize == "squash":
        return (size, size), box
    raise ValueError(f"resize must be pad, crop or squash, not {resize!r}")
