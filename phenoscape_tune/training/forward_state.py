"""What a forward pass in training changes: random state, and batch norm's running statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class RunningStatistics:
    """Batch norm's running statistics, which every forward pass in training moves.

    They are put back, and not kept from moving: a layer that is run again has to do what it did at first, and a
    compiled network would be compiled anew for every other setting of a layer.
    """

    def __init__(self, encoder: nn.Module) -> None:
        # A frozen one, in evaluation mode, does not move.
        norms = [m for m in encoder.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._sums = [torch.zeros_like(buffer) for buffer in self._buffers]
        self._parts = 0

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """What moves within is put back at the end."""
        before = [buffer.clone() for buffer in self._buffers]
        try:
            yield
        finally:
            self._set(before)

    def add_part(self) -> None:
        """Remember what a part of the batch has made of them."""
        self._parts += 1
        for total, buffer in zip(self._sums, self._buffers, strict=True):
            total += buffer

    def move(self) -> None:
        """One step towards the mean of the parts' statistics; `num_batches_tracked` is the same in each of them."""
        whole = [None if total.is_floating_point() else "floor" for total in self._sums]
        self._set(
            [torch.div(total, self._parts, rounding_mode=how) for total, how in zip(self._sums, whole, strict=True)]
        )

    @torch.no_grad()
    def _set(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The states of the random generators of the CPU and, where it is one, of a GPU; uint8 (bytes,) each."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Go on from where `random_state` was asked."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


class ForwardState:
    """The random state and the buffers of an encoder as they are now, to be put back."""

    def __init__(self, encoder: nn.Module, device: torch.device) -> None:
        self.device, self.random = device, random_state(device)
        self.buffers: Sequence[Tensor] = list(encoder.buffers())
        self.values = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        """Put them back."""
        set_random_state(self.random, self.device)
        for buffer, value in zip(self.buffers, self.values, strict=True):
            buffer.copy_(value)
