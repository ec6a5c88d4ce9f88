"""The devices that a search runs on: looked for, started, and measured."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import available_cpus
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace
from phenoscape_tune.training.batch_advice import batch_warning, recommended_batch, smallest
from phenoscape_tune.training.gpus import Gpu, visible_gpus

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
    parameters: int = 0  # of the network, which was built once
    cards: tuple[Gpu, ...] = ()  # the GPUs with their memory, as far as the driver tells

    @property
    def memory_gib(self) -> float | None:
        """GPU memory that a trial has; None where that is not known."""
        return smallest(self.cards, self.gpus)


def start_devices(args: argparse.Namespace, plan: Plan) -> Devices:
    """Start Ray, and build the network once. Raises UserError where it cannot run as asked."""
    from phenoscape_tune.search.plan import share_devices, trial_devices

    since, cpus, each = time.monotonic(), available_cpus(), trial_devices(plan.base)
    # Refused before Ray takes its ten seconds.
    share_devices(cpus, 0, args.concurrent, each if plan.base.accelerator == "cpu" else 1)
    if not args.quiet:
        print("starting Ray ...", file=sys.stderr, flush=True)
    from phenoscape_tune.search.cluster import check_on_worker, count_gpus, start_ray

    start_ray(cpus, args.verbose)
    gpus = 0 if plan.base.accelerator == "cpu" else count_gpus()
    if plan.space.budget.gpu_hours and not gpus:
        raise UserError("budget.gpu_hours: no GPU is used here, so no time of one is ever spent; write hours")
    cards = tuple(visible_gpus()) if gpus else ()
    devices = Devices(*share_devices(cpus, gpus, args.concurrent, each), total_gpus=gpus, since=since, cards=cards)
    return replace(devices, parameters=check_on_worker(plan.base, min(devices.gpus, 1)))


def measure_batch_sizes(plan: Plan, parts: Parts, devices: Devices, quiet: bool) -> Plan:
    """The plan with what the device holds and how fast it is at each batch size, where the batch size is searched, and
    with the batch sizes that the guide recommends for its memory.

    Measured before the trials, which would share the device with it.
    """
    batch = plan.space.parameters.get("batch_size")
    bounds = None if batch is None else batch.bounds
    if bounds is None:
        return plan
    from phenoscape_tune.search.cluster import measure_on_worker

    if not quiet:
        print("measuring batch sizes ...", file=sys.stderr, flush=True)
    up_to = int(bounds[1])  # checked against the number of images
    return replace(
        plan,
        batch_range=None if devices.memory_gib is None else recommended_batch(devices.memory_gib),
        capacity=measure_on_worker(
            plan.base, parts.channels, up_to, devices.cpus, min(devices.gpus, 1), devices.concurrent
        ),
    )


def describe_devices(gpus: int) -> str:
    return f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{available_cpus()} CPU cores"


def batch_warnings(space: SearchSpace | None, base: TrainConfig, memory_gib: float | None) -> list[str]:
    """A warning where the batch size, searched or configured, is not one that the guide recommends for the GPU.

    Args:
        space: of a search; None for a single run.
        memory_gib: of the GPU that a run has; None without one.
    """
    searched = None if space is None else space.parameters.get("batch_size")
    if searched is None:
        return batch_warning("batch_size", [base.batch_size], memory_gib)
    values = [value for _, value in searched.extremes() if isinstance(value, int | float)]
    return batch_warning("parameters.batch_size", values, memory_gib)
