"""The recorded learning curves between their points: what a search in virtual time asks instead of training.

Gaussian processes over log lr, temperature, log batch size, jitter and crop, fitted to `results/learning_curves.jsonl`:
for the leading components of a score's curves, for the final linear-probe accuracy and for the seconds of an epoch.
Each trial has noise of its own, drawn with the covariance over epochs that repeats of four configurations with fresh
seeds were measured to have; the processes may not explain away less than that. What they do not know of configurations
that were not recorded is more: `noise="left out"` draws that instead, to see what hangs on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from learning_curves import STUDIES

TABLE = Path(__file__).parent / "results" / "learning_curves.jsonl"
COMPONENTS = 4
KEYS = ("lr", "temperature", "batch_size", "transforms.cj_strength", "transforms.min_scale")
BATCH_SIZES = (32, 64, 128, 256)
LEAST_SECONDS = 0.1  # of an epoch: no prediction may fall below
AVERAGED = 3  # evaluations whose mean is a trial's objective
NOISES = ("seeds", "left out")
PARTS = 48  # cifar-long was recorded in parts of so many, days apart, beside more or less other work
CLIMBED = 10  # of the random points, for each batch size: from where the best configuration is sought


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


def read_repeats(study: str, table: Path = TABLE) -> list[list[dict[str, Any]]]:
    """The runs that trained one configuration of a study, the study's own first; a list for each that was repeated."""
    again, rows = f"{study}-seeds", {row["index"]: row for row in read_rows(study, table)}
    if again not in STUDIES:
        return []
    repeated, fresh = STUDIES[again].repeated, read_rows(again, table)
    groups = [
        [rows[index], *(row for row in fresh if repeated[row["index"] % len(repeated)] == index)]
        for index in repeated
        if index in rows
    ]
    return [group for group in groups if len(group) > 1]


def even_seconds(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Seconds an epoch of each row, (n,), as if all were recorded beside the load of the last part.

    The parts differ by a factor of their own for each batch size, taken from the medians.
    """
    seconds = np.array([float(np.mean(row["seconds"])) for row in rows])
    part = np.array([row["index"] // PARTS for row in rows])
    size = np.array([row["configuration"]["batch_size"] for row in rows])
    even = seconds.copy()
    for each in np.unique(size):
        last = (size == each) & (part == part.max())
        for earlier in np.unique(part[size == each]):
            own = (size == each) & (part == earlier)
            if last.any():
                even[own] *= np.median(seconds[last]) / np.median(seconds[own])
    return even


class Process:
    """A Gaussian process with a length scale a key and a noise term of at least `noise` (a variance), on standardised
    values.

    Attributes:
        noise: the noise term's variance, of standardised values.
        left_out: what each value differs by from what the others predict of it, (n,).
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, noise: float = 0.0) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._mean, self._scale = y.mean(), y.std() or 1.0
        # No more than all of the variance: a component may be nothing but noise.
        least = float(np.clip(noise / self._scale**2, 1e-3, 1.0))
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern([0.5] * x.shape[1], (0.1, 20), nu=2.5)
        kernel += WhiteKernel(max(0.2, least), (least, 2))
        model = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        model.fit(x, (y - self._mean) / self._scale)
        self._alpha, self._x = model.alpha_, x
        self._kernel, self.noise = model.kernel_.k1, float(model.kernel_.k2.noise_level)
        inverse = np.linalg.inv(model.L_ @ model.L_.T)
        self.left_out = self._scale * model.alpha_ / np.diag(inverse)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._mean + self._scale * (self._kernel(np.atleast_2d(x), self._x) @ self._alpha)


class Noise(Protocol):
    """Draws what a trial's curve, (E,), differs by from the predicted one."""

    def draw(self, rng: np.random.Generator) -> np.ndarray: ...


@dataclass
class SeedNoise:
    """Gaussian, with the covariance over epochs that repeats have around the mean of their configuration.

    Attributes:
        deviations: of the repeats, (m, E), scaled such that their products add up to the covariance.
    """

    deviations: np.ndarray

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        return rng.standard_normal(len(self.deviations)) @ self.deviations


@dataclass
class DrawnNoise:
    """One of the recorded residuals, (n, E)."""

    residuals: np.ndarray

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        found: np.ndarray = self.residuals[rng.integers(len(self.residuals))]
        return found


def seed_noise(groups: Sequence[np.ndarray]) -> SeedNoise:
    """The noise of repeats: an array (m, E) for each configuration, m at least 2."""
    deviations = np.concatenate([curves - curves.mean(0) for curves in groups])
    return SeedNoise(deviations / (len(deviations) - len(groups)) ** 0.5)


@dataclass
class Curves:
    """Predicted curves of one score, (E,). `left_out`, (n, E): what each recorded one differs by from what the others
    predict of it."""

    processes: list[Process]
    basis: np.ndarray
    mean: np.ndarray
    left_out: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        weights = np.array([process(x)[0] for process in self.processes])
        return self.mean + weights @ self.basis


