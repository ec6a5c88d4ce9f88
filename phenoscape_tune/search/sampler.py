"""Which values a stage tries: stratified first points, then TPE, both following from (seed, stage, number)."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.record import waits

MOST_POINTS = 4096  # of a stage whose values are counted, so that none is tried twice


def distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution of a range."""
    if parameter.type == "choice":
        return CategoricalDistribution(parameter.values or [])
    assert parameter.low is not None and parameter.high is not None
    if parameter.type in ("int", "logint"):
        step = int(parameter.step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.type == "logint", step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.type == "loguniform", step=parameter.step)


def derive_seed(*parts: object) -> int:
    """A 32-bit seed that follows from its parts and nothing else."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def spread_points(parameters: dict[str, Parameter], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` points that cover every parameter's range evenly: a Latin hypercube (McKay et al. 1979).

    A stage is too short for TPE's ten random start-up trials, which may all fall into one corner.
    """
    unit = qmc.LatinHypercube(len(parameters), rng=np.random.default_rng(seed)).random(count)  # (count, keys) in [0, 1)
    points = []
    for row in unit:
        points.append(
            {key: _at(parameter, float(x)) for (key, parameter), x in zip(parameters.items(), row, strict=True)}
        )
    return points


def _at(parameter: Parameter, share: float) -> Any:
    """The value at a share in [0, 1) of a range."""
    if parameter.type == "choice":
        assert parameter.values is not None
        return parameter.values[int(share * len(parameter.values))]
    assert parameter.low is not None and parameter.high is not None
    low, high = parameter.low, parameter.high
    if parameter.type == "loguniform":
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    if parameter.type == "logint":
        # Half a step beyond both ends, so that the ends are as likely as the rest.
        whole = round(math.exp(math.log(low - 0.5) + share * (math.log(high + 0.4999) - math.log(low - 0.5))))
        return int(min(max(whole, low), high))
    step = parameter.step or (1.0 if parameter.type == "int" else None)
    if step is None:
        return low + share * (high - low)
    value = parameter.at_step(math.floor(share * (math.floor((high - low) / step + 1e-9) + 1)))
    return int(value) if parameter.type == "int" else value


