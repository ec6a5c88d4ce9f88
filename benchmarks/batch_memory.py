"""Memory and time of a large contrastive batch that goes through the network in parts, against its peers.

Three ways to train on a batch of 4,096 images, each in a process of its own: ours in micro-batches of 128, whose loss
sees all 4,096 (exact); plain gradient accumulation over 32 micro-batches of 128, each with a loss of its own that sees
its 128 images only (not exact: the peer in memory); the whole batch at once (the peer in what is computed). A process
takes a step on two images, which loads kernels, then a step on the batch; it tells its peak memory (resident; on a GPU
torch's allocations) above what it held before it had any views, and how much of it are the views: accumulation needs
those of one micro-batch at a time, the other two of the whole batch. The three take turns, and a ratio is of one turn.

Last, how well the gradients agree with the whole batch's, on fewer images, in float32 and with batch norm's statistics
held still (in training they are a micro-batch's, for ours as for accumulation).

    python benchmarks/batch_memory.py
    python benchmarks/batch_memory.py --gpu      # ResNet-50 at 224 px; ends where there is no GPU
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import record
import torch
from torch import Tensor

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.model import Encoder, build_encoder
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training.device import autocast_dtype
from phenoscape_tune.training.gradient_cache import GradientStep
from phenoscape_tune.training.memory import is_out_of_memory

RESULTS = record.RESULTS / "batch_memory.json"
WAYS = ("ours", "accumulation", "whole batch")
OUT_OF_MEMORY = "out of memory"
MIB = 2**20
Measured = dict[str, Any]


def set_up(args: argparse.Namespace, batch: int, micro: int, device: torch.device) -> tuple[TrainConfig, Encoder]:
    config = build_config({
        "backbone": args.backbone, "input_size": args.size, "stem": "standard", "batch_size": batch,
        "micro_batch_size": micro,
    })  # fmt: skip
    torch.manual_seed(0)
    encoder = build_encoder(config, 3, [0.5] * 3, [0.25] * 3, say=lambda line: None).to(device)
    return config, encoder.to(memory_format=torch.channels_last)


def make_views(rows: int, size: int, device: torch.device) -> Tensor:
    """Random views (rows, 3, size, size), as the network takes them."""
    views = torch.empty(rows, 3, size, size, device=device, memory_format=torch.channels_last)
    return views.uniform_()


def accumulate(encoder: Encoder, views: Callable[[], Tensor], parts: int, temperature: float, autocast: Any) -> None:
    """Plain gradient accumulation: a forward and a backward pass for each micro-batch, with a loss of its own."""
    encoder.zero_grad(set_to_none=True)
    for _ in range(parts):
        with autocast():
            _, z = encoder(views())
        (nt_xent(z, temperature) / parts).backward()


def measure(way: str, args: argparse.Namespace, device: torch.device) -> Measured:
    """In this process: memory and seconds of a step."""
    micro = args.batch if way == "whole batch" else args.micro
    config, encoder = set_up(args, args.batch, micro, device)
    encoder.train()
    dtype = autocast_dtype(config, device, encoder, 3, say=lambda line: None)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    # Kernels and their workspaces are loaded once, whatever the batch.
    accumulate(encoder, lambda: make_views(4, args.size, device), 1, config.temperature, autocast)
    encoder.zero_grad(set_to_none=True)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = (torch.cuda.memory_allocated() if on_gpu else record.process_memory("VmRSS")) / MIB
    gradient_step = GradientStep(encoder, config)
    held = make_views(2 * args.batch, args.size, device) if way != "accumulation" else None

    def of_a_micro_batch() -> Tensor:
        return make_views(2 * args.micro, args.size, device)

    def step() -> None:
        if held is not None:
            gradient_step(held, autocast)
        else:
            accumulate(encoder, of_a_micro_batch, -(-args.batch // args.micro), config.temperature, autocast)
        if on_gpu:
            torch.cuda.synchronize()

    seconds = []
    try:
        for _ in range(args.steps):
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return {"way": way, "failed": OUT_OF_MEMORY}
    peak = (torch.cuda.max_memory_allocated() if on_gpu else record.process_memory("VmHWM")) / MIB
    rows = 2 * (args.micro if way == "accumulation" else args.batch)
    views = rows * 3 * args.size**2 * 4 / MIB
    told = {"way": way, "before_mib": round(before), "peak_mib": round(peak - before), "views_mib": round(views)}
    return told | {"seconds": round(statistics.median(seconds), 2), "dtype": str(dtype or torch.float32)}


def agreement(args: argparse.Namespace, device: torch.device) -> Measured:
    """Relative difference and cosine of ours' and accumulation's gradients to the whole batch's, in float32."""
    batch, micro = args.agreement, args.agreement // 16
    views = make_views(2 * batch, args.size, device)
    found: dict[str, Tensor] = {}
    for way in WAYS:
        config, encoder = set_up(args, batch, batch if way == "whole batch" else micro, device)
        encoder.eval()  # running statistics: no image changes what batch norm does to another
        if way == "accumulation":
            # Image i of view 1 and of view 2 go through together, as they would with a loader of small batches.
            parts = map(torch.cat, zip(*(view.split(micro) for view in views.chunk(2)), strict=True))
            accumulate(encoder, parts.__next__, batch // micro, config.temperature, nullcontext)
        else:
            GradientStep(encoder, config)(views, nullcontext)
        found[way] = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]).double()
    whole = found["whole batch"]
    told: Measured = {"batch": batch, "micro_batch": micro}
    for way in ("ours", "accumulation"):
        difference = float((found[way] - whole).norm() / whole.norm())
        cosine = float(found[way] @ whole / (found[way].norm() * whole.norm()))
        told[way] = {"relative_difference": float(f"{difference:.2g}"), "cosine": round(cosine, 6)}
    return told


