"""The training guide's table of batch sizes by GPU memory ("Batch Size Optimization"), and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

from phenoscape_tune.training.gpus import Gpu

# Memory that a card is sold with, in GB, and the smallest and largest batch size for it.
TABLE = {8: (16, 32), 16: (32, 64), 24: (64, 128)}
# A card shows less than it is sold with: a T4 of 16 GB has 14.6 GiB, an RTX 4090 of 24 GB 23.5.
SHOWN = 0.9

Range = tuple[int, int]


def recommended_batch(memory_gib: float) -> Range | None:
    """The batch sizes, smallest and largest, that the guide recommends for so much GPU memory; below 8 GB None."""
    row = _row(memory_gib)
    return None if row is None else TABLE[row]


def smallest(gpus: Sequence[Gpu], share: float = 1.0) -> float | None:
    """The memory in GiB that a trial has wherever it runs, when it has this `share` of a GPU; None where unknown."""
    return min((gpu.memory_gib * min(share, 1.0) for gpu in gpus if gpu.memory_gib is not None), default=None)


def describe_memory(gpus: Sequence[Gpu], share: float = 1.0) -> list[str]:
    """The memory of each GPU and the guide's batch sizes for it, in a line; none where no memory is known."""
    memory = smallest(gpus, share)
    if memory is None:
        return []
    cards = ", ".join(f"{gpu.memory_gib:.1f} GiB ({gpu.name})" for gpu in gpus if gpu.memory_gib is not None)
    part = f", of which a trial has {memory:.1f} GiB" if share < 1 else ""
    batch = recommended_batch(memory)
    if batch is None:
        told = f"the guide's table of batch sizes begins at {min(TABLE)} GB"
    else:
        told = f"the guide recommends a batch_size of {batch[0]} to {batch[1]}"
    return [f"GPU memory: {cards}{part}; {told}"]


def batch_warning(key: str, values: Sequence[float], memory_gib: float | None) -> list[str]:
    """A warning where no batch size between the smallest and the largest of `values` is one that the guide recommends.

    Args:
        key: what the user wrote, `batch_size` or `parameters.batch_size`.
        values: one batch size, or those that a search may try.
        memory_gib: of the GPU; None without one.
    """
    batch = None if memory_gib is None else recommended_batch(memory_gib)
    if memory_gib is None or batch is None or not values:
        return []
    low, high = batch
    if any(low <= value <= high for value in values) or (min(values) < low and max(values) > high):
        return []
    told = f"{values[0]:g}" if len(values) == 1 else f"{min(values):g} to {max(values):g}"
    row = _row(memory_gib)
    cards = f"{row} GB{' or more' if row == max(TABLE) else ''}"
    if max(values) < low:
        remedy = f"a larger one gives the loss more negatives; try batch_size={low}"
    else:
        remedy = f"if memory runs out, write batch_size={high} or micro_batch_size={high}, which leaves the batch whole"
    return [f"{key}: {told} is outside the {low} to {high} that the guide recommends for a GPU of {cards}: {remedy}"]


def _row(memory_gib: float) -> int | None:
    """The table's row, by the memory that a card is sold with."""
    return max((row for row in TABLE if memory_gib >= SHOWN * row), default=None)
