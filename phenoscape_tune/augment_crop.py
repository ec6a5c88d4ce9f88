"""Crop, flip and resize: boxes as torchvision draws them, read by one `grid_sample` for all views."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phenoscape_tune.augment_device import send

RATIO, CROP_TRIES = (3 / 4, 4 / 3), 10
# An image packed for training is at most 8/7 of the input size, rounded up: plain bilinear sampling serves it.
UNFILTERED_DOWNSCALE = 1.2


def draw_crops(N: int, height: int, width: int, min_scale: float, generator: torch.Generator) -> Tensor:
    """N crops as `torchvision.transforms.RandomResizedCrop` draws them: int64 (4, N), top, left, height, width."""
    area = height * width * (min_scale + (1 - min_scale) * torch.rand(N, CROP_TRIES, generator=generator))
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** torch.rand(N, CROP_TRIES, generator=generator)  # log-uniform
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()  # (N, tries)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    found, first = fits.any(dim=1), fits.int().argmax(dim=1, keepdim=True)
    h = torch.where(found, h.gather(1, first).squeeze(1), min(height, round(width / RATIO[0])))
    w = torch.where(found, w.gather(1, first).squeeze(1), min(width, round(height * RATIO[1])))
    # In double precision u·n stays below n for u < 1, so that no corner leaves the image.
    u, v = torch.rand(2, N, generator=generator, dtype=torch.float64)
    top = torch.where(found, (u * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (v * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack((top, left, h, w))


def sampling_points(box: Tensor, flip: Tensor, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Columns and rows that the views read, in grid_sample's [-1, 1]: float32 (B, views, n), n a multiple of `size`."""
    (batch, _, height, width), device = images.shape, images.device
    n = size * max(1, math.ceil(max(height, width) / (size * UNFILTERED_DOWNSCALE)))
    extent = np.array((width, height))[:, None]
    first, length = box.numpy()[[[1, 0], [3, 2]]]  # (2, N) each: of columns, of rows, in pixels
    flipped = np.stack((flip.numpy(), np.zeros(len(flip), bool)))
    # On a line from one end of the crop to the other; a crop is cut out before it is resized, so that its border does
    # not see the pixels beyond it. Pixel p's centre stands at (2p + 1) / extent − 1.
    line = np.stack((first + flipped * length, np.where(flipped, -length, length))) * 2.0 / extent
    ends = (2.0 * np.stack((first, first + length - 1)) + 1) / extent
    numbers = np.concatenate((line - [[[1]], [[0]]], ends - 1)).astype(np.float32)  # (4, 2, N)
    drawn = send(torch.from_numpy(numbers).unflatten(2, (-1, batch)).mT.contiguous(), device)[..., None]
    start, slope, lowest, highest = drawn  # (2, B, views, 1) each
    points = torch.clamp(torch.addcmul(start, slope, _shares(n, device)), lowest, highest)
    return points[0], points[1]


@functools.cache
def _shares(n: int, device: torch.device) -> Tensor:
    """The middles of n equal parts of 0 … 1, (n,)."""
    return (torch.arange(n, device=device) + 0.5) / n


def sample(images: Tensor, xs: Tensor, ys: Tensor, size: int) -> Tensor:
    """Read images (b, C, H, W) at the points xs × ys, (b, views, n) each → float32 (b, C, views, size, size)."""
    b, views, n = xs.shape
    # The views lie one below the other in a single grid, so that the images need not be repeated.
    grid = torch.empty(b, views, n, n, 2, device=images.device)
    grid[..., 0], grid[..., 1] = xs[:, :, None, :], ys[:, :, :, None]
    grid = grid.flatten(1, 2)  # (b, views·n, n, 2)
    source = images.to(torch.float32, memory_format=torch.contiguous_format)
    sampled = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if n != size:
        sampled = F.avg_pool2d(sampled, n // size)  # (b, C, views·size, size)
    return sampled.unflatten(2, (views, size))
