"""The documented order of tuning: defaults, lr, batch size, temperature, augmentation strength; then the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from phenoscape_tune.errors import UserError

DEFAULTS, JOINT, CONFIRM = "defaults", "joint", "confirm"
OTHER = "other"

# The training guide's "Hyperparameter Tuning" list.
PRIORITY = ("lr", "batch_size", "temperature", "augmentation", OTHER)


@dataclass(frozen=True)
class Stage:
    """One step of the search: the keys that it varies around the last winner, and how many trials it may start."""

    number: int
    name: str
    keys: tuple[str, ...]
    trials: int

    @property
    def study_name(self) -> str:
        return f"{self.number}-{self.name}"


def stage_of(key: str) -> str:
    """The stage that a configuration key belongs to."""
    if key.startswith("transforms.") and key != "transforms.input_size":
        return "augmentation"
    return key if key in PRIORITY else OTHER


def plan_stages(keys: Iterable[str], order: str, trials: int) -> list[Stage]:
    """The stages of a search, the baseline of the defaults first, with `trials` shared out over them.

    The order of `keys` does not matter. Raises UserError for a budget below one trial a stage.
    """
    keys = sorted(keys)
    if order == JOINT:
        groups = [(JOINT, tuple(keys))]
    else:
        groups = [(name, tuple(k for k in keys if stage_of(k) == name)) for name in PRIORITY]
        groups = [(name, members) for name, members in groups if members]
    if trials < len(groups) + 1:
        names = ", ".join([DEFAULTS, *(name for name, _ in groups)])
        raise UserError(f"budget.trials: {trials} is below one trial a stage ({names}); the least is {len(groups) + 1}")
    share, rest = divmod(trials - 1, len(groups))
    stages = [Stage(0, DEFAULTS, (), 1)]
    for index, (name, members) in enumerate(groups):
        stages.append(Stage(index + 1, name, members, share + (index < rest)))
    return stages
