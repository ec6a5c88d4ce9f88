"""Confirmation: how much better the winner is than the defaults, on specimens that the search never saw.

Repeats with fresh seeds tell the noise of training, the test part's size that of measuring.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

DRAWS = 2000


@dataclass(frozen=True)
class Gain:
    """Winner minus baseline in balanced accuracy on the test part, with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero, and knows of the noise of training."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)


def read_predictions(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Labels, predicted classes and groups of `test_predictions.csv`, in the order of its rows."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    return [row["label"] for row in rows], [row["predicted"] for row in rows], [row["group"] for row in rows]


def paired_gain(winner: Sequence[Path], baseline: Sequence[Path], seed: int) -> Gain:
    """The gain from the test predictions of repeats; element i of both was trained with the same fresh seed."""
    differences = []
    labels: list[str] = []
    groups: list[str] = []
    for won, base in zip(winner, baseline, strict=True):
        labels, predicted, groups = read_predictions(won)
        other_labels, other_predicted, _ = read_predictions(base)
        if labels != other_labels:
            raise ValueError(f"{won} and {base} hold other specimens")
        truth = np.array(labels)
        differences.append(
            (np.array(predicted) == truth).astype(float) - (np.array(other_predicted) == truth).astype(float)
        )
    return bootstrap_gain(np.stack(differences), np.array(labels), seed, np.array(groups))


def bootstrap_gain(differences: np.ndarray, labels: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Gain:
    """Mean and 95 % interval of paired differences (seeds S, specimens n) in {-1, 0, 1}, balanced over classes.

    Two noises are added up: that of measuring, by a bootstrap over specimens (whole groups, stratified by class), and
    that of training, from the spread of the S seeds. The quantile is Student's t with the degrees of freedom of
    Welch and Satterthwaite (Biometrics Bulletin 2, 1946), so that few seeds make a wide interval. One seed tells
    nothing of the noise of training: its interval covers measuring alone.
    """
    seeds = len(differences)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    by_seed = np.mean([differences[:, own].mean(axis=1) for own in members], axis=0)  # (S,)
    mean_difference = differences.mean(axis=0)  # (n,)
    draws = np.zeros(DRAWS)
    for own in members:
        names = own if groups is None else groups[own]
        _, index = np.unique(names, return_inverse=True)
        sums, sizes = np.bincount(index, mean_difference[own]), np.bincount(index)
        picked = rng.integers(len(sizes), size=(DRAWS, len(sizes)))
        draws += sums[picked].sum(axis=1) / sizes[picked].sum(axis=1)
    measuring = float(np.var(draws / len(members), ddof=1))
    training = float(np.var(by_seed, ddof=1)) / seeds if seeds > 1 else 0.0
    total = measuring + training
    freedom = total**2 / (training**2 / (seeds - 1)) if training > 0 else np.inf
    half = float(stats.t.ppf(0.975, freedom) if np.isfinite(freedom) else stats.norm.ppf(0.975)) * total**0.5
    gain = float(by_seed.mean())
    return Gain(gain, gain - half, gain + half, seeds)
