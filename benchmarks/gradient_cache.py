"""Memory and time of a contrastive batch that goes through the network in parts, against the whole batch at once.

Each setting trains three steps in a process of its own; the peak of its resident memory (on a GPU: of torch's
allocations) is told beside the same process's memory before the first step. The loss sees all images in either case.

    python benchmarks/gradient_cache.py --batch 256 --size 64
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import record
import torch

from phenoscape_tune.config import build_config

RESULTS = record.RESULTS / "gradient_cache.json"
STEPS = 3


def resident_mib(key: str) -> float:
    """`VmHWM` (peak) or `VmRSS` (now) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measure(backbone: str, size: int, batch: int, micro: int) -> dict[str, float]:
    """In this process: memory and seconds of a step."""
    from phenoscape_tune.model import build_encoder
    from phenoscape_tune.training.gradient_cache import GradientStep

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = build_config(
        {"backbone": backbone, "input_size": size, "stem": "standard", "batch_size": batch, "micro_batch_size": micro}
    )
    encoder = build_encoder(config, 3, [0.5] * 3, [0.25] * 3).to(device).train()
    views = torch.rand(2 * batch, 3, size, size, device=device)
    step = GradientStep(encoder, config)
    before = torch.cuda.memory_allocated() / 2**20 if device.type == "cuda" else resident_mib("VmRSS")
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        float(step(views, nullcontext))
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else resident_mib("VmHWM")
    return {"before_mib": round(before), "step_mib": round(peak - before), "seconds": round(min(seconds), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of a view, pixels")
    parser.add_argument("--batch", type=int, default=256, help="images that the loss sees")
    parser.add_argument("--micro", type=int, nargs="+", default=[256, 64, 16], help="images at once")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # in a process of its own: measure this one
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.backbone, arguments.size, arguments.batch, arguments.one)))
        return
    rows: list[dict[str, Any]] = []
    for micro in arguments.micro:
        command = [sys.executable, __file__, "--one", str(micro), "--backbone", arguments.backbone]
        command += ["--size", str(arguments.size), "--batch", str(arguments.batch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append({"micro_batch": micro, **json.loads(done.stdout.splitlines()[-1])})
        whole = rows[0]
        rows[-1]["memory_ratio"] = round(rows[-1]["step_mib"] / whole["step_mib"], 3)
        rows[-1]["time_ratio"] = round(rows[-1]["seconds"] / whole["seconds"], 2)
        print(json.dumps(rows[-1]), flush=True)
    setting = {"backbone": arguments.backbone, "size": arguments.size, "batch": arguments.batch}
    record.append(RESULTS, {**record.describe(), **setting, "results": rows})


if __name__ == "__main__":
    main()
