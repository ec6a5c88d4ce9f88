"""Confirmation: how much better the winner is than the defaults, on specimens that the search never saw.

Repeats with fresh seeds tell the noise of training, the test part's size that of measuring.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Gain:
    """Winner minus baseline in balanced accuracy on the test part, with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def read_predictions(path: Path) -> tuple[list[str], list[str]]:
    """Labels and predicted classes of `test_predictions.csv`, in the order of its rows."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["label"] for row in rows], [row["predicted"] for row in rows]


def paired_gain(winner: Sequence[Path], baseline: Sequence[Path], seed: int) -> Gain:
    """The gain from the test predictions of repeats; element i of both was trained with the same fresh seed.

    The interval is a bootstrap over specimens (stratified by class, the same draw for all repeats) and over seeds
    (with the factor sqrt(S / (S - 1)) by which S resampled differences vary too little).
    """
    differences = []
    labels: list[str] = []
    for won, base in zip(winner, baseline, strict=True):
        labels, predicted = read_predictions(won)
        other_labels, other_predicted = read_predictions(base)
        if labels != other_labels:
            raise ValueError(f"{won} and {base} hold other specimens")
        truth = np.array(labels)
        differences.append(
            (np.array(predicted) == truth).astype(float) - (np.array(other_predicted) == truth).astype(float)
        )
    return bootstrap_gain(np.stack(differences), np.array(labels), seed)


def bootstrap_gain(differences: np.ndarray, labels: np.ndarray, seed: int) -> Gain:
    """Mean and 95 % interval of paired differences (seeds S, specimens n) in {-1, 0, 1}, balanced over classes."""
    seeds = len(differences)
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    by_seed = np.mean([differences[:, members].mean(axis=1) for members in classes], axis=0)  # (S,)
    draws = np.empty(DRAWS)
    widen = np.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    for i in range(DRAWS):
        picked = [rng.choice(members, len(members)) for members in classes]
        resampled = np.mean([differences[:, members].mean(axis=1) for members in picked], axis=0)  # (S,)
        noise = (by_seed[rng.integers(seeds, size=seeds)].mean() - by_seed.mean()) * widen
        draws[i] = resampled.mean() + noise
    low, high = np.quantile(draws, [0.025, 0.975])
    return Gain(float(by_seed.mean()), float(low), float(high))
