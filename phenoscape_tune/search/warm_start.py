"""Trials of an earlier search that a new one may learn from: same images, same configuration, same objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from phenoscape_tune.config import build_config
from phenoscape_tune.data.parts import settle_like
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import flatten, get_key
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import BATCH_SIZE, LR
from phenoscape_tune.search.record import SCORED, TrialRecord
from phenoscape_tune.search.study import read_trials

# Keys that change no trial's objective.
_IMMATERIAL = {
    *("out_dir", "data_dir", "seed", "cache_dir", "num_workers", "pin_memory", "persistent_workers", "max_epochs"),
    *("log_every_n_steps", "labels"),  # the classes themselves are part of the data's fingerprint
}


def read_earlier(folder: Path, saved: Mapping[str, Any], plan: Plan, fingerprint: str) -> list[TrialRecord]:
    """The finished trials of an earlier search that lie within a new one's space.

    Args:
        folder: of the earlier search; saved: its `search.yaml`.
        plan: of the new search; fingerprint: of its images, classes and parts.

    Raises UserError that names the differences where the trials cannot be compared.
    """
    differences = []
    if saved["data"] != fingerprint:
        differences.append("other images, classes or parts")
    if saved["metric"] != plan.objective.name:
        differences.append(f"objective: {saved['metric']} there, {plan.objective.name} here")
    if saved["max_epochs"] != plan.rungs.max_epochs:
        differences.append(f"max_epochs: {saved['max_epochs']} there, {plan.rungs.max_epochs} here")
    if plan.objective.views and saved.get("seed", plan.seed) != plan.seed:
        differences.append(f"seed: {saved['seed']} there, {plan.seed} here, and so other reference views")
    # Read anew: an earlier version lacks keys that have come since, and did not tell what kind of images it had.
    config = settle_like(build_config(saved["config"], str(folder)), plan.base)
    there, here = flatten(config.to_mapping()), flatten(plan.base.to_mapping())
    differences += [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in sorted({*there, *here} - _IMMATERIAL)
        if there.get(key) != here.get(key)
    ]
    if differences:
        lines = "\n  ".join(differences)
        raise UserError(
            f"--warm-start: {folder} cannot be compared with this search:\n  {lines}\nleave out --warm-start"
        )
    trials = [r for r in read_trials(folder / "study.journal") if r.status in SCORED and r.values and not r.of]
    fitting = [record for record in trials if _fits(record, plan)]
    if not fitting:
        keys = sorted({key for record in trials for key in record.values})
        raise UserError(
            f"--warm-start: none of the {len(trials)} finished trials of {folder} lies within this space: it searched "
            f"{', '.join(keys) or 'nothing'}, this one searches {', '.join(sorted(plan.space.parameters))}; "
            "widen the ranges, or leave out --warm-start"
        )
    return [replace(record, name=f"{folder.name}:{record.name}", warm=True) for record in fitting]


def _fits(record: TrialRecord, plan: Plan) -> bool:
    """Whether each value lies in the new range of its key, or is the configuration's where the key is not searched."""
    defaults = plan.base.to_mapping()
    for key, value in record.values.items():
        if key == LR and BATCH_SIZE in record.values and LR not in plan.space.parameters:
            continue  # derived from the batch size
        parameter = plan.space.parameters.get(key)
        if value != get_key(defaults, key) and (parameter is None or not parameter.contains(value)):
            return False
    return True
