"""Batches of images on the device: shuffled by seed and epoch, shared out over ranks without overlap."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.data.balance import balanced_order
from phenoscape_tune.data.images import Pixels, let_go
from phenoscape_tune.data.unpacked import UnpackedPixels

RESIDENT_SHARE = 0.25  # of the device's free memory that the images may take


class Batches:
    """Images (N, C, S, S), uint8 or uint16, as batches on a device.

    On a GPU with room for all packed images they are copied there once; elsewhere each batch is read from the memory
    map. Images that are not packed are decoded two batches ahead.

    Args:
        balance_by: int64 labels (N,): shuffled epochs draw the classes evenly; see `balanced_order`.
        pin_memory: whether batches go to a GPU from page-locked memory, so that the copy does not wait for it.
    """

    def __init__(
        self,
        images: Pixels,
        batch_size: int,
        device: torch.device,
        balance_by: np.ndarray | None = None,
        pin_memory: bool = True,
    ) -> None:
        self._images = images
        self.batch_size = batch_size
        self.device = device
        self._balance_by = balance_by
        self._pin = pin_memory and device.type == "cuda"
        self._resident: Tensor | None = None
        if (
            isinstance(images, np.ndarray)
            and device.type == "cuda"
            and images.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        ):
            # Few operations know uint16: it is kept, and indexed, as the int16 of the same bits.
            kept = images.view(np.int16) if images.dtype == np.uint16 else images
            with warnings.catch_warnings():
                # The memory map cannot be written to, and nothing here does: it is copied at once.
                warnings.filterwarnings("ignore", message=".*not writable", category=UserWarning)
                self._resident = torch.from_numpy(np.ascontiguousarray(kept)).to(device)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self._images.shape[2], self._images.shape[3]

    def take(self, indices: np.ndarray) -> Tensor:
        """The images at `indices` (n,) as (n, C, S, S) on the device."""
        return next(self._take_each([indices]))

    def _take_each(self, order: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """The images at each (n,) of `order`."""
        if self._resident is not None:
            for indices in order:
                taken = self._resident[self._send(torch.from_numpy(indices))]
                yield taken.view(torch.uint16) if taken.dtype == torch.int16 else taken
        else:
            images = self._images
            read = map(images.__getitem__, order)
            for batch in images.in_batches(order) if isinstance(images, UnpackedPixels) else read:
                let_go(images)
                yield self._send(torch.from_numpy(batch))

    def _send(self, tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if self._pin else tensor).to(self.device, non_blocking=True)

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
        own = ranks.rank() * self.batch_size
        yield from self._take_each([order[at : at + self.batch_size] for at in range(own, steps * span, span)])

    def in_order(self, part: np.ndarray) -> Iterator[Tensor]:
        """All images of `part` in its order, the last batch perhaps smaller; the same on every rank."""
        yield from self._take_each([part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)])
