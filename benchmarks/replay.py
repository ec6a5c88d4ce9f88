"""Staged against joint search, and each objective's pick against the oracle, replayed on recorded learning curves.

Runs the project's own search code (conductor, sampler, early stopping, confirmation, verdict) in virtual time: an
epoch costs what it cost when the curves of `results/learning_curves.jsonl` were recorded. Between the recorded
configurations a surrogate answers: Gaussian processes over log lr, temperature, log batch size, jitter and crop for the
leading components of each score's curve, and for the final linear-probe accuracy. What they leave unexplained is drawn
anew for each trial from the recorded residuals, so that trials are as noisy as real ones, and repeats with fresh seeds
differ. How well the surrogate predicts configurations that it has not seen is printed first.

    python benchmarks/replay.py --study cifar --seeds 50
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from learning_curves import STUDIES

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.evaluate.objective import METRICS, Metric
from phenoscape_tune.search.conductor import Conductor, Task
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.report import decide
from phenoscape_tune.search.space import SearchSpace, build_space
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.study import Study
from phenoscape_tune.versions import versions

TABLE = Path(__file__).parent / "results" / "learning_curves.jsonl"
RESULTS = Path(__file__).parent / "results" / "replay.json"
COMPONENTS = 4
CONCURRENT = 2
KEYS = ("lr", "temperature", "batch_size", "transforms.cj_strength", "transforms.min_scale")

# Objective of the search → the scores of the table whose mean plays it. Raw losses are no objective of the project:
# here they show what a search would pick that ranked by them.
SCORES: dict[str, tuple[Metric, tuple[str, ...]]] = {
    "knn_accuracy": (METRICS["knn_accuracy"], ("knn",)),
    "reference_contrast": (METRICS["reference_contrast"], ("contrast_weak", "contrast_moderate")),
    "rankme": (METRICS["rankme"], ("rankme",)),
    "lidar": (METRICS["lidar"], ("lidar",)),
    "val_loss": (Metric("val_loss", "validation loss", higher_is_better=False), ("val_loss",)),
}
# The ranges of the recorded configurations; of lr those of the study that is replayed.
PARAMETERS: dict[str, Any] = {
    "lr": {"type": "loguniform", "low": 3e-5, "high": 3e-2},
    "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
    "batch_size": {"type": "choice", "values": [32, 64, 128, 256]},
    "transforms.cj_strength": {"type": "uniform", "low": 0.0, "high": 1.0},
    "transforms.min_scale": {"type": "uniform", "low": 0.05, "high": 0.8},
}


def point(values: dict[str, Any]) -> np.ndarray:
    """A configuration on the unit cube of the recorded ranges, (5,)."""
    found = []
    for key in KEYS:
        bounds = (32, 256) if key == "batch_size" else (PARAMETERS[key]["low"], PARAMETERS[key]["high"])
        ends = [float(bounds[0]), float(bounds[1]), float(values[key])]
        low, high, at = np.log(ends) if key in ("lr", "batch_size") else ends
        found.append((at - low) / (high - low))
    return np.clip(np.array(found, dtype=float), 0, 1)


class Process:
    """A Gaussian process with a length scale a key and a noise term, on standardised values."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern([0.5] * x.shape[1], (0.1, 20), nu=2.5)
        kernel += WhiteKernel(0.2, (1e-3, 2))
        self._mean, self._scale = y.mean(), y.std() or 1.0
        self._model = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
        self._model.fit(x, (y - self._mean) / self._scale)
        self._alpha, self._x = self._model.alpha_, x
        self._kernel = self._model.kernel_.k1  # without the noise

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
    """The recorded table between its points: curves of one score, final probe accuracy, seconds an epoch."""

    def __init__(self, rows: list[dict[str, Any]], scores: Sequence[str]) -> None:
        self.x = np.stack([point(row["configuration"]) for row in rows])
        self.probe_values = np.array([row["probe"] for row in rows])
        # Epoch 0 is the untrained network; losses have no value there.
        epochs = rows[0]["epochs"]
        recorded = [[row["scores"][score][-epochs:] for row in rows] for score in scores]
        self.curves = fit_curves(self.x, np.mean(np.array(recorded, dtype=float), axis=0))
        self.probe = Process(self.x, self.probe_values)
        self.seconds = Process(self.x, np.array([float(np.mean(row["seconds"])) for row in rows]))
        self.epochs = epochs

    def true_probe(self, values: dict[str, Any]) -> float:
        return float(self.probe(point(values))[0])

    def best(self) -> float:
        """The best predicted probe accuracy over the whole space."""
        rng = np.random.default_rng(0)
        candidates = rng.random((20000, len(KEYS)))
        candidates[:, 2] = rng.choice([0, 1 / 3, 2 / 3, 1], size=len(candidates))
        return float(self.probe(candidates).max())

    def held_out(self) -> tuple[float, float]:
        """R² of the predicted probe accuracy and Spearman correlation, each configuration predicted by the others."""
        from scipy.stats import spearmanr

        predicted = np.array([
            Process(np.delete(self.x, i, 0), np.delete(self.probe_values, i))(self.x[i])[0] for i in range(len(self.x))
        ])  # fmt: skip
        error = np.mean((predicted - self.probe_values) ** 2)
        return float(1 - error / self.probe_values.var()), float(spearmanr(predicted, self.probe_values).statistic)


