"""The learned mixture of many spectral channels to a few, before a backbone: pixel by pixel, 1x1."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

PREFIX = "spectral_stem."  # of its tensors in an encoder's state, and in an exported file


def build_spectral_stem(channels: int, width: int) -> nn.Sequential:
    """Images (B, channels, H, W), normalised by channel, to mixtures of them (B, width, H, W), normalised by batch.

    It begins as the first `width` rows of the orthonormal discrete cosine transform: the mean over the channels, then
    ever finer contrasts along the spectrum, each of unit variance for channels that are independent. Neighbouring
    bands are strongly correlated, and so random mixtures are, all of them, little but the brightness of a pixel; the
    cosines are nearly uncorrelated for such spectra (Ahmed, Natarajan and Rao, "Discrete cosine transform", IEEE Trans.
    Computers 1974), and batch norm brings the faint ones to the scale of the others.
    """
    mixture = nn.Conv2d(channels, width, kernel_size=1, bias=False)
    with torch.no_grad():
        mixture.weight.copy_(_cosines(channels, width)[:, :, None, None])
    # Without an activation: it would throw away the sign of a contrast before its surroundings have been looked at;
    # the backbone's own first convolution follows.
    return nn.Sequential(mixture, nn.BatchNorm2d(width))


def _cosines(channels: int, width: int) -> Tensor:
    """The first rows of the orthonormal DCT-II: (width, channels)."""
    places = (torch.arange(channels, dtype=torch.float64) + 0.5) / channels
    rows = torch.cos(math.pi * torch.arange(width, dtype=torch.float64)[:, None] * places)
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def spectral_stem_state(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The stem's own `state_dict()` out of an encoder's state or an exported file's; None where that has no stem."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    return own or None


def stem_shape(own: Mapping[str, Tensor]) -> tuple[int, int]:
    """Channels that a stem's state takes, and its width. Raises KeyError where that is no stem's state."""
    width, channels = own["0.weight"].shape[:2]
    return channels, width
