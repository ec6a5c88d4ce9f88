"""Gaussian blur of the views that were drawn for it, each with a kernel of its own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from phenoscape_tune.augment_device import send, slices

# The share of a Gaussian beyond four standard deviations, 6e-5, is below an 8-bit image's resolution.
BLUR_REACH = 4


def blur(images: Tensor, sigma: Tensor, chosen: Tensor, radius: int) -> None:
    """Blur the chosen of `images` (N, C, s, s) in place, reflecting at the border; sigma, chosen (N,) on the CPU."""
    _, C, s, _ = images.shape
    chosen_rows = chosen.nonzero().squeeze(1)
    # Sorted, so that the narrow kernels come together and are spared the wide ones' taps.
    chosen_rows = chosen_rows[sigma[chosen_rows].argsort()]
    for block in slices(len(chosen_rows), C * s * s, images.device):
        widths = sigma[chosen_rows[block]]
        reach = min(radius, math.ceil(BLUR_REACH * float(widths[-1])))
        offsets = torch.arange(-reach, reach + 1)[:, None]
        # Each kernel ends at its own reach, so that a view does not depend on which others are in its block.
        taps = torch.exp(-0.5 * (offsets / widths) ** 2) * (offsets.abs() <= (BLUR_REACH * widths).ceil())
        taps = send(taps / taps.sum(0), images.device)  # (2·reach+1, n)
        rows = send(chosen_rows[block], images.device)
        padded = F.pad(images.index_select(0, rows), (reach,) * 4, mode="reflect")  # (n, C, s+2·reach, s+2·reach)
        blurred = (_convolved if images.device.type == "cuda" else _summed)(padded, taps)
        images.index_copy_(0, rows, blurred.clamp_(0, 1))


def _convolved(padded: Tensor, taps: Tensor) -> Tensor:
    """Images (n, C, s+k-1, s+k-1) across and down with kernels (k, n) of their own, one group a channel of an image."""
    n, C, side, _ = padded.shape
    k = len(taps)
    kernels = taps.T.repeat_interleave(C, dim=0)  # (n·C, k)
    planes = padded.view(1, n * C, side, side)
    across = F.conv2d(planes, kernels[:, None, None], groups=n * C)
    return F.conv2d(across, kernels[:, None, :, None], groups=n * C).view(n, C, side - k + 1, side - k + 1)


def _summed(padded: Tensor, taps: Tensor) -> Tensor:
    """The same as shifted sums: on a CPU a grouped convolution would be compiled anew for each number of images."""
    s = padded.shape[-1] - len(taps) + 1
    weights = taps[..., None, None, None]  # (k, n, 1, 1, 1)
    across = padded[..., :s] * weights[0]
    for d in range(1, len(weights)):
        across.addcmul_(padded[..., d : d + s], weights[d])
    down = across[:, :, :s] * weights[0]
    for d in range(1, len(weights)):
        down.addcmul_(across[:, :, d : d + s], weights[d])
    return down