def configuration(config: TrainConfig) -> dict[str, Any]:
    return {
        "lr": config.lr,
        "temperature": config.temperature,
        "batch_size": config.batch_size,
        "transforms.cj_strength": config.transforms.cj_strength,
        "transforms.min_scale": config.transforms.min_scale,
    }


@dataclass
class Replay:
    """One search in virtual time: `CONCURRENT` trials side by side."""

    conductor: Conductor
    surrogate: Surrogate
    now: float = 0.0

    def run(self) -> None:
        running: list[tuple[float, int, Task, np.ndarray, float]] = []
        count = 0
        while True:
            while len(self.conductor.live) < CONCURRENT and (task := self.conductor.next_task()) is not None:
                curve, seconds = self._curve(task)
                count += 1
                heapq.heappush(running, (self.now + seconds, count, task, curve, seconds))
            if not running:
                return
            self.now, number, task, curve, seconds = heapq.heappop(running)
            epoch = len(self.conductor.live[task.record.name].curve) + 1
            row = {"epoch": epoch, "objective": float(curve[epoch - 1]), "seconds": seconds}
            if task.test and epoch == len(curve):
                row["test_objective"] = float(np.mean(curve[-3:]))
            if self.conductor.report(task.record.name, row):
                heapq.heappush(running, (self.now + seconds, number, task, curve, seconds))

    def _curve(self, task: Task) -> tuple[np.ndarray, float]:
        """The trial's curve: predicted, with the residual of a random recorded run."""
        config = task.config
        x = point(configuration(config))
        seed = np.random.SeedSequence([config.seed, *np.frombuffer(task.record.name.encode(), np.uint8)])
        residuals = self.surrogate.curves.residuals
        residual = residuals[np.random.default_rng(seed).integers(len(residuals))]
        return self.surrogate.curves(x) + residual, max(0.1, float(self.surrogate.seconds(x)[0]))


def search(surrogate: Surrogate, metric: Metric, space: SearchSpace, seed: int) -> dict[str, float]:
    """One replayed search: true probe accuracy of what best.yaml would hold, of the defaults, and the virtual cost."""
    with tempfile.TemporaryDirectory() as folder:
        base = build_config({"seed": seed * 100, "max_epochs": surrogate.epochs})
        plan = make_plan(space, base, surrogate.epochs, Path(folder), metric)
        study = Study(plan.folder / "study.journal", space.parameters, plan.seed, metric.higher_is_better)
        conductor = Conductor(plan, study)
        replayed = Replay(conductor, surrogate)
        conductor.spending = Spending(space.budget, CONCURRENT, 0.0, clock=lambda: replayed.now)
        replayed.run()
        outcome = decide(conductor)
        assert outcome is not None
        candidate = outcome.candidate or outcome.best
        records = conductor.records()
        return {
            "best": surrogate.true_probe(configuration(conductor.config_of(outcome.best.record))),
            "candidate": surrogate.true_probe(configuration(conductor.config_of(candidate.record))),
            "defaults": surrogate.true_probe(configuration(plan.base)),
            "clear": float(bool(outcome.gain and outcome.gain.clear)),
            "device_seconds": sum(record.seconds for record in records),
            "trials": sum(not record.of for record in records),
        }


