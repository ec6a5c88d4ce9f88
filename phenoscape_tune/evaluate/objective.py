"""The objective that a search compares: which one a search uses, and its value for a network.

The loss of training is none of them, and cannot be asked for: it depends on the temperature, the batch size and the
augmentation by itself, so that a search for the smallest loss picks the easiest task (docs/objectives.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from phenoscape_tune.errors import UserError
from phenoscape_tune.key_faults import nearest

if TYPE_CHECKING:  # the search's driver reads this module and must not pay for torch
    from torch import Tensor

AVERAGED_EVALUATIONS = 3
HELD_OUT_IMAGES = 1000  # of a part that the label-free scores look at, at most
FEW_LABELS = 100  # labelled validation images below which the labelled training images are asked for too
WEAK, MODERATE = "weak", "moderate"  # reference augmentations
COLLAPSED_STD = 0.01  # of features that no longer differ between images


@dataclass(frozen=True)
class Metric:
    """An objective.

    Attributes:
        name: what `objective.metric` calls it.
        title: what people call it.
        higher_is_better: the direction.
        needs_labels: whether it looks at classes.
        views: fixed reference views of each held-out image that it looks at, by the reference's name; none: it looks
            at the plain images.
        grace_share: share of max_epochs before which it says nothing of the end, so that no trial is stopped.
    """

    name: str
    title: str
    higher_is_better: bool = True
    needs_labels: bool = False
    views: tuple[tuple[str, int], ...] = ()
    grace_share: float = 0.0

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: times a value, it is a merit."""
        return 1 if self.higher_is_better else -1


METRICS = {
    metric.name: metric
    for metric in (
        Metric("knn_accuracy", "kNN balanced accuracy", needs_labels=True),
        Metric("probe_accuracy", "linear-probe balanced accuracy", needs_labels=True),
        Metric(
            "reference_contrast",
            "reference contrast",
            higher_is_better=False,
            views=((WEAK, 2), (MODERATE, 2)),
            grace_share=0.2,
        ),
        Metric("rankme", "RankMe", grace_share=0.2),
        Metric("lidar", "LiDAR", views=((MODERATE, 8),), grace_share=0.2),
    )
}
WITH_LABELS, WITHOUT_LABELS = METRICS["knn_accuracy"], METRICS["reference_contrast"]
# What people try that must not rank trials, with the reason.
_REFUSED = dict.fromkeys(
    ("val_loss", "train_loss", "loss", "nt_xent"),
    "depends on the temperature, the batch size and the augmentation by itself, so the search would pick the easiest "
    "task and not the best features (docs/objectives.md); write auto",
)


@dataclass(frozen=True)
class Score:
    """An objective's value, its standard error, and what it is made of.

    Attributes:
        value: of the whole part.
        error: standard error over the specimens; None where the metric has none.
        specimens: (n,) one value a specimen whose mean (balanced over classes, where there are labels) is the value;
            None where the metric has no such parts.
        predicted: (n,) int64 predicted classes; None without labels.
    """

    value: float
    error: float | None = None
    specimens: np.ndarray | None = field(default=None, repr=False)
    predicted: np.ndarray | None = field(default=None, repr=False)


def check_metric(metric: str) -> None:
    """Raise ValueError, naming the nearest known one, for a metric that does not exist or must not rank trials."""
    if metric in _REFUSED:
        raise ValueError(f"'{metric}' {_REFUSED[metric]}")
    if metric not in ("auto", *METRICS):
        raise ValueError(f"'{metric}' is unknown; {nearest(metric, ('auto', *METRICS))}")


def choose_metric(metric: str, labelled: bool, few: bool = False) -> Metric:
    """Resolve `auto`: kNN accuracy with labels, the reference contrast without, or with too few of them.

    Raises UserError for a metric that needs labels where there are none.
    """
    check_metric(metric)
    if metric == "auto":
        return WITH_LABELS if labelled and not few else WITHOUT_LABELS
    chosen = METRICS[metric]
    if chosen.needs_labels and not labelled:
        raise UserError(
            f"objective.metric: {metric} needs labels and there are none: put the images of each class in a "
            "sub-folder of data_dir, or give labels=FILE.csv with the columns filename,label (of a part of the "
            f"images, a few a class), or write metric: {WITHOUT_LABELS.name}"
        )
    return chosen


def classification_score(
    metric: Metric, bank: Tensor, bank_labels: np.ndarray, queries: Tensor, query_labels: np.ndarray
) -> Score:
    """Balanced accuracy of a classifier on backbone features.

    Args:
        metric: knn_accuracy or probe_accuracy.
        bank: (M, D) features of training specimens, whose classes `bank_labels` (M,) the classifier knows.
        queries: (Q, D) features of held-out specimens of the classes `query_labels` (Q,).
    """
    import torch

    from phenoscape_tune.evaluate import knn, probe

    predict = probe.predict if metric.name == "probe_accuracy" else knn.predict
    predicted = predict(bank, torch.as_tensor(bank_labels, device=bank.device), queries)
    return accuracy_score(predicted.cpu().numpy(), query_labels)


def few_labels_score(features: Tensor, labels: np.ndarray, groups: Sequence[str]) -> Score:
    """kNN balanced accuracy where few images have a label: each is classified by all the others.

    Args:
        features: (M, D) of all labelled images of the training and validation parts.
        labels: (M,) their classes.
        groups: M specimens' names; images of one specimen do not vote for each other.
    """
    import torch

    from phenoscape_tune.evaluate import knn

    classes = torch.as_tensor(labels, device=features.device)
    return accuracy_score(knn.leave_one_out(features, classes, groups).cpu().numpy(), labels)


def accuracy_score(predicted: np.ndarray, truth: np.ndarray) -> Score:
    """Balanced accuracy of predicted classes (n,), with its stratified bootstrap error."""
    from phenoscape_tune.evaluate import knn

    value = knn.balanced_accuracy(predicted, truth)
    return Score(value, knn.bootstrap_error(predicted, truth), (predicted == truth).astype(float), predicted)


def label_free_score(metric: Metric, features: Tensor) -> Score:
    """A score of backbone features without labels.

    Args:
        metric: any that needs no labels.
        features: (q, n, D) of q fixed views of n held-out images: those of `metric.views` in their order, or the plain
            images.

    The reference contrast is the mean over two pairs of views, one of a weak and one of a moderate augmentation: each
    favours trials whose own jitter is near its strength, and the mean of both hardly does (docs/objectives.md).
    """
    from phenoscape_tune.evaluate import label_free

    if metric.name == "rankme":
        return Score(label_free.rankme(features[0]))
    if metric.name == "lidar":
        return Score(label_free.lidar(features))
    pairs = [label_free.reference_contrast_of_each(pair) for pair in features.split(2)]
    losses = (sum(pairs[1:], start=pairs[0]) / len(pairs)).cpu().numpy()  # (n,)
    error = float(np.std(losses, ddof=1) / len(losses) ** 0.5) if len(losses) > 1 else None
    return Score(float(losses.mean()), error, losses)


def collapsed(feature_std: float) -> bool:
    """Whether features no longer differ between images: such a network can be told without labels."""
    return not feature_std > COLLAPSED_STD


def trial_objective(evaluations: Sequence[float]) -> float:
    """A trial's objective: the mean of its last three evaluations, of fewer where it ran fewer."""
    # Not by NumPy: it is asked of every trial whenever one is judged, and three numbers are too few for an array.
    last = evaluations[-AVERAGED_EVALUATIONS:]
    return math.fsum(last) / len(last)
