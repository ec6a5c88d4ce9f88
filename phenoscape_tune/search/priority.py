"""The documented order of tuning: defaults, lr, batch size, temperature, augmentation strength; then the rest."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from phenoscape_tune.errors import UserError

DEFAULTS, JOINT, CONFIRM = "defaults", "joint", "confirm"
LR, BATCH_SIZE, OTHER = "lr", "batch_size", "other"
RECHECK = "lr_recheck"  # a changed batch size wants another learning rate (SimCLR, table B.1)
REFINE = "refine"

# The training guide's "Hyperparameter Tuning" list.
PRIORITY = (LR, BATCH_SIZE, "temperature", "augmentation", OTHER)

# Weights in the budget. A further key of a stage wants more trials, but not as many as a stage of its own; the stage
# that looks again at one key whose place is nearly known is short, the one that looks at all of them together is long
# (measured: docs/benchmarks.md#search-efficiency).
FURTHER_KEY = 0.5
LOOKING_AGAIN = {RECHECK: 0.5, REFINE: 3.0}


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

    @property
    def label(self) -> str:
        """What people are told of it: `1 lr`. In TensorBoard's alphabetical order the stages stay in theirs."""
        return f"{self.number} {self.name}"


def stage_of(key: str) -> str:
    """The stage that a configuration key belongs to."""
    if key.startswith("transforms.") and key != "transforms.input_size":
        return "augmentation"
    return key if key in PRIORITY else OTHER


def order_stages(keys: Iterable[str], order: str, refine: bool = False) -> list[tuple[str, tuple[str, ...]]]:
    """Names and keys of the stages after the defaults; the order of `keys` does not matter."""
    keys = sorted(keys)
    if order == JOINT:
        return [(JOINT, tuple(keys))]
    groups = [(name, tuple(k for k in keys if stage_of(k) == name)) for name in PRIORITY]
    groups = [(name, members) for name, members in groups if members]
    if {LR, BATCH_SIZE} <= set(keys):
        groups.insert(2, (RECHECK, (LR,)))
    return [*groups, (REFINE, tuple(keys))] if refine and len(groups) > 1 else groups


def plan_stages(
    keys: Iterable[str],
    order: str,
    trials: int,
    *,
    shares: Mapping[str, float] | None = None,
    refine: bool = False,
    most: Mapping[str, int] | None = None,
) -> tuple[list[Stage], list[str]]:
    """The stages of a search, the baseline of the defaults first, with `trials` shared out over them.

    Args:
        keys: searched keys, in any order.
        shares: weights of stages by name, where they differ from the documented ones.
        refine: whether a joint stage around the winner ends a staged search.
        most: trials that a stage can use at most, by name: a choice of four has no fifth value to try.

    Returns the stages and a note on each that had to give way. Raises UserError for a budget below one trial a stage.
    """
    groups, notes = order_stages(keys, order, refine), []
    # What looks again at known ground gives way first.
    for name in (REFINE, RECHECK):
        if trials < len(groups) + 1 and any(name == group for group, _ in groups):
            groups = [group for group in groups if group[0] != name]
            notes.append(f"no stage {name}: a budget of {trials} trials leaves none for it")
    if trials < len(groups) + 1:
        names = ", ".join([DEFAULTS, *(name for name, _ in groups)])
        raise UserError(f"budget.trials: {trials} is below one trial a stage ({names}); the least is {len(groups) + 1}")
    weights = {name: _weight(name, members, shares or {}) for name, members in groups}
    counts = share_out(trials - 1, weights, most or {})
    if (unused := trials - 1 - sum(counts.values())) > 0:
        notes.append(f"{unused} of {trials} trials are not needed: the stages' values are all tried before")
    stages = [Stage(0, DEFAULTS, (), 1)]
    stages += [Stage(number, name, members, counts[name]) for number, (name, members) in enumerate(groups, start=1)]
    return stages, notes


def share_out(trials: int, weights: Mapping[str, float], most: Mapping[str, int]) -> dict[str, int]:
    """Whole trials a stage, at least one each, in proportion to the weights; what one cannot use goes to the others."""
    counts = dict.fromkeys(weights, 1)
    for _ in range(trials - len(counts)):
        open_ = [name for name in weights if counts[name] < most.get(name, math.inf)]
        if not open_:
            break
        # The one that is furthest behind its share (D'Hondt's rule).
        counts[max(open_, key=lambda name: weights[name] / (counts[name] + 1))] += 1
    return counts


def _weight(name: str, keys: Collection[str], shares: Mapping[str, float]) -> float:
    further = 0 if name in LOOKING_AGAIN else FURTHER_KEY * (len(keys) - 1)
    return shares.get(name, LOOKING_AGAIN.get(name, 1.0) + further)
