"""The memory of the machine and the device: how much is free, how to take no more, how to tell that it ran out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who only catches OutOfMemory need not load torch
    import torch

AVAILABLE_SHARE = 0.8  # of the free memory that the trials of a machine may take together
# What torch's CPU allocator, oneDNN, cuBLAS, cuDNN and the C++ library say in a plain RuntimeError, in lower case.
_ALLOCATION_FAILED = ("allocate memory", "not enough memory", "could not allocate", "unable to allocate", "bad_alloc",
                      "out of memory", "alloc_failed")  # fmt: skip

# Of a control group by its controllers (version 2 names none): limit, use, and in memory.stat what of it is a cache.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class OutOfMemory(Exception):
    """A configuration does not fit the device's memory; one line that names the sizes and what to change."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of a GPU or of the machine did not suffice."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower().strip()
    # oneDNN says no more than this where it finds no room for its kernels (torch 2.15, measured under a memory limit).
    no_room_for_kernels = text == "could not create a primitive"
    return isinstance(error, RuntimeError) and (no_room_for_kernels or any(part in text for part in _ALLOCATION_FAILED))


def available_memory(concurrent: int = 1) -> int:
    """Bytes of the machine's memory that each of so many trials side by side may take: 80 % of what is free.

    What is free follows from /proc/meminfo and the limits of this process' control groups (a container's, a batch
    job's).
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Elsewhere than on Linux only the whole is told.
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(AVAILABLE_SHARE * min([free, *_free_in_control_groups()]) / concurrent)


def _free_in_control_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that each control group above this process, version 1 or 2, still grants; where it has a limit."""
    free = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in _GROUP_FILES:
                continue
            base = root / controllers
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                # A group of the host, which a container does not see, and "max", which is no limit, are passed over.
                with suppress(OSError, ValueError, KeyError):
                    free.append(_free_in_group(folder, *_GROUP_FILES[controllers]))
                if folder == base:
                    break
    return free


def _free_in_group(folder: Path, limit: str, usage: str, cached: str) -> int:
    granted, used = int((folder / limit).read_text()), int((folder / usage).read_text())
    kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    # Files that were read, such as the packed images, are counted as used and given up where room is needed.
    return max(0, granted - used + int(kinds[cached]))


@contextmanager
def limited_memory(device: torch.device, limit: int | None) -> Iterator[None]:
    """Within, this process gets no more than `limit` bytes: of a GPU's memory in all, else beyond what it holds by now.

    None: on a GPU all there is, else `available_memory()`. On a CPU, address space is bounded (Linux only).
    """
    import torch

    if device.type == "cuda":
        if limit is None:
            yield
            return
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # no Linux: nothing here bounds memory
        yield
        return
    bound = pages * resource.getpagesize() + (available_memory() if limit is None else limit)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    known = [value for value in (bound, soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
