"""`search.yaml`: all that is needed to run a search again, or to go on with it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.space import build_space
from phenoscape_tune.settling import forget_written
from phenoscape_tune.yaml_file import dump_mapping, load_mapping

if TYPE_CHECKING:
    from phenoscape_tune.cli.devices import Devices
    from phenoscape_tune.data.parts import Parts
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.plan import Plan
    from phenoscape_tune.search.record import TrialRecord

SEARCH_FILE = "search.yaml"
LOCK_FILE = ".search.lock"  # held while a process runs the search
SEARCH_FILES = (
    *(SEARCH_FILE, "study.journal", "study.journal.lock", LOCK_FILE, "leaderboard.csv", "best.yaml"),
    *("summary.json", "report.html", "trials", "logs", "best"),
)


def write_search(plan: Plan, parts: Parts) -> None:
    """Write `search.yaml` into the search's folder."""
    from phenoscape_tune.files import write_whole
    from phenoscape_tune.versions import versions

    content = {
        "seed": plan.seed,
        "max_epochs": plan.rungs.max_epochs,
        "data": parts.fingerprint,
        "metric": plan.objective.name,
        "batch_sizes": plan.capacity and asdict(plan.capacity),
        "batch_range": plan.batch_range and list(plan.batch_range),
        "space": plan.space.to_mapping(),
        "config": plan.base.to_mapping(),
        # What follows from the images' channels is told anew where a trial has others.
        "unwritten_transforms": plan.base.unwritten_transforms(),
        "versions": versions(),
    }
    write_whole(plan.folder / SEARCH_FILE, dump_mapping(content))


def read_search(folder: Path) -> dict[str, Any]:
    """`search.yaml` of a folder. Raises UserError where there is none, or where it lacks something."""
    if not (folder / SEARCH_FILE).is_file():
        raise UserError(f"{folder}: holds no {SEARCH_FILE}, so there is no search in it; check the folder's name")
    saved = load_mapping(folder / SEARCH_FILE)
    missing = [key for key in ("seed", "max_epochs", "data", "metric", "space", "config") if key not in saved]
    if missing:
        raise UserError(f"{folder / SEARCH_FILE}: lacks {', '.join(missing)}; it cannot be resumed, start a new search")
    kinds = {"seed": int, "max_epochs": int, "metric": str, "data": str, "space": dict, "config": dict}
    kinds |= {
        key: kind
        for key, kind in (("batch_sizes", dict), ("batch_range", list), ("unwritten_transforms", list))
        if saved.get(key) is not None
    }
    for key, kind in kinds.items():
        if not isinstance(saved[key], kind):
            raise UserError(
                f"{folder / SEARCH_FILE}: {key}: {saved[key]!r} is not what a search writes there; give the file back "
                "as it was, or start a new search"
            )
    if saved["max_epochs"] < 1:
        raise UserError(f"{folder / SEARCH_FILE}: max_epochs: {saved['max_epochs']} is below 1; start a new search")
    if saved["metric"] not in METRICS:
        raise UserError(f"{folder / SEARCH_FILE}: metric: {saved['metric']} is unknown; start a new search")
    return saved


def saved_plan(folder: Path, saved: Mapping[str, Any]) -> Plan:
    """The plan of a search as it was started."""
    from phenoscape_tune.search.plan import make_plan
    from phenoscape_tune.training.capacity import Capacity

    space = build_space(saved["space"], str(folder / SEARCH_FILE))
    base = build_config(saved["config"], str(folder / SEARCH_FILE))
    base = forget_written(base, saved.get("unwritten_transforms") or ())
    plan = make_plan(space, base, int(saved["max_epochs"]), folder, METRICS[saved["metric"]])
    measured, recommended = saved.get("batch_sizes"), saved.get("batch_range")
    # As it was found then: on another GPU the search would else go on with other trials.
    plan = replace(plan, batch_range=(recommended[0], recommended[1])) if recommended else plan
    try:
        return replace(plan, capacity=Capacity(**measured)) if measured else plan
    except TypeError:
        raise UserError(f"{folder / SEARCH_FILE}: batch_sizes: is damaged; start a new search") from None


def open_conductor(plan: Plan, devices: Devices | None = None, warm: Sequence[TrialRecord] = ()) -> Conductor:
    """The conductor of a search, as far as its journal knows; without devices it can tell, but not go on."""
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.spending import Spending
    from phenoscape_tune.search.study import Study, read_trials

    journal, spending = plan.folder / "study.journal", None
    if devices is not None:
        # Starting Ray and measuring belong to the time of a search, and so do its earlier parts.
        earlier = max((trial.elapsed for trial in read_trials(journal)), default=0.0) if journal.exists() else 0.0
        before = earlier + time.monotonic() - devices.since
        spending = Spending(plan.space.budget, devices.concurrent, devices.gpus, before)
    study = Study(journal, plan.space.parameters, plan.seed, plan.objective.higher_is_better, plan.within)
    return Conductor(plan, study, warm=warm, spending=spending)


def resume_command(folder: Path, address: str | None = None) -> str:
    """The command that goes on with a search, on the cluster of `--address` where that was given."""
    where = "" if address is None else f" --address {shlex.quote(address)}"
    return f"python scripts/tune.py --resume --out {shlex.quote(str(folder))}{where}"
