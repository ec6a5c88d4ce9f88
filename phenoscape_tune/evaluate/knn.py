"""Weighted k-nearest-neighbour classification of features, and how sure its accuracy is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

K = 20
VOTE_TEMPERATURE = 0.07
CHUNK = 1024  # queries at a time
SIMILARITIES = 2**26  # at most at a time: 256 MiB of float32


def predict(bank: Tensor, bank_labels: Tensor, queries: Tensor, k: int = K, tau: float = VOTE_TEMPERATURE) -> Tensor:
    """Class of each query by the weighted vote of its k most similar bank images (DINO, arXiv 2104.14294, app. F).

    Args:
        bank: (M, D) features; bank_labels: (M,) int64 classes 0 ... C-1.
        queries: (Q, D) features.
        k: neighbours; capped at the size of the smallest class, else a small class could never win.
        tau: a neighbour of cosine similarity s votes with exp(s / tau).

    Returns:
        (Q,) int64 predicted classes.
    """
    sizes = torch.bincount(bank_labels)
    k = max(1, min(k, int(sizes[sizes > 0].min())))
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    predictions = []
    for chunk in queries.split(_chunk(len(bank))):
        predictions.append(_vote(chunk @ bank.T, bank_labels, k, tau, len(sizes)))
    return torch.cat(predictions)


def leave_one_out(
    features: Tensor,
    labels: Tensor,
    groups: Sequence[str] | None = None,
    k: int = K,
    tau: float = VOTE_TEMPERATURE,
) -> Tensor:
    """Class of each image by the weighted vote of the others, as in `predict`: the most that few labels can tell.

    Args:
        features: (M, D) features of the labelled images alone.
        labels: (M,) int64 classes 0 ... C-1.
        groups: M specimens' names: images of one specimen do not vote for each other; None: only the image itself
            has no vote.
        k: neighbours; capped at the fewest images of its own class that may vote for an image (the smallest class
            less one, without groups), else a small class could never win; at least 1.
        tau: a neighbour of cosine similarity s votes with exp(s / tau).

    Returns:
        (M,) int64 predicted classes; -1 for an image for which no other one may vote.
    """
    numbers: dict[str, int] = {}
    own = torch.arange(len(labels), device=labels.device)  # (M,) number of each image's specimen
    if groups is not None:
        own = torch.tensor([numbers.setdefault(name, len(numbers)) for name in groups], device=labels.device)
    sizes = torch.bincount(labels)  # (C,)
    _, pair, shared = torch.unique(own * len(sizes) + labels, return_inverse=True, return_counts=True)
    k = max(1, min(k, int((sizes[labels] - shared[pair]).min())))
    features = F.normalize(features.float(), dim=1)
    size, predictions = _chunk(len(features)), []
    for chunk, specimen in zip(features.split(size), own.split(size), strict=True):
        similarity = chunk @ features.T  # (q, M)
        similarity.masked_fill_(specimen[:, None] == own[None, :], -torch.inf)
        predictions.append(_vote(similarity, labels, k, tau, len(sizes)))
    return torch.cat(predictions)


def _chunk(bank: int) -> int:
    """Queries whose similarities to so many images of a bank are held at a time."""
    return max(1, min(CHUNK, SIMILARITIES // max(1, bank)))


def _vote(similarity: Tensor, labels: Tensor, k: int, tau: float, classes: int) -> Tensor:
    """(q,) class that wins in each row of cosine similarities (q, M) to images of the classes `labels` (M,).

    A similarity of -inf has no vote; -1 where no image has one.
    """
    similarity, nearest = similarity.topk(k, dim=1)  # (q, k), the largest first
    votes = torch.zeros(len(similarity), classes, device=similarity.device)  # (q, C)
    votes.scatter_add_(1, labels[nearest], ((similarity - 1) / tau).exp())
    return votes.argmax(dim=1).masked_fill(similarity[:, 0] == -torch.inf, -1)


def balanced_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the classes present in `truth` of the share of each that is predicted right."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def bootstrap_error(predicted: np.ndarray, truth: np.ndarray, draws: int = 500, seed: int = 0) -> float:
    """Standard error of the balanced accuracy by a bootstrap that is stratified by class."""
    rng = np.random.default_rng(seed)
    means = np.zeros(draws)
    classes = np.unique(truth)
    for c in classes:
        correct = predicted[truth == c] == c
        # The resampled share of n images with p right is binomial(n, p) / n.
        means += rng.binomial(len(correct), correct.mean(), size=draws) / len(correct)
    return float(np.std(means / len(classes), ddof=1))
