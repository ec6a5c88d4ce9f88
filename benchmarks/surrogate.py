"""The recorded learning curves between their points: what a search in virtual time asks instead of training.

Gaussian processes over log lr, temperature, log batch size, jitter and crop, fitted to `results/learning_curves.jsonl`:
for the leading components of a score's curves, for the final linear-probe accuracy and for the seconds of an epoch.
What they leave unexplained is drawn anew for each trial from the recorded residuals, so that repeats with fresh seeds
differ. These are residuals of the fit itself, smaller than the noise of real trials: of the last three kNN evaluations
0.008, where the recorded runs left out one by one are missed by 0.022.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from learning_curves import STUDIES

TABLE = Path(__file__).parent / "results" / "learning_curves.jsonl"
COMPONENTS = 4
KEYS = ("lr", "temperature", "batch_size", "transforms.cj_strength", "transforms.min_scale")
BATCH_SIZES = (32, 64, 128, 256)
LEAST_SECONDS = 0.1  # of an epoch: no prediction may fall below


def parameters(study: str) -> dict[str, Any]:
    """The search space of a study: the ranges of its recorded configurations."""
    low, high = STUDIES[study].lr
    return {
        "lr": {"type": "loguniform", "low": low, "high": high},
        "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
        "batch_size": {"type": "choice", "values": list(BATCH_SIZES)},
        "transforms.cj_strength": {"type": "uniform", "low": 0.0, "high": 1.0},
        "transforms.min_scale": {"type": "uniform", "low": 0.05, "high": 0.8},
    }


def read_rows(study: str, table: Path = TABLE) -> list[dict[str, Any]]:
    """The recorded runs of a study, in their order."""
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return sorted((row for row in rows if row["study"] == study), key=lambda row: row["index"])


class Process:
    """A Gaussian process with a length scale a key and a noise term, on standardised values."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern([0.5] * x.shape[1], (0.1, 20), nu=2.5)
        kernel += WhiteKernel(0.2, (1e-3, 2))
        self._mean, self._scale = y.mean(), y.std() or 1.0
        model = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        model.fit(x, (y - self._mean) / self._scale)
        self._alpha, self._x = model.alpha_, x
        self._kernel = model.kernel_.k1  # without the noise

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._mean + self._scale * (self._kernel(np.atleast_2d(x), self._x) @ self._alpha)


@dataclass
class Curves:
    """Predicted curves of one score, (E,), and what the prediction left over, (n, E)."""

    processes: list[Process]
    basis: np.ndarray
    mean: np.ndarray
    residuals: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        weights = np.array([process(x)[0] for process in self.processes])
        return self.mean + weights @ self.basis


def fit_curves(x: np.ndarray, curves: np.ndarray) -> Curves:
    mean = curves.mean(0)
    _, _, basis = np.linalg.svd(curves - mean, full_matrices=False)
    basis = basis[:COMPONENTS]
    weights = (curves - mean) @ basis.T
    processes = [Process(x, weights[:, i]) for i in range(len(basis))]
    fitted = Curves(processes, basis, mean, np.zeros_like(curves))
    fitted.residuals = curves - np.stack([fitted(row) for row in x])
    return fitted


class Surrogate:
    """A study between its recorded configurations: curves of one score, final probe accuracy, seconds an epoch.

    Args:
        study: of `learning_curves.py`.
        rows: its recorded runs.
        scores: the scores of the table whose mean is the objective.
    """

    def __init__(self, study: str, rows: list[dict[str, Any]], scores: Sequence[str]) -> None:
        self.parameters = parameters(study)
        self.x = np.stack([self.point(row["configuration"]) for row in rows])
        self.probe_values = np.array([row["probe"] for row in rows])
        # Epoch 0 is the untrained network; losses have no value there.
        self.epochs: int = rows[0]["epochs"]
        recorded = [[row["scores"][score][-self.epochs :] for row in rows] for score in scores]
        self.curves = fit_curves(self.x, np.mean(np.array(recorded, dtype=float), axis=0))
        self.probe = Process(self.x, self.probe_values)
        self._seconds = Process(self.x, np.array([float(np.mean(row["seconds"])) for row in rows]))
        self.training_seconds = self.epochs * float(np.mean([np.mean(row["seconds"]) for row in rows]))

    def point(self, values: dict[str, Any]) -> np.ndarray:
        """A configuration on the unit cube of the recorded ranges, (5,)."""
        found = []
        for key in KEYS:
            own = self.parameters[key]
            low, high = (own["values"][0], own["values"][-1]) if "values" in own else (own["low"], own["high"])
            ends = [float(low), float(high), float(values[key])]
            low, high, at = np.log(ends) if key in ("lr", "batch_size") else ends
            found.append((at - low) / (high - low))
        return np.clip(np.array(found, dtype=float), 0, 1)

    def random_points(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Points of the unit cube that are configurations, (count, 5)."""
        points = rng.random((count, len(KEYS)))
        points[:, KEYS.index("batch_size")] = rng.choice(np.linspace(0, 1, len(BATCH_SIZES)), size=count)
        return points

    def curve(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The objective after each epoch, (E,): predicted, with the residual of a random recorded run."""
        residuals = self.curves.residuals
        return self.curves(x) + residuals[rng.integers(len(residuals))]

    def seconds(self, x: np.ndarray) -> float:
        """Of one epoch."""
        return max(LEAST_SECONDS, float(self._seconds(x)[0]))

    def true_probe(self, x: np.ndarray) -> float:
        """The linear-probe accuracy that a configuration has at the end, without noise."""
        return float(self.probe(x)[0])

    def best(self) -> float:
        """The best predicted probe accuracy over the whole space."""
        return float(self.probe(self.random_points(20000, np.random.default_rng(0))).max())

    def held_out(self) -> tuple[float, float]:
        """R² of the predicted probe accuracy and Spearman correlation, each configuration predicted by the others."""
        from scipy.stats import spearmanr

        predicted = np.array([
            Process(np.delete(self.x, i, 0), np.delete(self.probe_values, i))(self.x[i])[0] for i in range(len(self.x))
        ])  # fmt: skip
        error = np.mean((predicted - self.probe_values) ** 2)
        return float(1 - error / self.probe_values.var()), float(spearmanr(predicted, self.probe_values).statistic)
