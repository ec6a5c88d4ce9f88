"""Early stopping of a single run: when a reported value no longer improves. A search stops its trials by rungs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from phenoscape_tune.config import EarlyStoppingConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import Metric
from phenoscape_tune.key_faults import nearest

# What every epoch reports, and whether a larger value is the better one; the objective's direction is the metric's.
HIGHER_IS_BETTER = {"train_loss": False, "val_loss": False, "rankme": True, "feature_std": True}
OBJECTIVE = ("objective", "objective_mean")


def check_monitor(stopping: EarlyStoppingConfig | None, metric: Metric) -> None:
    """Raise UserError, naming the nearest known one, for a value that no epoch of such a run reports."""
    known = {*HIGHER_IS_BETTER, *OBJECTIVE, metric.name}
    if stopping is not None and stopping.monitor not in known:
        raise UserError(
            f"early_stopping.monitor: '{stopping.monitor}' is not reported; {nearest(stopping.monitor, known)}"
        )


def epochs_without_improvement(
    stopping: EarlyStoppingConfig, metric: Metric, history: Sequence[Mapping[str, Any]]
) -> int:
    """Epochs since the monitored value was last better than its best by more than `min_delta`; 0 where it just was.

    Follows from the history alone, so that a resumed run stops where an unbroken one would.
    """
    # By its own name the objective is known too.
    key = "objective" if stopping.monitor == metric.name else stopping.monitor
    higher = metric.higher_is_better if key in OBJECTIVE else HIGHER_IS_BETTER[key]
    best, since = -math.inf, 0
    for row in history:
        value = row[key] if higher else -row[key]
        since = 0 if value > best + stopping.min_delta else since + 1
        best = value if since == 0 else best
    return since


def describe_stop(stopping: EarlyStoppingConfig, epoch: int) -> str:
    """The line that says why a run stopped."""
    return (
        f"stopped early after epoch {epoch}: {stopping.monitor} has not improved by more than {stopping.min_delta:g} "
        f"for {stopping.patience} epochs (early_stopping)"
    )
