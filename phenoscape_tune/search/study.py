"""What a search knows: an Optuna study a stage, in one append-only journal that is flushed at every report.

The journal is the one source of truth: leaderboard, rungs and resume are read from it and from nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.search.priority import CONFIRM, Stage
from phenoscape_tune.search.sampler import StageSampler, derive_seed, distribution
from phenoscape_tune.search.space import Parameter

COMPLETED, PRUNED, FAILED, INFEASIBLE, RUNNING = "completed", "pruned", "failed", "infeasible", "running"

_STATE_OF = {
    COMPLETED: TrialState.COMPLETE,
    PRUNED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
    INFEASIBLE: TrialState.FAIL,
}

log = logging.getLogger(__name__)

# Each suggestion would print a line otherwise; the live table shows it.
optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the journal has it.

    Attributes:
        name: `<stage>-<nn>-<id>`, also its folder's name.
        values: what it was given, by configuration key: the searched values so far, of this stage and those before.
        curve: one evaluation of the objective an epoch.
        error: standard error of the last evaluation.
        of, seed: in the confirmation, the trial that is repeated, and the fresh seed.
    """

    name: str
    stage: str
    number: int
    values: dict[str, Any]
    status: str
    curve: tuple[float, ...] = ()
    error: float | None = None
    seconds: float = 0.0
    gpus: float = 0.0
    reason: str = ""
    of: str | None = None
    seed: int | None = None
    test_objective: float | None = None
    handle: tuple[str, int] = field(default=("", 0), repr=False, compare=False)

    @property
    def objective(self) -> float | None:
        """Mean of the last three evaluations; None before the first."""
        return trial_objective(self.curve) if self.curve else None

    @property
    def ended(self) -> bool:
        return self.status != RUNNING


