"""A picture of an image of any channels: colours as they are, other channels in their place."""

from __future__ import annotations

import numpy as np

from phenoscape_tune.data.channels import Channels

COLOUR_NM = (650.0, 550.0, 450.0)


def shown_channels(channels: Channels) -> tuple[int, int, int]:
    """Which channels stand for red, green and blue.

    Those themselves; of a spectrum that reaches them the bands nearest to 650, 550 and 450 nm; else the last, the
    middle and the first channel, so that longer wavelengths are redder.
    """
    if channels.rgb is not None:
        return channels.rgb
    known = channels.wavelengths
    if known is not None and min(known) <= COLOUR_NM[2] and max(known) >= COLOUR_NM[0]:
        red, green, blue = (int(np.abs(np.array(known) - nm).argmin()) for nm in COLOUR_NM)
        return red, green, blue
    order = np.arange(len(channels)) if known is None else np.argsort(known)
    return int(order[-1]), int(order[len(order) // 2]), int(order[0])


def false_colour(pixels: np.ndarray, channels: Channels) -> np.ndarray:
    """uint8 (H, W, 3) of an image (C, H, W): integers whose largest value stands for 1, or float in 0..1."""
    chosen = pixels[list(shown_channels(channels))]
    most = 1.0 if chosen.dtype.kind == "f" else float(np.iinfo(chosen.dtype).max)
    scaled = np.rint(chosen.astype(np.float32) * (255 / most)).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(1, 2, 0))
