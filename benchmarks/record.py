"""What every results file says: the machine, the versions, the date; and how a record is added to the earlier ones."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from phenoscape_tune.files import write_whole
from phenoscape_tune.versions import versions

if TYPE_CHECKING:  # a benchmark of the search alone need not load torch
    import torch

RESULTS = Path(__file__).parent / "results"
PEERS = ("lightly", "lightning", "kornia")
NO_GPU = "not run on a GPU"
# As the script began, before its own work is part of it: what else ran on the machine.
_LOAD = [round(load, 2) for load in os.getloadavg()]


def machine(device: torch.device | str | None = None) -> dict[str, Any]:
    """The machine that a benchmark runs on.

    Args:
        device: that was measured; None: a GPU where torch is loaded and sees one.

    Returns cores that the process may use, processor, memory_gib, threads of torch (None where it is not loaded),
    load_average over 1, 5 and 15 minutes as the script began, gpu (its name, or "not run on a GPU") and gpu_memory_gib.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch = sys.modules.get("torch")
    told = {
        "cores": usable,
        "processor": _processor(),
        "memory_gib": round(memory / 2**30, 1),
        "threads": None if torch is None else torch.get_num_threads(),
        "load_average": _LOAD,
        "gpu": NO_GPU,
        "gpu_memory_gib": None,
    }
    if torch is not None and (torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"):
        properties = torch.cuda.get_device_properties(device or "cuda")
        told |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return told


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def all_versions() -> dict[str, str]:
    """Versions of what a result depends on, and of the peers that are installed."""
    found = dict(versions())
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe(device: torch.device | str | None = None) -> dict[str, Any]:
    """What a record begins with: date (UTC, ISO 8601), machine, versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": all_versions(),
    }


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record to a file's JSON list, the newest last; a file of one record becomes a list's first.

    A kill in the middle leaves the file as it was. Raises json.JSONDecodeError where the file holds something else.
    """
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    records = earlier if isinstance(earlier, list) else [earlier]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([*records, record], indent=1) + "\n")


def spread(ratios: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median, least and most of paired ratios. Raises statistics.StatisticsError where there are none."""
    values = sorted(ratios)
    middle = statistics.median(values)
    return {"median": round(middle, digits), "least": round(values[0], digits), "most": round(values[-1], digits)}


def told(ratios: Iterable[float], digits: int = 2) -> str:
    """The same for a person: `1.37 (1.24 to 1.51)`."""
    found = spread(ratios, digits)
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f} to {found['most']:.{digits}f})"


def process_memory(key: str = "VmRSS") -> int:
    """Memory of this process in bytes (Linux): VmRSS what it holds, VmHWM the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def installed(name: str) -> bool:
    """Whether a contestant can be imported; says how to get it where not. Ours always can."""
    if name == "ours" or importlib.util.find_spec(name) is not None:
        return True
    print(f"{name} is not installed and left out: pip install -e '.[bench]'", flush=True)
    return False


def refuse(message: str) -> NoReturn:
    """End the script with one line on standard error and exit code 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def need_gpu() -> None:
    """End the script where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        refuse(
            f"{Path(sys.argv[0]).name}: needs a GPU, and torch {torch.__version__} sees none; on a machine with one, "
            "`python scripts/tune.py --doctor` tells why; `make bench` runs what needs none"
        )