class Study:
    """The studies of a search's stages in one journal.

    Args:
        path: the journal's file; made where it is missing.
        parameters: ranges of all searched keys.
        seed: seed of the search.

    Raises UserError for a journal that is damaged; a torn last line is dropped.
    """

    def __init__(self, path: Path, parameters: Mapping[str, Parameter], seed: int) -> None:
        _drop_torn_line(path)
        try:
            self._storage = JournalStorage(JournalFileBackend(str(path), lock_obj=_JournalLock(path)))  # type: ignore[arg-type]
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path}: a line of it is damaged ({type(error).__name__}: {error}), so the search cannot be resumed; "
                "restore the file from a backup, or start anew with --overwrite"
            ) from error
        self._parameters = parameters
        self._seed = seed
        self._studies: dict[str, optuna.Study] = {}
        self._samplers: dict[str, StageSampler] = {}

    def open_stage(
        self, stage: Stage, taken_over: TrialRecord | None, standing: Mapping[str, Any] | None = None
    ) -> None:
        """Open or make the study of a stage; a new one is told the last winner, which is not run again.

        `standing` are the values of the stage's keys with which the winner was trained: the configuration's.
        """
        ranges = {key: self._parameters[key] for key in stage.keys}
        sampler = StageSampler(ranges, stage.trials, derive_seed(self._seed, stage.name))
        # `load_if_exists` would write to the journal of a finished search.
        if stage.study_name in optuna.get_all_study_names(self._storage):
            study = optuna.load_study(study_name=stage.study_name, storage=self._storage, sampler=sampler)
        else:
            study = optuna.create_study(
                study_name=stage.study_name, storage=self._storage, sampler=sampler, direction="maximize"
            )
        self._studies[stage.name], self._samplers[stage.name] = study, sampler
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "name" not in trial.user_attrs:
                study.tell(trial.number, state=TrialState.FAIL)
        own = {key: (standing or {})[key] for key in stage.keys if key in (standing or {})}
        fits = bool(own) and all(key in own and ranges[key].contains(own[key]) for key in stage.keys)
        if taken_over is not None and fits and not study.get_trials(deepcopy=False):
            study.add_trial(
                optuna.trial.create_trial(
                    params=own,
                    distributions={key: distribution(parameter) for key, parameter in ranges.items()},
                    value=taken_over.objective,
                    intermediate_values=dict(enumerate(taken_over.curve, start=1)),
                    user_attrs={"taken_over": taken_over.name},
                )
            )

    def ask(self, stage: Stage, base: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> TrialRecord:
        """Start a trial of a stage: the stage's keys as the sampler suggests them, the others as in `base`."""
        study, sampler = self._studies[stage.name], self._samplers[stage.name]
        number = len(self.trials(stage))
        sampler.begin(number)
        trial = study.ask({key: distribution(self._parameters[key]) for key in stage.keys})
        name = f"{stage.name}-{number:02d}-{derive_seed(self._seed, stage.study_name, number) % 16**5:05x}"
        values = {**base, **trial.params}
        attributes = {"name": name, "number": number, "values": values, **(extra or {})}
        # The name comes last: a trial without one was cut off here, and was never started.
        for key, value in reversed(attributes.items()):
            trial.set_user_attr(key, value)
        return _record(stage.name, self._frozen(stage.name, trial.number))

    def report(self, record: TrialRecord, row: Mapping[str, Any]) -> TrialRecord:
        """Write one epoch's evaluation; an epoch that was reported before changes nothing."""
        if row["epoch"] > len(record.curve):
            trial = self._frozen(*record.handle)
            spent = record.seconds + row.get("seconds", 0.0)
            known = {"seconds": spent, "error": row.get("objective_error"), "test_objective": row.get("test_objective")}
            measured = {key: value for key, value in known.items() if value is not None}
            self._storage.set_trial_user_attr(trial._trial_id, "measured", measured)
            self._storage.set_trial_intermediate_value(trial._trial_id, row["epoch"], row["objective"])
        return self._read(record)

    def tell(self, record: TrialRecord, status: str, reason: str = "") -> TrialRecord:
        """End a trial: completed with its objective, pruned with its last evaluation, failed with none."""
        study_name, number = record.handle
        self.note(record, "status", status)
        self.note(record, "reason", reason)
        value = record.objective if status == COMPLETED else None
        self._studies[study_name].tell(number, value, state=_STATE_OF[status])
        return self._read(record)

    def note(self, record: TrialRecord, key: str, value: Any) -> None:
        """Attach a value to a running trial."""
        # An optuna.Trial made for this would ask the sampler for values again.
        self._storage.set_trial_user_attr(self._frozen(*record.handle)._trial_id, key, value)

    def trials(self, stage: Stage) -> list[TrialRecord]:
        """The trials that a stage started, in their order."""
        study = self._studies.get(stage.name)
        if study is None:
            return []
        return [
            _record(stage.name, trial)
            for trial in study.get_trials(deepcopy=False)
            if "taken_over" not in trial.user_attrs and "name" in trial.user_attrs
        ]

    def _read(self, record: TrialRecord) -> TrialRecord:
        return _record(record.stage, self._frozen(*record.handle))

    def _frozen(self, study_name: str, number: int) -> FrozenTrial:
        return self._studies[study_name].get_trials(deepcopy=False)[number]


def _record(stage: str, trial: FrozenTrial) -> TrialRecord:
    attributes = trial.user_attrs
    measured = attributes.get("measured", {})
    curve = tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))
    return TrialRecord(
        name=attributes["name"],
        stage=stage,
        number=attributes["number"],
        values=dict(attributes["values"]),
        status=attributes.get("status", RUNNING) if trial.state.is_finished() else RUNNING,
        curve=curve,
        error=measured.get("error"),
        seconds=measured.get("seconds", 0.0),
        gpus=attributes.get("gpus", 0.0),
        reason=attributes.get("reason", ""),
        of=attributes.get("of"),
        seed=attributes.get("seed"),
        test_objective=measured.get("test_objective"),
        handle=(stage, trial.number),
    )


class _JournalLock:
    """Lock of the journal that the system gives back when its holder dies.

    Optuna's own is a link that a killed process leaves behind, and which holds up the next one for 30 s.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end (full disk, power cut): the next would fuse with it."""
    if not path.exists():
        return
    with FileLock(f"{path}.lock"), path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.warning("%s: dropped a torn last line of %d bytes", path, len(content) - whole)
            file.truncate(whole)


def confirm_stage(number: int, trials: int) -> Stage:
    """The stage that repeats the best trials and the baseline with fresh seeds."""
    return Stage(number, CONFIRM, (), trials)
