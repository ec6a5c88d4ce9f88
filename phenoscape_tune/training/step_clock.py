"""The time of an epoch's training steps: images per second, and the share of it that goes by waiting for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.training.device_use import DeviceUse


class StepClock:
    """Goes along with the batches of an epoch. Nothing waits for a GPU: waiting for data is the host's own time.

    Args:
        use: is asked to look at the device after each step.
        now: a clock, in seconds.
    """

    def __init__(self, use: DeviceUse, now: Callable[[], float] = time.perf_counter) -> None:
        self._use, self._now = use, now
        self._started, self._waited, self._images = now(), 0.0, 0

    def steps(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """The batches (B, ...) of an epoch as they are, timed; a new epoch begins with the first one that is asked for.

        The time between asking for a batch and having it is the wait for data, the rest that of the step.
        """
        self._started, self._waited, self._images = self._now(), 0.0, 0
        iterator = iter(batches)
        while True:
            asked = self._now()
            batch = next(iterator, None)
            self._waited += self._now() - asked
            if batch is None:
                return
            self._images += len(batch) * ranks.world_size()
            yield batch
            self._use.sample()

    @property
    def images_per_second(self) -> float:
        """Images of all ranks in a second of the epoch so far. A GPU may be some steps behind, so that only after what
        waits for it (the epoch's mean loss) the number is exact."""
        return self._images / max(self._now() - self._started, 1e-9)

    def row(self) -> dict[str, float]:
        """Of the epoch that has just been trained: images_per_second, waiting_share in [0, 1], and the device's use.

        Called once, before anything else is done with the device.
        """
        elapsed = max(self._now() - self._started, 1e-9)
        return {
            "images_per_second": self._images / elapsed,
            "waiting_share": min(1.0, self._waited / elapsed),
            **self._use.row(),
        }
