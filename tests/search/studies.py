"""Studies of a search of three keys, and what their journal holds as Optuna itself reads it."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from phenoscape_tune.search.journal import JournalLock
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.study import Study

PARAMETERS = {
    "lr": Parameter(type="loguniform", low=1e-5, high=1e-1),
    "batch_size": Parameter(type="choice", values=[16, 32, 64]),
    "temperature": Parameter(type="uniform", low=0.05, high=0.5),
}


LR = Stage(1, "lr", ("lr",), 6)


BATCH = Stage(2, "batch_size", ("batch_size",), 4)


def open_study(folder: Path, stage: Stage = LR, taken_over: TrialRecord | None = None, seed: int = 0) -> Study:
    study = Study(folder / "study.journal", PARAMETERS, seed)
    study.open_stage(stage, taken_over, taken_over.values if taken_over else None)
    return study


def storage(folder: Path) -> JournalStorage:
    """The journal as Optuna itself opens it; under our lock, as its own would wait 30 s for ours to go."""
    journal = folder / "study.journal"
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))  # type: ignore[arg-type]


def study_trials(folder: Path, study_name: str) -> list[FrozenTrial]:
    """What the journal of a folder holds of a study, as Optuna itself reads it."""
    return optuna.load_study(study_name=study_name, storage=storage(folder)).get_trials()


def stored(folder: Path, stage: Stage = LR) -> list[FrozenTrial]:
    return study_trials(folder, stage.study_name)


def report_all(study: Study, record: TrialRecord, values: list[float]) -> TrialRecord:
    for epoch, value in enumerate(values, start=len(record.curve) + 1):
        record = study.report(record, {"epoch": epoch, "objective": value, "objective_error": 0.01, "seconds": 2.0})
    return record


def snapshot(folder: Path) -> list[TrialRecord]:
    return open_study(folder).trials(LR)
