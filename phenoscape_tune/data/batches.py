"""Batches of packed images on the device: shuffled by seed and epoch, shared out over ranks without overlap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from phenoscape_tune import ranks

RESIDENT_SHARE = 0.25  # of the device's free memory that the images may take


class Batches:
    """uint8 images (N, C, S, S) as batches on a device.

    On a GPU with room for all of them they are copied there once; elsewhere each batch is read from the memory map.
    """

    def __init__(self, images: np.ndarray, batch_size: int, device: torch.device) -> None:
        self._images = images
        self.batch_size = batch_size
        self.device = device
        self._resident: Tensor | None = None
        if device.type == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self._resident = torch.from_numpy(np.ascontiguousarray(images)).to(device)

    def take(self, indices: np.ndarray) -> Tensor:
        """The images at `indices` (n,) as uint8 (n, C, S, S) on the device."""
        if self._resident is not None:
            return self._resident[torch.from_numpy(indices).to(self.device)]
        batch = torch.from_numpy(self._images[indices])
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch

    def steps(self, part: np.ndarray) -> int:
        """Full batches of all ranks together in one epoch over `part`."""
        return len(part) // (self.batch_size * ranks.world_size())

    def shuffled(self, part: np.ndarray, seed: int, epoch: int) -> Iterator[Tensor]:
        """Full batches of this rank in an order that follows from (seed, epoch) alone; the remainder is dropped."""
        order = np.random.default_rng([seed, epoch]).permutation(part)
        span = self.batch_size * ranks.world_size()
        for start in range(0, self.steps(part) * span, span):
            own = start + ranks.rank() * self.batch_size
            yield self.take(order[own : own + self.batch_size])

    def in_order(self, part: np.ndarray) -> Iterator[Tensor]:
        """All images of `part` in its order, the last batch perhaps smaller; the same on every rank."""
        for start in range(0, len(part), self.batch_size):
            yield self.take(part[start : start + self.batch_size])
