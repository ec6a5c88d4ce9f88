"""What `--doctor` asks of the machine: cores, memory, limits."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from phenoscape_tune.cli.common import available_cpus
from phenoscape_tune.cli.rows import FAULT, OK, WARNING, Row

GIB = 2**30
LITTLE_MEMORY_GIB = 4.0
SMALL_SHARED_GIB = 1.0
FEW_OPEN_FILES = 4096  # Ray holds several for each process and each of its logs
SMALLEST_FILE = 2**30  # a checkpoint of a large network


def check_cores(control_group: Path = Path("/sys/fs/cgroup")) -> list[Row]:
    """The cores of the machine, of this process, and of its control group."""
    cores, machine = available_cpus(), os.cpu_count() or 1
    granted = granted_cores(control_group)
    told = f"{cores} of {machine} cores may be used" if cores < machine else f"{cores} cores"
    if granted is not None and granted < cores:
        remedy = f"--concurrent {max(1, int(granted))}, or start it with taskset -c 0-{max(1, int(granted)) - 1}"
        return [Row("cores", WARNING, f"{told}, but the control group grants the time of {granted:g}", remedy)]
    return [Row("cores", OK, told)]


def granted_cores(folder: Path) -> float | None:
    """Cores whose time a control group grants (version 2, else 1); None without a limit."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota_us = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((folder / "cpu" / "cpu.cfs_period_us").read_text())
    return None


def check_memory(control_group: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> list[Row]:
    """Free memory, and the control group's limit where there is one."""
    free = free_memory_gib(meminfo)
    limit = memory_limit_gib(control_group)
    if free is None:
        return [Row("memory", WARNING, f"{meminfo} does not tell it", "look at it yourself")]
    told = f"{free:.1f} GiB free" + ("" if limit is None else f"; the control group allows {limit:.1f} GiB in all")
    if min(free, limit or free) < LITTLE_MEMORY_GIB:
        remedy = f"a trial takes 1 to 3 GiB, Ray itself about 1: --concurrent 1, or more than {LITTLE_MEMORY_GIB:g} GiB"
        return [Row("memory", WARNING, told, remedy)]
    return [Row("memory", OK, told)]


def free_memory_gib(meminfo: Path) -> float | None:
    with suppress(OSError, ValueError, StopIteration, IndexError):
        line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) / 2**20
    return None


def memory_limit_gib(folder: Path) -> float | None:
    """Memory that a control group allows (version 2, else 1); None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limit = int((folder / name).read_text())
            return None if limit >= 2**60 else limit / GIB  # version 1 writes a huge number for none
    return None


def check_shared_memory(folder: Path = Path("/dev/shm")) -> list[Row]:
    """The folder that Ray keeps its objects in."""
    if not folder.is_dir():
        return [Row("shared memory", FAULT, f"{folder} is missing", "mount it: Ray keeps its objects there")]
    usage = os.statvfs(folder)
    size, free = usage.f_blocks * usage.f_frsize / GIB, usage.f_bavail * usage.f_frsize / GIB
    told = f"{folder}: {free:.1f} of {size:.1f} GiB free"
    if free < SMALL_SHARED_GIB:
        return [
            Row("shared memory", WARNING, told, "a container: docker run --shm-size=8g; else free it, or enlarge it")
        ]
    return [Row("shared memory", OK, told)]


def check_open_files() -> list[Row]:
    """Limits of this process: open files, and the size of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    rows = [Row("open files", OK, f"{soft:,} at once")]
    if soft != resource.RLIM_INFINITY and soft < FEW_OPEN_FILES:
        most = "65536" if hard == resource.RLIM_INFINITY else str(hard)
        rows = [Row("open files", WARNING, f"{soft:,} at once; Ray wants {FEW_OPEN_FILES:,}", f"ulimit -n {most}")]
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if largest != resource.RLIM_INFINITY and largest < SMALLEST_FILE:
        told = f"files of at most {largest:,} bytes may be written; checkpoints and packed images are larger"
        rows.append(Row("file size", FAULT, told, "ulimit -f unlimited"))
    return rows
