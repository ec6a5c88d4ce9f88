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
FEW = 5  # specimens of a class


@dataclass(frozen=True)
class Gain:
    """How much better the winner is than the baseline on the test part, with its 95 % interval; positive is better."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero, and knows of the noise of training."""
        return self.seeds > 1 and (self.low > 0 or self.high < 0)


def read_scores(path: Path) -> tuple[list[str], list[float], list[str]]:
    """Labels, scores and groups of `test_scores.csv`, in the order of its rows."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    return [row["label"] for row in rows], [float(row["score"]) for row in rows], [row["group"] for row in rows]


def paired_gain(winner: Sequence[Path], baseline: Sequence[Path], seed: int, sign: int = 1) -> Gain:
    """The gain from the specimens' scores of repeats; element i of both was trained with the same fresh seed.

    `sign` is -1 where a lower score is better. Scores without labels are balanced over nothing.
    """
    differences = []
    labels: list[str] = []
    groups: list[str] = []
    for won, base in zip(winner, baseline, strict=True):
        labels, scores, groups = read_scores(won)
        other_labels, other_scores, other_groups = read_scores(base)
        if labels != other_labels or groups != other_groups:
            raise ValueError(f"{won} and {base} hold other specimens")
        differences.append(sign * (np.array(scores) - np.array(other_scores)))
    return bootstrap_gain(np.stack(differences), np.array(labels), seed, np.array(groups))


def seed_gain(differences: Sequence[float]) -> Gain:
    """The gain where a score has no parts that a bootstrap could draw (RankMe, LiDAR): from the seeds alone.

    Student's t interval of the paired differences; of one seed no interval can be told.
    """
    values = np.array(differences)
    mean, seeds = float(values.mean()), len(values)
    if seeds < 2:
        return Gain(mean, -np.inf, np.inf, seeds)
    half = float(stats.t.ppf(0.975, seeds - 1) * values.std(ddof=1) / seeds**0.5)
    return Gain(mean, mean - half, mean + half, seeds)


def bootstrap_gain(differences: np.ndarray, labels: np.ndarray, seed: int, groups: np.ndarray | None = None) -> Gain:
    """Mean and 95 % interval of paired differences of scores (seeds S, specimens n), balanced over classes.

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
    draws, floor = np.zeros(DRAWS), 0.0
    accuracy = bool(np.all(labels != ""))  # scores of 0 and 1; without labels they have other sizes
    for own in members:
        names = own if groups is None else groups[own]
        _, index = np.unique(names, return_inverse=True)
        sums, sizes = np.bincount(index, mean_difference[own]), np.bincount(index)
        if len(sizes) < FEW and accuracy:
            # Of one specimen a bootstrap knows no spread: two made-up ones, one right and one wrong (Agresti and
            # Coull, The American Statistician 52, 1998), keep few specimens from looking sure.
            floor += (float(np.square(sums / sizes).sum()) + 2) / (len(sizes) + 2) ** 2 / len(members) ** 2
        picked = rng.integers(len(sizes), size=(DRAWS, len(sizes)))
        draws += sums[picked].sum(axis=1) / sizes[picked].sum(axis=1)
    measuring = max(float(np.var(draws / len(members), ddof=1)), floor)
    training = float(np.var(by_seed, ddof=1)) / seeds if seeds > 1 else 0.0
    total = measuring + training
    freedom = total**2 / (training**2 / (seeds - 1)) if training > 0 else np.inf
    half = float(stats.t.ppf(0.975, freedom) if np.isfinite(freedom) else stats.norm.ppf(0.975)) * total**0.5
    gain = float(by_seed.mean())
    return Gain(gain, gain - half, gain + half, seeds)