def in_a_process(what: str) -> Measured:
    """Run this script anew for one way; a process that the system ended for its memory is one that ran out of it."""
    done = subprocess.run([sys.executable, *sys.argv, "--one", what], stdout=subprocess.PIPE, text=True)
    if done.returncode == -9:
        return {"way": what, "failed": OUT_OF_MEMORY}
    if done.returncode:
        raise RuntimeError(f"{what}: its process ended with {done.returncode}; what it said stands above")
    found: Measured = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(turns: list[dict[str, Measured]]) -> list[dict[str, Any]]:
    """Ours against each peer, turn by turn: peak memory, with and without the views, and time."""
    rows: list[dict[str, Any]] = []
    for peer in WAYS[1:]:
        pairs = [(turn["ours"], turn[peer]) for turn in turns if "failed" not in turn["ours"] | turn[peer]]
        row: dict[str, Any] = {"peer": peer, "failed": sum("failed" in turn[peer] for turn in turns)}
        if pairs:
            row["peak_ratio"] = record.spread(a["peak_mib"] / b["peak_mib"] for a, b in pairs)
            without = [(a["peak_mib"] - a["views_mib"]) / (b["peak_mib"] - b["views_mib"]) for a, b in pairs]
            row["peak_ratio_without_views"] = record.spread(without)
            row["time_ratio"] = record.spread(a["seconds"] / b["seconds"] for a, b in pairs)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="ResNet-50 at 224 px on a GPU; ends where there is none")
    parser.add_argument("--backbone", help="default: resnet18, with --gpu resnet50")
    parser.add_argument("--size", type=int, help="side of a view, pixels; default: 32, with --gpu 224")
    parser.add_argument("--batch", type=int, default=4096, help="images that the loss sees")
    parser.add_argument("--micro", type=int, default=128, help="images at once")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps of a process")
    parser.add_argument("--agreement", type=int, default=256, help="images on which gradients are compared, 16 parts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own: measure this
    args = parser.parse_args()
    if args.gpu:
        record.need_gpu()
    if args.agreement < 32 or args.agreement % 16:
        record.refuse(f"--agreement {args.agreement}: write a multiple of 16, 32 or more")
    args.backbone = args.backbone or ("resnet50" if args.gpu else "resnet18")
    args.size = args.size or (224 if args.gpu else 32)
    device = torch.device("cuda" if args.gpu else "cpu")
    if args.one:
        print(json.dumps(agreement(args, device) if args.one == "agreement" else measure(args.one, args, device)))
        return
    turns = []
    for number in range(1, args.turns + 1):
        turns.append({way: in_a_process(way) for way in WAYS})
        for found in turns[-1].values():
            print(f"turn {number} of {args.turns}: {json.dumps(found)}", flush=True)
    rows, agreed = compare(turns), in_a_process("agreement")
    for row in (*rows, agreed):
        print(json.dumps(row), flush=True)
    setting = {key: getattr(args, key) for key in ("backbone", "size", "batch", "micro")}
    about = {**record.describe(device), **setting}
    record.append(args.results, {**about, "results": rows, "agreement": agreed, "turns": turns})
    print(f"appended to {args.results}", flush=True)


if __name__ == "__main__":
    main()