def random_search(surrogate: Surrogate, trials: int, sign: int, seed: int) -> dict[str, float]:
    """Random search at full length: the best of `trials` by its last evaluations, and its cost."""
    rng = np.random.default_rng(seed)
    points = rng.random((trials, len(KEYS)))
    points[:, 2] = rng.choice([0, 1 / 3, 2 / 3, 1], size=trials)
    residuals = surrogate.curves.residuals
    final = [(surrogate.curves(x) + residuals[rng.integers(len(residuals))])[-3:].mean() for x in points]
    picked = points[int(np.argmax(sign * np.array(final)))]
    cost = float(surrogate.seconds(points).clip(0.1).sum() * surrogate.epochs)
    return {"candidate": float(surrogate.probe(picked)[0]), "device_seconds": cost}


def settings(trials: int) -> Iterator[tuple[str, SearchSpace]]:
    common = {
        "parameters": PARAMETERS,
        "scheduler": {"grace_epochs": 3, "reduction_factor": 3},
        "budget": {"trials": trials},
        "confirm": {"top_k": 3, "seeds": 3},
    }
    yield "staged", build_space({**common, "order": "staged"})
    yield "staged, refine", build_space({**common, "order": "staged", "refine": True})
    yield "joint", build_space({**common, "order": "joint"})


def summarise(values: list[dict[str, float]], best: float) -> dict[str, float]:
    """Mean regret of the pick with its standard error, and the costs."""
    regrets = np.array([best - value["candidate"] for value in values])
    row = {
        "regret": float(regrets.mean()),
        "regret_se": float(regrets.std(ddof=1) / len(regrets) ** 0.5),
        "device_seconds": float(np.mean([value["device_seconds"] for value in values])),
    }
    if "defaults" in values[0]:
        row["gain_over_defaults"] = float(np.mean([value["candidate"] - value["defaults"] for value in values]))
        row["clear_share"] = float(np.mean([value["clear"] for value in values]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="cifar", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.table.read_text().splitlines()]
    rows = [row for row in rows if row["study"] == args.study]
    PARAMETERS["lr"] |= dict(zip(("low", "high"), STUDIES[args.study].lr, strict=True))

    warnings.filterwarnings("ignore", category=UserWarning)  # length scales at their bounds: a key that hardly matters
    # No power is cut here: what a search costs in virtual time does not include its journal's way to the disk.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    found: dict[str, Any] = {"configurations": len(rows), "seeds": args.seeds, "trials": args.trials, "searches": []}
    for name, (metric, scores) in SCORES.items():
        surrogate = Surrogate(rows, scores)
        if "surrogate" not in found:
            r2, rho = surrogate.held_out()
            best = surrogate.best()
            found |= {"surrogate": {"r2": r2, "spearman": rho}, "oracle": best}
            print(f"{args.study}: {len(rows)} configurations; surrogate of the probe, held out: R2 {r2:.2f}, "
                  f"rank correlation {rho:.2f}; oracle {best:.3f}", flush=True)  # fmt: skip
        for order, space in settings(args.trials):
            values = [search(surrogate, metric, space, seed) for seed in range(args.seeds)]
            row = {"objective": name, "order": order, **summarise(values, found["oracle"])}
            found["searches"].append(row)
            print(json.dumps(row), flush=True)
        values = [random_search(surrogate, args.trials, metric.sign, seed) for seed in range(args.seeds)]
        row = {"objective": name, "order": "random, full length", **summarise(values, found["oracle"])}
        found["searches"].append(row)
        print(json.dumps(row), flush=True)
    known = json.loads(args.results.read_text()) if args.results.exists() else {}
    known[args.study] = {**found, "versions": versions()}
    args.results.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
