"""Searches of others, in virtual time: random search, and Ray's own OptunaSearch and ASHA as they are shipped.

Ray's classes are called as Tune's controller calls them, without a cluster: a trial that ASHA stops is completed with
its last result, which OptunaSearch tells Optuna as COMPLETE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from surrogate import AVERAGED, KEYS, Surrogate


class Search(Protocol):
    """What the virtual clock runs."""

    def ask(self) -> tuple[str, np.ndarray, int, int] | None:
        """Name, point (5,), seed and first epoch of the next trial; None while or when there is none."""

    def report(self, name: str, epoch: int, value: float, seconds: float) -> bool:
        """Hear of one epoch; whether the trial goes on."""

    def pick(self) -> np.ndarray | None:
        """The configuration that would be trained if the search ended now, (5,)."""


@dataclass
class PeerSearch:
    """Random or TPE's configurations, with or without ASHA.

    Args:
        surrogate: for the ranges.
        trials: that it starts at most.
        higher_is_better: direction of the objective.
        seed: of this search.
        tpe: Ray's OptunaSearch with Optuna's default sampler, instead of random configurations.
        asha: arguments of Ray's ASHAScheduler; None lets every trial run to its end.
    """

    surrogate: Surrogate
    trials: int
    higher_is_better: bool
    seed: int
    tpe: bool = False
    asha: dict[str, Any] | None = None
    points: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        mode = "max" if self.higher_is_better else "min"
        self.searcher: Any = None
        self._scheduler: Any = None
        if self.tpe:
            from ray.tune.search.optuna import OptunaSearch

            self.searcher = OptunaSearch(self._space(), metric="objective", mode=mode, seed=self.seed)
        if self.asha is not None:
            from ray.tune.schedulers import ASHAScheduler

            self._scheduler = ASHAScheduler("epoch", "objective", mode, max_t=self.surrogate.epochs, **self.asha)

    def _space(self) -> dict[str, Any]:
        from ray import tune

        kinds = {"loguniform": tune.loguniform, "uniform": tune.uniform}
        ranges = self.surrogate.parameters.items()
        spec = {
            key: tune.choice(own["values"]) if "values" in own else kinds[own["type"]](own["low"], own["high"])
            for key, own in ranges
        }
        # As Tune's own conversion does it, of a plain dictionary with dots in its keys.
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch.convert_search_space(spec)

    def ask(self) -> tuple[str, np.ndarray, int, int] | None:
        if len(self.points) >= self.trials:
            return None
        name = f"{len(self.points):05d}"
        if self.searcher is not None:
            values = self.searcher.suggest(name)
            point = self.surrogate.point({key: values[key] for key in KEYS})
        else:
            point = self.surrogate.random_points(1, self._rng)[0]
        self.points[name], self.curves[name] = point, []
        if self._scheduler is not None:
            self._scheduler.on_trial_add(None, SimpleNamespace(trial_id=name))
        return name, point, self.seed, 1

    def report(self, name: str, epoch: int, value: float, seconds: float) -> bool:
        self.curves[name].append(value)
        result = {"epoch": epoch, "training_iteration": epoch, "objective": value}
        if self._scheduler is None:
            goes_on = epoch < self.surrogate.epochs
        else:
            goes_on = self._scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), result) == "CONTINUE"
        if self.searcher is not None:
            if goes_on:
                self.searcher.on_trial_result(name, result)
            else:
                self.searcher.on_trial_complete(name, result)
        return goes_on

    def pick(self) -> np.ndarray | None:
        """The best by the last value, as Ray's `get_best_result` has it; without ASHA by the mean of the last three."""
        sign = 1 if self.higher_is_better else -1
        last = 1 if self._scheduler is not None else AVERAGED
        whole = self.surrogate.epochs
        scored = {
            name: sign * float(np.mean(curve[-last:]))
            for name, curve in self.curves.items()
            if curve and (self._scheduler is not None or len(curve) == whole)
        }
        best = max(scored, key=lambda name: scored[name], default=None)
        return None if best is None or not math.isfinite(scored[best]) else self.points[best]
