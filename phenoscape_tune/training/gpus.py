"""The GPUs that this process may use, asked of the driver (NVML): neither torch nor Ray is needed, nor loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A graphics card: its name, and all of its memory in GiB; None where it shares the machine's."""

    name: str
    memory_gib: float | None


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs of this machine, in the driver's order, less those that CUDA_VISIBLE_DEVICES hides.

    Empty where there is no GPU or no driver, or where the driver does not answer: nothing hangs on the answer.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no card
        return []
    try:
        return read_all(pynvml, environment)
    except pynvml.NVMLError:
        return []
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def read_all(nvml: Any, environment: Mapping[str, str]) -> list[Gpu]:
    """The GPUs that a driver's library (the module pynvml, started) tells of. Raises its NVMLError."""
    return [_read(nvml, handle) for handle in _handles(nvml, environment)]


def _handles(nvml: Any, environment: Mapping[str, str]) -> list[Any]:
    names = listed(environment.get("CUDA_VISIBLE_DEVICES"))
    count = nvml.nvmlDeviceGetCount()
    if names is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    handles = []
    for name in names:
        if name.isdecimal() and int(name) < count:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(name)))
        elif name.startswith(("GPU-", "MIG-")):
            with suppress(nvml.NVMLError):
                handles.append(nvml.nvmlDeviceGetHandleByUUID(name))
        else:
            break  # CUDA too stops at the first that it does not know
    return handles


def listed(visible: str | None) -> Sequence[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES; None where it is not set, so that nothing is hidden."""
    return None if visible is None else [name for item in visible.split(",") if (name := item.strip())]


def _read(nvml: Any, handle: Any) -> Gpu:
    memory = None
    with suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle).total / GIB
    return Gpu(str(nvml.nvmlDeviceGetName(handle)), memory)
