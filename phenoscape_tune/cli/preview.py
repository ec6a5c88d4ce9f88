"""The plan of a search as it is printed: by `--dry-run`, and before the first trial."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import available_cpus, warn, warn_of_advice
from phenoscape_tune.cli.devices import Devices, batch_warnings, describe_devices, find_address
from phenoscape_tune.cli.request import SearchRequest
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace
from phenoscape_tune.terminal import show_lines
from phenoscape_tune.training.batch_advice import describe_memory, smallest
from phenoscape_tune.training.disk import describe_bytes, free_bytes
from phenoscape_tune.training.gpus import visible_gpus

if TYPE_CHECKING:
    from phenoscape_tune.data.parts import Parts
    from phenoscape_tune.search.plan import Plan


def show_dry_run(asked: SearchRequest, space: SearchSpace, base: TrainConfig, max_epochs: int, folder: Path) -> None:
    """Print the plan of a search, with warnings of what this machine lacks for it; nothing is started or written.

    Raises UserError for what can be refused without the images.
    """
    from phenoscape_tune.search.display import describe_plan
    from phenoscape_tune.search.plan import make_plan, share_devices, trial_devices
    from phenoscape_tune.search.searched_transforms import check_searched

    plan = make_plan(space, base, max_epochs, folder)
    if base.modality != "auto":  # else the defaults of its kind are not known yet
        check_searched(space, base, None)
    cards = visible_gpus() if base.accelerator != "cpu" else []
    gpus, share = len(cards), 1.0
    address = find_address(asked.address)
    try:
        concurrent, _, share = share_devices(available_cpus(), gpus, asked.concurrent, trial_devices(base))
    except UserError as error:  # of this machine, which need not be the one that will run it
        warn([] if address else [str(error)])
        concurrent = asked.concurrent or 1
    data = f"data: {base.data_dir or 'generated sample specimens'} (not looked at)"
    disk = f"disk: {describe_bytes(free_bytes(folder))} free; what the search needs is told once its network is built"
    devices, memory = describe_devices(gpus), describe_memory(cards, share)
    if address:
        devices, memory, cards = f"those of the cluster at {address} (not asked)", [], []
        concurrent = asked.concurrent or 1
    show_lines(describe_plan(plan, devices, data, concurrent, [*memory, disk]))
    warn_of_advice(base, asked.quiet)
    if not asked.quiet:
        warn(batch_warnings(space, base, smallest(cards, share)))
    if base.accelerator == "gpu" and not gpus and not address:
        warn(["accelerator: gpu: this machine has no GPU"])
    if base.data_dir and not Path(base.data_dir).is_dir():
        warn([f"data_dir: {base.data_dir}: no such folder on this machine"])


def show_plan(asked: SearchRequest, plan: Plan, parts: Parts, devices: Devices, ended: int = 0, warm: int = 0) -> None:
    """Print the plan, of which so many trials have ended, and which has so many of an earlier search. Raises UserError
    where the disk has no room for the rest."""
    from phenoscape_tune.search.disk_plan import plan_disk
    from phenoscape_tune.search.display import describe_plan

    need = plan_disk(plan, devices.parameters, devices.concurrent, ended, warm)
    need.check()
    if not asked.quiet:
        memory = [*describe_memory(devices.cards, devices.gpus), need.describe()]
        show_lines(describe_plan(plan, devices.describe(), parts.describe(), devices.concurrent, memory))
        warn(batch_warnings(plan.space, plan.base, devices.memory_gib))
