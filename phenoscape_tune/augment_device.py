"""What the steps that make views share: what was drawn comes to the device, and how much is worked on at a time."""

from __future__ import annotations

import torch
from torch import Tensor

# Values worked on at a time: on a CPU what stays in its cache, on a GPU what bounds the extra memory.
CPU_SLICE, GPU_SLICE = 2**19, 2**27


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device; a GPU is not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def slices(rows: int, values_per_row: int, device: torch.device) -> list[slice]:
    """Runs of `rows` rows that are worked on together, at least one row each."""
    step = max(1, (CPU_SLICE if device.type == "cpu" else GPU_SLICE) // values_per_row)
    return [slice(start, start + step) for start in range(0, rows, step)]
