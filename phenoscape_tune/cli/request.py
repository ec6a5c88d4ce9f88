"""What is asked of a search or of a run: by the flags of a command, or by the arguments of a call in Python."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import parse_overrides
from phenoscape_tune.search.space import Order, SearchSpace


@dataclass(frozen=True)
class RunRequest:
    """What is asked of a run; the fields mean what the flags of `train.py` do.

    Attributes:
        config: a configuration, its path, or a name in `configs/`; None: defaults, or the sample's.
        overrides: configuration keys that win over it, nested.
        resume: a checkpoint to go on from, a path or URL.
    """

    config: TrainConfig | str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    resume: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class SearchRequest:
    """What is asked of a search; the fields mean what the flags of `tune.py` do, None: as space and configuration say.
    Raises UserError for flags that have no meaning; space and configuration are judged where they are resolved.

    Attributes:
        space: a search space, its path, or a name in `search_spaces/`.
        config, overrides: as of a run.
    """

    space: SearchSpace | str | None = None
    config: TrainConfig | str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    out: str | None = None
    order: Order | None = None
    trials: int | None = None
    max_epochs: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    concurrent: int | None = None
    no_confirm: bool = False
    seed: int | None = None
    resume: bool = False
    resume_or_start: bool = False
    overwrite: bool = False
    warm_start: str | None = None
    address: str | None = None
    dry_run: bool = False
    quiet: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        # What no schema judges: the other values become part of the space or the configuration.
        value = self.concurrent
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"--concurrent: {value!r} is not a number of trials side by side; write 1 or more")
        if sum((self.resume, self.resume_or_start, self.overwrite)) > 1:
            raise UserError("--resume, --resume-or-start, --overwrite: exclude each other; give one of them")


Request = TypeVar("Request", RunRequest, SearchRequest)


def request_of(kind: type[Request], args: Namespace) -> Request:
    """The request that a command's arguments are. Raises UserError for what is neither a flag nor key=value."""
    given = {each.name: getattr(args, each.name) for each in fields(kind)}
    return kind(**{**given, "overrides": parse_overrides(args.overrides)})
