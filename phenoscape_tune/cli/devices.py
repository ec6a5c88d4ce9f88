"""The devices that a search runs on: looked for, started, and measured."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import available_cpus, warn
from phenoscape_tune.cli.request import SearchRequest
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace
from phenoscape_tune.training.batch_advice import batch_warning, recommended_batch, smallest
from phenoscape_tune.training.gpus import Gpu, visible_gpus

if TYPE_CHECKING:
    from phenoscape_tune.search.plan import Plan


@dataclass(frozen=True)
class Devices:
    """What the trials run on: how many side by side, and the CPUs and GPUs of each."""

    concurrent: int
    cpus: int
    gpus: float
    total_gpus: int
    since: float  # when the command began to use them, by the monotonic clock
    cards: tuple[Gpu, ...] = ()  # the GPUs with their memory, as far as the driver tells
    total_cpus: int = 0
    machines: int = 1  # that trials run on
    parameters: int = 0  # of the network, which was built once
    joined: bool = False  # whether Ray is a cluster's, which other machines may join

    def describe(self) -> str:
        """One line for the plan."""
        told = describe_devices(self.total_gpus, self.total_cpus)
        return told if self.machines == 1 else f"{told} of {self.machines} machines"

    @property
    def memory_gib(self) -> float | None:
        """GPU memory that a trial has; None where that is not known."""
        return smallest(self.cards, self.gpus)


def find_address(flag: str | None) -> str | None:
    """The Ray cluster to run on: of `--address`, else of RAY_ADDRESS; None, or `local`, is this machine alone."""
    address = flag or os.environ.get("RAY_ADDRESS") or None
    return None if address == "local" else address


def ray_runs() -> bool:
    """Whether this process has a Ray already: its own, or a cluster that it has joined. Imports nothing for that."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def start_devices(asked: SearchRequest, plan: Plan, channels: int) -> Devices:
    """Start Ray or join a cluster, and build the network once, for images of so many channels. A Ray that this process
    has already is used as it is.

    Raises UserError where it cannot run as asked, on a cluster also where one of its machines cannot.
    """
    from phenoscape_tune.search.plan import share_devices, share_machines, trial_devices

    since, cpus, each = time.monotonic(), available_cpus(), trial_devices(plan.base)
    address = find_address(asked.address)
    running = ray_runs()
    if address is None and not running:  # refused before Ray takes its ten seconds
        share_devices(cpus, 0, asked.concurrent, each if plan.base.accelerator == "cpu" else 1)
    if not asked.quiet and not running:
        print("starting Ray ..." if address is None else "joining the cluster ...", file=sys.stderr, flush=True)
    from phenoscape_tune.search.cluster import check_on_worker, cluster_nodes, start_ray

    start_ray(cpus, asked.verbose, address)
    nodes = cluster_nodes()
    joined = address is not None or len(nodes) > 1  # the caller may have joined one
    machines = [(node.cpus, 0 if plan.base.accelerator == "cpu" else node.gpus) for node in nodes]
    gpus = sum(gpus for _, gpus in machines)
    if plan.space.budget.gpu_hours and not gpus:
        raise UserError("budget.gpu_hours: no GPU is used here, so no time of one is ever spent; write hours")
    concurrent, cpus, share = share_machines(machines, asked.concurrent, each)
    fit = [
        node.id for node, (its_cpus, its_gpus) in zip(nodes, machines, strict=True)
        if its_cpus >= cpus and its_gpus >= share
    ]  # fmt: skip
    cards = tuple(visible_gpus()) if gpus else ()
    if joined:
        from phenoscape_tune.search.preflight import check_nodes

        if not asked.quiet:
            print(f"asking {len(nodes)} machines ...", file=sys.stderr, flush=True)
        found = check_nodes(nodes, fit, plan.base, plan.folder)
        warn(found.warnings)
        cards = found.cards if gpus else ()
    devices = Devices(
        *(concurrent, cpus, share), total_gpus=gpus, since=since, cards=cards,
        total_cpus=sum(cpus for cpus, _ in machines), machines=len(fit), joined=joined,
    )  # fmt: skip
    return replace(devices, parameters=check_on_worker(plan.base, min(devices.gpus, 1), channels))


def measure_batch_sizes(plan: Plan, channels: int, devices: Devices, quiet: bool) -> Plan:
    """The plan with what the device holds and how fast it is at each batch size, where the batch size is searched, and
    with the batch sizes that the guide recommends for its memory. `channels` are the most that a trial's images have.

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
        capacity=measure_on_worker(plan.base, channels, up_to, devices.cpus, min(devices.gpus, 1), devices.concurrent),
    )


def describe_devices(gpus: int, cpus: int = 0) -> str:
    return f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{cpus or available_cpus()} CPU cores"


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
