"""Weighted k-nearest-neighbour classification of features, and how sure its accuracy is."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

K = 20
VOTE_TEMPERATURE = 0.07


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
    for chunk in queries.split(1024):  # bounds the (chunk, M) matrix
        similarity, nearest = (chunk @ bank.T).topk(k, dim=1)  # (q, k)
        votes = torch.zeros(len(chunk), len(sizes), device=bank.device)  # (q, C)
        votes.scatter_add_(1, bank_labels[nearest], ((similarity - 1) / tau).exp())
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


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
