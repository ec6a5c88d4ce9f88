"""Batches of packed images on the device: shuffled by seed and epoch, shared out over ranks without overlap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.data.balance import balanced_order

RESIDENT_SHARE = 0.25  # of the device's free memory that the images may take


class Batches:
    """uint8 images (N, C, S, S) as batches on a device.

    On a GPU with room for all of them they are copied there once; elsewhere each batch is read from the memory map.
    With `balance_by`, int64 labels (N,), shuffled epochs draw the classes evenly: see `balanced_order`.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, device: torch.device, balance_by: np.ndarray | None = None
    ) -> None:
        self._images = images
        self.batch_size = batch_size
        self.device = device
        self._balance_by = balance_by
        self._resident: Tensor | None = None
        if device.type == "cuda" and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            self._resident = torch.from_numpy(np.ascontiguousarray(images)).to(device)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self._images.shape[2], self._images.shape[3]

    def take(self, indices: np.ndarray) -> Tensor:
        """The images at `indices` (n,) as uint8 (n, C, S, S) on the device."""
        if self._resident is not None:
            # From pinned memory: a plain copy would wait for the GPU.
            return self._resident[torch.from_numpy(indices).pin_memory().to(self.device, non_blocking=True)]
        batch = torch.from_numpy(self._images[indices])
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch

    def steps(self, part: np.ndarray) -> int:
        """Full batches of all ranks together in one epoch over `part`."""
        return len(part) // (self.batch_size * ranks.world_size())

    def shuffled(self, part: np.ndarray, seed: int, epoch: int) -> Iterator[Tensor]:
        """Full batches of this rank in an order that follows from (seed, epoch) alone; the remainder is dropped."""
        rng, span, steps = np.random.default_rng([seed, epoch]), self.batch_size * ranks.world_size(), self.steps(part)
        if self._balance_by is None or not steps:
            order = rng.permutation(part)
        else:
            order = balanced_order(part, self._balance_by, span, steps, rng)
        for start in range(0, steps * span, span):
            own = start + ranks.rank() * self.batch_size
            yield self.take(order[own : own + self.batch_size])

    def in_order(self, part: np.ndarray) -> Iterator[Tensor]:
        """All images of `part` in its order, the last batch perhaps smaller; the same on every rank."""
        for start in range(0, len(part), self.batch_size):
            yield self.take(part[start : start + self.batch_size])
