"""A search, resolved: what will run within the budget and on the devices, before anything has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import Metric
from phenoscape_tune.layers import get_key
from phenoscape_tune.search.confirm_rounds import count_repeats
from phenoscape_tune.search.priority import BATCH_SIZE, RECHECK, Stage, order_stages, plan_stages
from phenoscape_tune.search.rungs import Rungs, plan_rungs
from phenoscape_tune.search.space import SearchSpace

if TYPE_CHECKING:  # the search's driver must not pay for torch
    from phenoscape_tune.training.capacity import Capacity


@dataclass(frozen=True)
class Plan:
    """What a search will do.

    Attributes:
        metric: the objective; None while it is not known whether there are labels.
        capacity: what the device was measured to hold; None where the batch size is not searched.
        batch_range: batch sizes that the guide recommends for the GPU's memory; None without one.
        notes: a line on whatever had to give way.
    """

    space: SearchSpace
    base: TrainConfig
    stages: tuple[Stage, ...]
    rungs: Rungs
    folder: Path
    seed: int
    notes: tuple[str, ...] = ()
    metric: Metric | None = None
    capacity: Capacity | None = None
    batch_range: tuple[int, int] | None = None

    @property
    def objective(self) -> Metric:
        """The objective of a search that runs."""
        assert self.metric is not None, "the data were not looked at yet"
        return self.metric

    @property
    def within(self) -> dict[str, tuple[float, float]]:
        """Recommended parts of the searched ranges, by key."""
        return {} if self.batch_range is None else {BATCH_SIZE: self.batch_range}

    @property
    def warmup_epochs(self) -> float:
        """Warm-up of a trial: the configuration's, shrunk where it would take most of a trial."""
        return trial_warmup(self.base, self.rungs.max_epochs)

    @property
    def top_k(self) -> int:
        return 0 if self.space.confirm is None else self.space.confirm.top_k

    @property
    def repeats(self) -> int:
        return 0 if self.space.confirm is None else self.space.confirm.seeds

    @property
    def drop(self) -> bool:
        """Whether the confirmation goes on without its worst candidate after each seed."""
        return self.space.confirm is not None and self.space.confirm.drop

    @property
    def confirmations(self) -> int:
        """Trials of the confirmation: the top k and the baseline with fresh seeds."""
        return count_repeats(self.top_k, self.repeats, self.drop)

    @property
    def epochs_at_most(self) -> int:
        return (sum(stage.trials for stage in self.stages) + self.confirmations) * self.rungs.max_epochs


def make_plan(
    space: SearchSpace, base: TrainConfig, max_epochs: int, folder: Path, metric: Metric | None = None
) -> Plan:
    """Stages, rungs and confirmation within the budget, with a note on whatever had to give way."""
    stages, notes = plan_stages(
        space.parameters,
        space.order,
        space.budget.trials,
        shares=space.budget.shares,
        refine=space.refine,
        most=most_trials(space, base),
    )
    warmup = trial_warmup(base, max_epochs)
    grace = space.scheduler.grace_epochs
    if metric is not None and grace < (least := math.ceil(metric.grace_share * max_epochs)):
        notes.append(f"grace_epochs: {least} instead of {grace}: {metric.title} says nothing earlier")
        grace = least
    rungs, more = plan_rungs(grace, space.scheduler.reduction_factor, max_epochs, warmup)
    notes += more
    if base.early_stopping is not None:
        notes.append("early_stopping: not of trials, which the search compares and stops itself; best.yaml keeps it")
    if base.devices == "auto":
        notes.append("devices: auto: each trial on one device, side by side; best.yaml keeps auto")
    if base.warmup_epochs is not None and warmup < base.warmup_epochs:
        notes.append(f"warmup_epochs: {warmup:g} instead of {base.warmup_epochs:g} in a trial of {max_epochs} epochs")
    if base.T_max not in (None, base.max_epochs):
        notes.append(f"T_max: {base.T_max} epochs, while a trial of this search runs {max_epochs}")
    return shrink_to_trials(Plan(space, base, tuple(stages), rungs, folder, base.seed, tuple(notes), metric))


