"""What embeddings are worth for telling classes: kNN and a linear probe on images that they were not fitted to."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from phenoscape_tune.evaluate import knn, probe

FOLDS = 5
PROBE_BANK = 20_000  # images that the probe is fitted to, at most: evenly taken from more
KNN, PROBE = "knn", "probe"


@dataclass(frozen=True)
class Judged:
    """Predictions of both classifiers.

    Attributes:
        images: (n,) int64 indices of the images that were predicted.
        predicted: by classifier, (n,) int64 classes.
    """

    images: np.ndarray
    predicted: dict[str, np.ndarray]


def hold_out(features: np.ndarray, labels: np.ndarray, bank: np.ndarray, queries: np.ndarray) -> Judged:
    """Classes of `queries` by what is known of `bank`.

    Args:
        features: (N, D) float32, finite; labels: (N,) int64 classes, -1 for an unlabelled image.
        bank, queries: indices of labelled images, disjoint.
    """
    few = bank[:: -(-len(bank) // PROBE_BANK)]
    predicted = {}
    for name, predict, known in ((KNN, knn.predict, bank), (PROBE, probe.predict, few)):
        by = torch.from_numpy(features[known]), torch.from_numpy(labels[known])
        predicted[name] = predict(*by, torch.from_numpy(features[queries])).numpy()
    return Judged(queries, predicted)


def cross_validate(features: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> Judged | None:
    """Classes of all labelled images, each by the folds that hold none of its specimen's images.

    Classes of a single specimen are left out: nothing else could tell them. None where fewer than two classes remain.

    Args:
        features, labels: as in `hold_out`; groups: N specimens' names.
    """
    folds = assign_folds(labels, groups)  # (N,)
    if len(np.unique(labels[folds >= 0])) < 2:
        return None
    parts = []
    for fold in range(FOLDS):
        queries, bank = np.flatnonzero(folds == fold), np.flatnonzero((folds >= 0) & (folds != fold))
        if len(queries):
            parts.append(hold_out(features, labels, bank, queries))
    images = np.concatenate([part.images for part in parts])
    order = np.argsort(images)
    predicted = {name: np.concatenate([part.predicted[name] for part in parts])[order] for name in (KNN, PROBE)}
    return Judged(images[order], predicted)


def assign_folds(labels: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """(N,) int64 fold of each image; -1 for unlabelled ones and classes of a single specimen.

    Whole specimens, each class spread over the folds in the order of sha256(name): the same for the same names. A
    specimen with several labels counts to its most frequent one.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index in np.flatnonzero(labels >= 0):
        members[groups[int(index)]].append(int(index))
    by_class: dict[int, list[str]] = defaultdict(list)
    for group, indices in members.items():
        by_class[int(np.bincount(labels[indices]).argmax())].append(group)
    folds, dealt = np.full(len(labels), -1, dtype=np.int64), 0
    for _, names in sorted(by_class.items()):
        if len(names) < 2:
            continue
        for name in sorted(names, key=lambda n: hashlib.sha256(n.encode("utf-8", "surrogateescape")).digest()):
            folds[members[name]] = dealt % FOLDS
            dealt += 1
    return folds
