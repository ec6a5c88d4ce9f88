"""How busy a run keeps its device, and how much memory it takes: sampled now and then, and never worth a failed run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

log = logging.getLogger(__name__)

GIB = 2**30
# NVML tells the share of the last sixth of a second to second, depending on the card: asking more often says no more.
SAMPLE_SECONDS = 1.0
LEAST_SAMPLES = 3  # fewer are no measure of an epoch


@dataclass(frozen=True)
class Reading:
    """One look at a device: the share of time in which it computed, in [0, 1], None on a CPU; memory in use, in GiB."""

    utilisation: float | None
    memory_gib: float


class DeviceUse:
    """What a device was seen to do since the last row.

    Args:
        device: of the run.
        read: looks at the device once; by default NVML's answer for a GPU, which is of all that runs on it, and the
            memory of this process on a CPU. The first error ends the looking.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        device: torch.device,
        read: Callable[[], Reading] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key = "device_memory_gb" if device.type == "cuda" else "process_memory_gb"
        self._read = read or (lambda: read_gpu(device) if device.type == "cuda" else read_process())
        self._now = now
        self._last = -float("inf")
        self._readings: list[Reading] = []
        self._works = True

    def sample(self) -> None:
        """Look at the device, unless that was done within the last second. Called after every step."""
        if not self._works or self._now() - self._last < SAMPLE_SECONDS:
            return
        self._last = self._now()
        try:
            self._readings.append(self._read())
        except Exception as error:  # no driver library, a card that does not tell, a container that may not ask
            self._works = False
            log.info("the device's use is not measured: %s", str(error) or type(error).__name__)

    def row(self) -> dict[str, float]:
        """`utilisation` (mean share, in [0, 1]; of a GPU that was looked at often enough) and the most memory in use,
        in GiB: `device_memory_gb` of a GPU, `process_memory_gb` on a CPU. What was seen is forgotten."""
        readings, self._readings = self._readings, []
        row = {self._key: max(reading.memory_gib for reading in readings)} if readings else {}
        shares = [reading.utilisation for reading in readings if reading.utilisation is not None]
        return {"utilisation": sum(shares) / len(shares), **row} if len(shares) >= LEAST_SAMPLES else row


def read_gpu(device: torch.device) -> Reading:
    """What the driver tells of a GPU; does not wait for it. Raises what torch and NVML raise where it tells nothing."""
    return Reading(torch.cuda.utilization(device) / 100, torch.cuda.device_memory_used(device) / GIB)


def read_process() -> Reading:
    """The memory of this process that is in use (Linux), or was at most (macOS). Raises OSError, ImportError."""
    import resource

    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return Reading(None, int(statistics.read_text().split()[1]) * resource.getpagesize() / GIB)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Reading(None, peak * (1 if sys.platform == "darwin" else 1024) / GIB)
