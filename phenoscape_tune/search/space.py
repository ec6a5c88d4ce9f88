"""The search-space file: which configuration keys to search, over which ranges, with which budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from phenoscape_tune.config import build_config, known_keys
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import check_metric
from phenoscape_tune.key_faults import MadeByName, nearest
from phenoscape_tune.layers import find_file, set_key
from phenoscape_tune.search.parameter import Parameter, Scalar, describe
from phenoscape_tune.search.priority import order_stages
from phenoscape_tune.transforms import Keys
from phenoscape_tune.yaml_file import load_mapping

# Keys that a search sets itself, or that change what is compared.
_FIXED = {
    *("data_dir", "out_dir", "labels", "group_by", "val_fraction", "test_fraction", "split_seed", "max_unreadable"),
    *(
        "cache_dir",
        "storage",
        "pack",
        "modality",
        "max_epochs",
        "T_max",
        "warmup_epochs",
        "seed",
        "accelerator",
        "devices",
        "strategy",
    ),
    *("num_workers", "pin_memory", "persistent_workers", "log_every_n_steps", "deterministic", "early_stopping"),
    *("early_stopping.monitor", "early_stopping.patience", "early_stopping.min_delta", "transforms"),
}


class Objective(Keys):
    metric: str = "auto"

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        check_metric(metric)
        return metric


class Scheduler(Keys):
    grace_epochs: int = Field(default=3, ge=1)
    reduction_factor: int = Field(default=3, ge=2)
    pasha: bool = False  # end trials at a ceiling that rises only while that changes their ranking (ceiling.py)


class Budget(Keys):
    """Whichever ends first. `shares` are the stages' weights in the number of trials, for those that differ."""

    trials: int = Field(default=24, ge=1)
    max_epochs: int | None = Field(default=None, ge=1)
    hours: float | None = Field(default=None, gt=0)
    gpu_hours: float | None = Field(default=None, gt=0)
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


class Confirm(Keys):
    top_k: int = Field(default=3, ge=1)
    seeds: int = Field(default=3, ge=1)
    drop: bool = False  # after each seed, go on without the worst candidate (confirm_rounds.py)


Order = Literal["staged", "joint"]


class SearchSpace(Keys, MadeByName):
    """A search: what to vary and how long; the keys of a search-space file, by name.

    Raises UserError that lists all faults at once, as `build_space` does.
    """

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    order: Order = "staged"
    extend: bool = False  # widen a stage's range, once, where its winner stands at the edge
    refine: bool = False  # end a staged search with a joint stage around the winner
    objective: Objective = Field(default_factory=Objective)
    scheduler: Scheduler = Field(default_factory=Scheduler)
    budget: Budget = Field(default_factory=Budget)
    confirm: Confirm | None = Field(default_factory=Confirm)
    max_failures: int = Field(default=2, ge=0)  # times that a trial whose process died goes on from its last checkpoint
    # Seconds without a report after which a trial is taken for hung; null: by the epochs that were measured.
    report_timeout: float | None = Field(default=None, gt=0)
    keep: int = Field(default=5, ge=1)  # ended trials whose checkpoints are kept: the best ones (retention.py)

    @classmethod
    def refuse(cls, values: Mapping[str, Any], source: str) -> None:
        """Raise UserError of all faults, as `build_space` does."""
        build_space(values, source)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values that `build_space` reads back to an equal space."""
        mapping = self.model_dump(mode="json", exclude_none=True)
        mapping["confirm"] = None if self.confirm is None else mapping["confirm"]
        return mapping

    def grid_size(self, values: int = 5) -> int:
        """Configurations of an exhaustive grid with `values` points a range and every value of a choice."""
        return math.prod(parameter.size_in_grid(values) for parameter in self.parameters.values())


def load_space(name: str) -> tuple[SearchSpace, Path]:
    """Read a search space by path or shipped name. Raises UserError with all faults of the file."""
    path = find_file(name, "search_spaces")
    return build_space(load_mapping(path), str(path)), path


def build_space(values: Mapping[str, Any], source: str = "search space") -> SearchSpace:
    """Validate a search space. Raises UserError that lists all faults at once, with the key and the remedy."""
    try:
        space = SearchSpace.model_validate(dict(values))
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors()]
        # The faults of keys and values are told together with those of the ranges.
        parameters = values.get("parameters")
        for key, parameter in parameters.items() if isinstance(parameters, Mapping) else ():
            try:
                faults += _parameter_faults(str(key), Parameter.model_validate(parameter))
            except ValidationError:
                faults += [fault for fault in (_key_fault(str(key)),) if fault]
        _refuse(faults, source)
        raise
    _refuse(_faults(space), source)
    return space


def _refuse(faults: Sequence[str], source: str) -> None:
    """Raise UserError of all faults; nothing where there are none."""
    if faults:
        raise UserError("\n".join(f"{source}: {fault}" for fault in dict.fromkeys(faults))) from None


def _faults(space: SearchSpace) -> list[str]:
    """What pydantic does not judge: keys that cannot be searched, values that the configuration refuses, shares."""
    faults = [fault for key, parameter in space.parameters.items() for fault in _parameter_faults(key, parameter)]
    faults += _share_faults(space)
    if {"input_size", "transforms.input_size"} <= set(space.parameters):
        faults.append("parameters.input_size and parameters.transforms.input_size are the same key; keep one")
    return faults


def _describe(fault: ErrorDetails) -> str:
    location = [str(part) for part in fault["loc"]]
    groups: dict[str, type[BaseModel]] = {
        "objective": Objective,
        "scheduler": Scheduler,
        "budget": Budget,
        "confirm": Confirm,
        "parameters": Parameter,
    }
    known = groups[location[0]] if len(location) > 1 else SearchSpace
    return describe(fault, known.model_fields)


def _key_fault(key: str) -> str | None:
    known = known_keys()
    if key not in known:
        return f"parameters.{key}: is no configuration key; {nearest(key, set(known) - _FIXED)}"
    if key in _FIXED:
        return f"parameters.{key}: cannot be searched; set it in the configuration"
    return None


def _parameter_faults(key: str, parameter: Parameter) -> list[str]:
    """A key that cannot be searched; values of the range that the configuration refuses."""
    if fault := _key_fault(key):
        return [fault]
    faults = []
    for name, value in parameter.extremes():
        try:
            build_config(_one_key(key, value), f"parameters.{key}.{name}")
        except UserError as error:
            faults.append(str(error))
    if not faults and parameter.type in ("uniform", "loguniform") and parameter.step is None:
        assert parameter.low is not None
        assert parameter.high is not None
        try:
            build_config(_one_key(key, parameter.low + 0.37198 * (parameter.high - parameter.low)))
        except UserError:
            whole = "int" if parameter.type == "uniform" else "logint"
            faults.append(f"parameters.{key}: takes whole numbers; write type: {whole} instead of {parameter.type}")
    return faults


def _share_faults(space: SearchSpace) -> list[str]:
    """Shares of stages that the search does not have."""
    names = [name for name, _ in order_stages(space.parameters, space.order, space.refine)]
    return [
        f"budget.shares.{name}: is no stage of this search; {nearest(name, names)} (its stages: {', '.join(names)})"
        for name in space.budget.shares
        if name not in names
    ]


def _one_key(key: str, value: Scalar) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    set_key(mapping, key, value)
    return mapping