def start_within(
    points: list[dict[str, Any]], parameters: Mapping[str, Parameter], within: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    """The points in another order: those whose values lie in a recommended part of the range come first.

    Where none does, though the range has such values, the first point takes one. What the space's author names as
    `default` is left to stand.

    Args:
        within: smallest and largest recommended value of some of the keys, which are numbers.
    """
    for key, (low, high) in within.items():
        if key not in parameters or not points:
            continue
        parameter = parameters[key]
        points = sorted(points, key=lambda point: not low <= point[key] <= high)  # stable
        if low <= points[0][key] <= high or parameter.default is not None:
            continue
        if inside := _values_between(parameter, low, high):
            points = [{**points[0], key: inside[len(inside) // 2]}, *points[1:]]
    return points


def _values_between(parameter: Parameter, low: float, high: float) -> list[float]:
    """The values of a range that lie between two; where they cannot be counted, one of them."""
    if parameter.grid is not None:
        return [value for value in parameter.grid if isinstance(value, int | float) and low <= value <= high]
    return [value for value in (round(math.sqrt(low * high)), low, high) if parameter.contains(value)][:1]


class StageSampler(optuna.samplers.BaseSampler):
    """Optuna sampler of one stage.

    Args:
        parameters: the stage's searched ranges.
        trials: how many the stage starts; about half of them, at least three, are stratified first points.
        seed: seed of the stage. Each suggestion has its own stream from (seed, number of the trial), so that a
            resumed search suggests what an unbroken one would.
        within: recommended parts of ranges, by key: the first points lie there as far as they can.

    Where the ranges hold few values, no point is suggested twice before all were.
    """

    def __init__(
        self,
        parameters: dict[str, Parameter],
        trials: int,
        seed: int,
        within: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self._seed = seed
        self._parameters = parameters
        first = min(trials, max(3, math.ceil(trials / 2)))
        points = start_within(spread_points(parameters, first, seed), parameters, within or {}) if parameters else []
        self._first = dict(enumerate(points))
        if self._first:
            # What the space's author thinks best is tried first.
            self._first[0] |= {key: p.default for key, p in parameters.items() if p.default is not None}
        self.begin(0)

    def widen(self, parameters: dict[str, Parameter], added: dict[str, Parameter], start: int, trials: int) -> None:
        """From trial `start` on search wider `parameters`; the first half of what is left lies in the part `added`."""
        self._parameters = parameters
        points = spread_points(added, math.ceil((trials - start) / 2), derive_seed(self._seed, "widened"))
        self._first = {number: point for number, point in self._first.items() if number < start}
        self._first |= dict(enumerate(points, start=start))

    def begin(self, number: int) -> None:
        """Say which of the stage's own trials is asked for next (the study also holds the one taken over)."""
        self._number = number
        # One trial to learn from is enough.
        self._tpe = optuna.samplers.TPESampler(seed=derive_seed(self._seed, number), n_startup_trials=1)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {key: distribution(parameter) for key, parameter in self._parameters.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not self._parameters:  # the baseline and the confirmation vary nothing
            return {}
        # A copy: Optuna checks its types, and the stratified points are kept.
        point = dict(self._first.get(self._number) or self._by_tpe(study, trial, search_space))
        for key, parameter in self._parameters.items():
            if parameter.step is not None and parameter.low is not None and parameter.type == "uniform":
                point[key] = parameter.at_step(round((point[key] - parameter.low) / parameter.step))
        counted = all(parameter.grid is not None for parameter in self._parameters.values())
        if not counted and self._number not in self._first:
            return point  # of a range that cannot be counted TPE does not draw a value twice
        # A failed one was cut off while it was asked for, and never started.
        others = (other for other in study.get_trials(deepcopy=False) if other.number != trial.number)
        tried = [other.params for other in others if other.state != TrialState.FAIL]
        if point in tried and self._number in self._first:  # by an earlier search, or the winner before the stage
            point = dict(self._by_tpe(study, trial, search_space))
        return self._untried(point, tried) if point in tried else point

    def _by_tpe(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """TPE's point; where no trial has ended yet, any."""
        found = self._tpe.sample_relative(*_with_waiting_stopped(study, trial), search_space)
        return found or spread_points(self._parameters, 1, derive_seed(self._seed, self._number))[0]

    def _untried(self, point: dict[str, Any], tried: list[dict[str, Any]]) -> dict[str, Any]:
        """The point, or where all values can be counted one that no trial had."""
        grids = [parameter.grid for parameter in self._parameters.values()]
        if any(grid is None for grid in grids) or math.prod(len(grid or []) for grid in grids) > MOST_POINTS:
            return point
        points = [dict(zip(self._parameters, values, strict=True)) for values in itertools.product(*grids)]  # type: ignore[arg-type]
        free = [other for other in points if other not in tried]
        return free[derive_seed(self._seed, self._number, "untried") % len(free)] if free else point

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def _with_waiting_stopped(study: optuna.Study, trial: FrozenTrial) -> tuple[optuna.Study, FrozenTrial]:
    """The study and its trial; where some wait at a ceiling, in a copy in memory that has these as stopped.

    TPE keeps away from what is running, and those that wait are rather the good ones.
    """
    trials = study.get_trials(deepcopy=False)
    if not any(map(waits, trials)):
        return study, trial
    copy = optuna.create_study(direction=study.direction)
    for each in trials:
        copy.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if waits(each) else each.state,
                value=each.value,
                params=each.params,
                distributions=each.distributions,
                system_attrs=each.system_attrs,
                intermediate_values=each.intermediate_values,
            )
        )
    return copy, copy.get_trials(deepcopy=False)[trial.number]
