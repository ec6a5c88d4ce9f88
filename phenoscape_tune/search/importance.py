"""Which searched keys mattered: the share of the differences between trials that each explains (fANOVA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from phenoscape_tune.search.axes import axis_for
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.marks import searched_values, tell_reach
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import CONFIRM, Stage
from phenoscape_tune.search.record import TrialRecord

FEWEST_TRIALS = 10  # completed ones, below which a random forest tells noise
FEW_TRIALS = 30


@dataclass(frozen=True)
class Importance:
    """Importances within one group of trials.

    Attributes:
        title: of the group.
        trials: those that it is made of.
        shares: for each key; they add up to 1. Empty where nothing can be told.
        remark: why nothing can be told, or how far the shares can be trusted.
    """

    title: str
    trials: int
    shares: dict[str, float] = field(default_factory=dict)
    remark: str = ""


def importances(conductor: Conductor) -> list[Importance]:
    """Importances of each stage that varied several keys; where that tells nothing, over all trials of the search.

    By Optuna's fANOVA (Hutter et al., ICML 2014) on the trials that are compared, those of an earlier search included.
    """
    found = []
    for stage in conductor.stages:
        if stage.name != CONFIRM and len(stage.keys) > 1 and conductor.records(stage):
            records = [*conductor.study.warm_trials(stage), *conductor.records(stage)]
            ranges, title = conductor.study.ranges(stage), f"Stage {stage.number}: {stage.name}"
            found.append(_evaluate(conductor, title, stage.keys, ranges, records, stage))
    keys = sorted(conductor.plan.space.parameters)
    if any(each.shares for each in found) or len(keys) < 2 or conductor.plan.space.order == "joint":
        return found
    records = [record for record in conductor.records() if not record.of]
    together = _evaluate(conductor, "All stages together", keys, conductor.ranges, records)
    note = "each setting was varied while most of the others stood still, so how they act together is not known"
    remark = "; ".join(part for part in (together.remark, note) if part) if together.shares else together.remark
    return [*found, Importance(together.title, together.trials, together.shares, remark)]


def _evaluate(
    conductor: Conductor,
    title: str,
    keys: Sequence[str],
    ranges: Mapping[str, Parameter],
    records: Sequence[TrialRecord],
    stage: Stage | None = None,
) -> Importance:
    ended = conductor.comparable(records, stage)
    objectives = [conductor.score(record, stage) for record in ended]
    count = len(ended)
    if count < FEWEST_TRIALS:
        told = f"{count} trial{'' if count == 1 else 's'} {tell_reach(conductor)}, and it takes {FEWEST_TRIALS}"
        return Importance(title, count, remark=told)
    if len(set(objectives)) == 1:
        return Importance(title, count, remark="all trials have the same objective")
    rows = [searched_values(conductor, record) for record in ended]
    places, known = {}, {}
    for key in keys:
        places[key], known[key] = _column(key, ranges[key], [row[key] for row in rows])
    study = optuna.create_study()
    for index, objective in enumerate(objectives):
        values = {key: places[key][index] for key in keys}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=known, value=objective))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=conductor.plan.seed)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(keys))
    remark = "" if count >= FEW_TRIALS else "that is few: take it as a hint, not as a measurement"
    return Importance(title, count, {key: float(share) for key, share in shares.items()}, remark)


def _column(key: str, parameter: Parameter, values: Sequence[object]) -> tuple[list[float], BaseDistribution]:
    """A key's values and range as the forest sees them.

    fANOVA weighs all of an axis evenly, so a logarithmic range has to be given as logarithms. The range reaches as far
    as the values do: the defaults may lie outside of what was searched.
    """
    axis = axis_for(key, parameter, values)
    column = axis.dimension(values)["values"]
    if axis.choices is not None:
        return column, CategoricalDistribution([float(index) for index in range(len(axis.choices))])
    low, high = axis.span
    return column, FloatDistribution(axis.scale(low), axis.scale(high))