def most_trials(space: SearchSpace, base: TrainConfig) -> dict[str, int]:
    """Trials that a stage can use at most, by its name: those whose values can be counted, less the ones taken over."""
    mapping = base.to_mapping()
    most = {}
    for name, keys in order_stages(space.parameters, space.order):
        grids = [space.parameters[key].grid for key in keys]
        if name == RECHECK or any(grid is None for grid in grids):
            continue
        known = all(space.parameters[key].contains(get_key(mapping, key)) for key in keys)
        # A range that may be widened has more values than it shows.
        if not space.extend or all(space.parameters[key].type == "choice" for key in keys):
            most[name] = max(1, math.prod(len(grid or []) for grid in grids) - known)
    return most


def trial_warmup(base: TrainConfig, max_epochs: int) -> float:
    """Warm-up, in epochs, of a trial of `max_epochs`: at most a quarter of it."""
    if base.warmup_epochs is None:
        return build_config({"max_epochs": max_epochs}).resolved_warmup_epochs
    return min(base.warmup_epochs, max_epochs / 4)


def shrink_to_trials(plan: Plan) -> Plan:
    """A plan whose confirmation does not ask for more trials than the search has."""
    confirm = plan.space.confirm
    searched = sum(stage.trials for stage in plan.stages) - 1
    if confirm is None or confirm.top_k <= searched:
        return plan
    space = plan.space.model_copy(update={"confirm": confirm.model_copy(update={"top_k": searched})})
    note = f"confirm.top_k: {searched} instead of {confirm.top_k}: there are no more searched trials"
    return replace(plan, space=space, notes=(*plan.notes, note))


def trial_devices(base: TrainConfig) -> int:
    """Devices that a trial spans: `auto` is one, as trials side by side use several devices better than ranks do."""
    return 1 if base.devices == "auto" else base.devices


def share_devices(cpus: int, gpus: int, concurrent: int | None, devices: int = 1) -> tuple[int, int, float]:
    """Trials side by side on one machine, and the CPUs and GPUs that each reserves: see `share_machines`."""
    return share_machines([(cpus, gpus)], concurrent, devices)


def share_machines(
    machines: Sequence[tuple[int, int]], concurrent: int | None, devices: int = 1
) -> tuple[int, int, float]:
    """Trials side by side on machines with so many CPUs and GPUs, and the CPUs and GPUs that each reserves.

    On GPUs one trial a GPU, or a fraction of one where more trials are asked for; on a CPU as many as cores. A trial
    that spans several `devices` has as many GPUs, or at least as many cores, of its own; it lies on one machine. Each
    has as many CPUs as leave room for all, so that fewer trials than there is room for spread over the machines.

    Raises UserError where a trial would have no core, or too few devices.
    """
    on_gpus = any(gpus for _, gpus in machines)
    what = "GPU" if on_gpus else "CPU core"
    there = [gpus if on_gpus else cpus for cpus, gpus in machines]
    if devices > max(there):
        where = "here" if len(machines) == 1 else "of any one machine of the cluster"
        raise UserError(
            f"devices: {devices}: a trial cannot span more than the {max(there)} {what}s {where}; lower devices"
        )

    def room(cpus: int, parts: int = 1) -> int:
        """Trials of so many CPUs, each with its devices or one of so many `parts` of a GPU."""
        return sum(
            min(gpu // devices * parts, cpu // cpus) if on_gpus else cpu // max(cpus, devices) for cpu, gpu in machines
        )

    # Ray shares a GPU only among trials that fit on it together: 1/n each.
    shared = max((cpu for cpu, _ in machines), default=1) if on_gpus and devices == 1 else 1
    most = room(1, shared)
    concurrent = concurrent or room(1)
    if concurrent > most or not most:
        spanning = f", each on {devices} devices," if devices > 1 else ""
        counted = sum(there) if devices > 1 else sum(cpu for cpu, gpu in machines if gpu or not on_gpus)
        where = "" if len(machines) == 1 else f" of {len(machines)} machines"
        raise UserError(
            f"--concurrent: {concurrent} trials side by side{spanning} on {counted} "
            f"{what if devices > 1 else 'CPU core'}s{where}; at most {most}"
        )
    parts = next(n for n in range(1, shared + 1) if room(1, n) >= concurrent)
    cpus = max(n for n in range(1, max(cpu for cpu, _ in machines) + 1) if room(n, parts) >= concurrent)
    return concurrent, cpus, 0.0 if not on_gpus else devices / parts