def fit_curves(x: np.ndarray, curves: np.ndarray, noise: SeedNoise | None = None) -> Curves:
    mean = curves.mean(0)
    _, _, basis = np.linalg.svd(curves - mean, full_matrices=False)
    basis = basis[:COMPONENTS]
    weights = (curves - mean) @ basis.T
    known = np.zeros(len(basis)) if noise is None else np.square(noise.deviations @ basis.T).sum(0)
    processes = [Process(x, weights[:, i], known[i]) for i in range(len(basis))]
    predicted = weights - np.stack([process.left_out for process in processes], axis=1)
    return Curves(processes, basis, mean, curves - mean - predicted @ basis)


class Surrogate:
    """A study between its recorded configurations: curves of one score, final probe accuracy, seconds an epoch.

    Args:
        study: of `learning_curves.py`.
        rows: its recorded runs.
        scores: the scores of the table whose mean is the objective.
        repeats: runs of one configuration with several seeds, for some configurations.
        noise: of a trial: "seeds", as the repeats have it, or "left out", what the processes miss recorded runs by.
    """

    def __init__(
        self,
        study: str,
        rows: list[dict[str, Any]],
        scores: Sequence[str],
        repeats: Sequence[Sequence[dict[str, Any]]],
        noise: str = "seeds",
    ) -> None:
        if noise not in NOISES:
            raise ValueError(f"noise: {noise!r} is none of {', '.join(NOISES)}")
        if not repeats:
            raise ValueError(f"{study}: no configuration was recorded with several seeds")
        self.parameters = parameters(study)
        self.x = np.stack([self.point(row["configuration"]) for row in rows])
        self.probe_values = np.array([row["probe"] for row in rows])
        self.epochs: int = rows[0]["epochs"]

        def recorded(runs: Sequence[dict[str, Any]]) -> np.ndarray:
            # Epoch 0 is the untrained network; losses have no value there.
            curves = [[row["scores"][score][-self.epochs :] for row in runs] for score in scores]
            return np.asarray(np.mean(np.array(curves, dtype=float), axis=0))

        self.seed_noise = seed_noise([recorded(runs) for runs in repeats])
        probes = seed_noise([np.array([[row["probe"]] for row in runs]) for runs in repeats])
        self.probe_noise = float(np.square(probes.deviations).sum() ** 0.5)
        self.curves = fit_curves(self.x, recorded(rows), self.seed_noise)
        self.noise: Noise = self.seed_noise if noise == "seeds" else DrawnNoise(self.curves.left_out)
        self.probe = Process(self.x, self.probe_values, self.probe_noise**2)
        seconds = even_seconds(rows)
        self._seconds = Process(self.x, seconds)
        self.training_seconds = self.epochs * float(seconds.mean())

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
        """The objective after each epoch, (E,): predicted, with a trial's noise."""
        return self.curves(x) + self.noise.draw(rng)

    def seconds(self, x: np.ndarray) -> float:
        """Of one epoch."""
        return max(LEAST_SECONDS, float(self._seconds(x)[0]))

    def true_probe(self, x: np.ndarray) -> float:
        """The linear-probe accuracy that a configuration has at the end, without noise."""
        return float(self.probe(x)[0])

    def true_objective(self, x: np.ndarray) -> float:
        """The objective that a configuration has at the end, without noise."""
        return float(self.curves(x)[-AVERAGED:].mean())

    def best(self) -> float:
        """The best predicted probe accuracy over the whole space: climbed to from the best of many random points."""
        from scipy.optimize import minimize

        place, found = KEYS.index("batch_size"), []
        points = self.random_points(20000, np.random.default_rng(0))
        predicted = self.probe(points)
        for size in np.unique(points[:, place]):
            own = np.flatnonzero(points[:, place] == size)
            bounds = [(size, size) if key == place else (0.0, 1.0) for key in range(len(KEYS))]
            for start in points[own[np.argsort(-predicted[own])[:CLIMBED]]]:
                climbed = minimize(lambda x: -self.true_probe(x), start, method="L-BFGS-B", bounds=bounds)
                found.append(-float(climbed.fun))
        return max(found)

    def noise_errors(self) -> dict[str, float]:
        """Standard deviations: of the objective and the probe by the seed, and what a recorded objective is missed by
        where it is left out. The objective is the mean of the last three epochs."""
        by_seed = np.square(self.seed_noise.deviations[:, -AVERAGED:].mean(1)).sum() ** 0.5
        left_out = self.curves.left_out[:, -AVERAGED:].mean(1)
        return {
            "objective_by_seed": float(by_seed),
            "objective_left_out": float(np.square(left_out).mean() ** 0.5),
            "probe_by_seed": self.probe_noise,
        }

    def held_out(self) -> tuple[float, float]:
        """R² of the predicted probe accuracy and Spearman correlation, each configuration predicted by the others."""
        from scipy.stats import spearmanr

        predicted = np.array([
            Process(np.delete(self.x, i, 0), np.delete(self.probe_values, i), self.probe_noise**2)(self.x[i])[0]
            for i in range(len(self.x))
        ])  # fmt: skip
        error = np.mean((predicted - self.probe_values) ** 2)
        return float(1 - error / self.probe_values.var()), float(spearmanr(predicted, self.probe_values).statistic)
