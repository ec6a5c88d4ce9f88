"""Which values a stage tries: stratified first points, then TPE, both following from (seed, stage, number)."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from phenoscape_tune.search.space import Parameter


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
    value = low + step * math.floor(share * (math.floor((high - low) / step + 1e-9) + 1))
    return int(value) if parameter.type == "int" else value


class StageSampler(optuna.samplers.BaseSampler):
    """Optuna sampler of one stage.

    Args:
        parameters: the stage's searched ranges.
        trials: how many the stage starts; about half of them, at least three, are stratified first points.
        seed: seed of the stage. Each suggestion has its own stream from (seed, number of the trial), so that a
            resumed search suggests what an unbroken one would.
    """

    def __init__(self, parameters: dict[str, Parameter], trials: int, seed: int) -> None:
        self._seed = seed
        first = min(trials, max(3, math.ceil(trials / 2)))
        self._first = spread_points(parameters, first, seed) if parameters else []
        if self._first:
            # What the space's author thinks best is tried first.
            self._first[0] |= {key: p.default for key, p in parameters.items() if p.default is not None}
        self.begin(0)

    def begin(self, number: int) -> None:
        """Say which of the stage's own trials is asked for next (the study also holds the one taken over)."""
        self._number = number
        # One trial to learn from is enough; without any TPE draws at random.
        self._tpe = optuna.samplers.TPESampler(seed=derive_seed(self._seed, number), n_startup_trials=1)

    @property
    def _spreads(self) -> bool:
        return self._number < len(self._first)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {} if self._spreads else self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {} if self._spreads else self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if self._spreads:
            return self._first[self._number][param_name]
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)
