"""The stages of whole searches of three keys, and the values with which their trials ran."""

from __future__ import annotations

from typing import Any

import optuna
from driver import learn
from studies import study_trials

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.layers import get_key
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.priority import Stage

LR = {"type": "loguniform", "low": 1e-5, "high": 1e-1}
BATCH = {"type": "choice", "values": [16, 32, 64, 128]}
TEMPERATURE = {"type": "uniform", "low": 0.05, "high": 0.5}
THREE: dict[str, Any] = {"lr": LR, "batch_size": BATCH, "temperature": TEMPERATURE}


def larger_is_better(config: TrainConfig, epoch: int) -> float:
    return learn(config, epoch) + 0.001 * config.batch_size


def stage_named(conductor: Conductor, name: str) -> Stage:
    return next(stage for stage in conductor.stages if stage.name == name)


def values_of(conductor: Conductor, name: str, key: str) -> list[Any]:
    """The values of a key with which the trials of a stage ran."""
    records = conductor.records(stage_named(conductor, name))
    return [get_key(conductor.config_of(record).to_mapping(), key) for record in records]


def told_of(conductor: Conductor, stage: str) -> list[optuna.trial.FrozenTrial]:
    """What Optuna knows of a stage."""
    return study_trials(conductor.plan.folder, stage_named(conductor, stage).study_name)
