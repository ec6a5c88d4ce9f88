"""The devices that a search runs on: looked for, started, and measured."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import available_cpus
from phenoscape_tune.errors import UserError

if TYPE_CHECKING:
    from phenoscape_tune.data.parts import Parts
    from phenoscape_tune.search.plan import Plan


@dataclass(frozen=True)
class Devices:
    """What the trials run on: how many side by side, and the CPUs and GPUs of each."""

    concurrent: int
    cpus: int
    gpus: float
    total_gpus: int
    since: float  # when the command began to use them, by the monotonic clock


def start_devices(args: argparse.Namespace, plan: Plan) -> Devices:
    """Start Ray, and build the network once. Raises UserError where it cannot run as asked."""
    from phenoscape_tune.search.plan import share_devices

    since, cpus = time.monotonic(), available_cpus()
    share_devices(cpus, 0, args.concurrent)  # refused before Ray takes its ten seconds
    if not args.quiet:
        print("starting Ray ...", file=sys.stderr, flush=True)
    from phenoscape_tune.search.runner import check_on_worker, count_gpus, start_ray

    start_ray(cpus, args.verbose)
    gpus = 0 if plan.base.accelerator == "cpu" else count_gpus()
    if plan.space.budget.gpu_hours and not gpus:
        raise UserError("budget.gpu_hours: no GPU is used here, so no time of one is ever spent; write hours")
    devices = Devices(*share_devices(cpus, gpus, args.concurrent), total_gpus=gpus, since=since)
    check_on_worker(plan.base, devices.gpus)
    return devices


def measure_batch_sizes(plan: Plan, parts: Parts, devices: Devices, quiet: bool) -> Plan:
    """The plan with what the device holds and how fast it is at each batch size, where the batch size is searched.

    Measured before the trials, which would share the device with it.
    """
    batch = plan.space.parameters.get("batch_size")
    bounds = None if batch is None else batch.bounds
    if bounds is None:
        return plan
    from phenoscape_tune.search.runner import measure_on_worker

    if not quiet:
        print("measuring batch sizes ...", file=sys.stderr, flush=True)
    up_to = min(int(bounds[1]), len(parts.split.train))
    return replace(
        plan,
        capacity=measure_on_worker(plan.base, parts.channels, up_to, devices.cpus, devices.gpus, devices.concurrent),
    )


def describe_devices(gpus: int) -> str:
    return f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{available_cpus()} CPU cores"


def visible_gpus() -> int:
    """GPUs of this machine, asked of the driver's tool so that neither torch nor Ray is needed."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([item for item in visible.split(",") if item.strip() and item.strip() != "-1"])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
