"""The objective that a search compares: which one a search uses, and its value for a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phenoscape_tune.config import nearest
from phenoscape_tune.errors import UserError

if TYPE_CHECKING:  # the search's driver reads this module and must not pay for torch
    from torch import Tensor

KNN_ACCURACY = "knn_accuracy"
METRICS = (KNN_ACCURACY,)
AVERAGED_EVALUATIONS = 3


@dataclass(frozen=True)
class Score:
    """kNN balanced accuracy in [0, 1] (higher is better), its standard error, and the predicted classes (Q,)."""

    value: float
    error: float
    predicted: np.ndarray


def check_metric(metric: str) -> None:
    """Raise ValueError, naming the nearest known one, for a metric that does not exist."""
    if metric not in ("auto", *METRICS):
        raise ValueError(f"'{metric}' is unknown; {nearest(metric, ('auto', *METRICS))}")


def choose_metric(metric: str, labelled: bool) -> str:
    """Resolve `auto`. Raises UserError for a metric that needs labels where there are none."""
    check_metric(metric)
    if not labelled:
        raise UserError(
            "objective.metric: this version's search needs labels: put the images of each class in a sub-folder of "
            "data_dir, or give labels=FILE.csv with the columns filename,label"
        )
    return KNN_ACCURACY


def knn_score(bank: Tensor, bank_labels: np.ndarray, queries: Tensor, query_labels: np.ndarray) -> Score:
    """kNN balanced accuracy of backbone features: bank (M, D) of training, queries (Q, D) of held-out specimens."""
    import torch

    from phenoscape_tune.evaluate import knn

    predicted = knn.predict(bank, torch.as_tensor(bank_labels, device=bank.device), queries).cpu().numpy()
    value = knn.balanced_accuracy(predicted, query_labels)
    return Score(value, knn.bootstrap_error(predicted, query_labels), predicted)


def trial_objective(evaluations: Sequence[float]) -> float:
    """A trial's objective: the mean of its last three evaluations, of fewer where it ran fewer."""
    return float(np.mean(evaluations[-AVERAGED_EVALUATIONS:]))
