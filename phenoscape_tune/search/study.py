"""What a search knows: an Optuna study a stage, in one append-only journal that is flushed at every report.

The journal is the one source of truth: leaderboard, rungs and resume are read from it and from nothing else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.journal import Journal, drop_torn_line
from phenoscape_tune.search.journal_check import check_trials, naming_damage
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import BATCH_SIZE, CONFIRM, JOINT, Stage
from phenoscape_tune.search.record import (
    CALLED,
    CAPPED,
    COMPLETED,
    CONSTRAINTS,
    RUNNING,
    STATE_OF,
    TrialRecord,
    read_record,
    waits,
)
from phenoscape_tune.search.sampler import StageSampler, derive_seed, distribution

# Each suggestion would print a line otherwise; the live table shows it.
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """The studies of a search's stages in one journal.

    Args:
        path: the journal's file; made where it is missing.
        parameters: ranges of all searched keys.
        seed: seed of the search.
        higher_is_better: direction of the objective.
        within: recommended parts of ranges, by key: the first points of the batch stage, or of a joint one, lie there.

    Raises UserError for a journal that is damaged; a torn last line is dropped.
    """

    def __init__(
        self,
        path: Path,
        parameters: Mapping[str, Parameter],
        seed: int,
        higher_is_better: bool = True,
        within: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        drop_torn_line(path)
        with naming_damage(
            path,
            ", so the search cannot be resumed; restore the file from a backup, or start anew with --overwrite",
        ):
            self._storage = JournalStorage(Journal(path))
            check_trials(self._storage, STATE_OF)
        self._parameters = parameters
        self._within = within or {}
        self._seed = seed
        self._direction: Literal["maximize", "minimize"] = "maximize" if higher_is_better else "minimize"
        self._ranges: dict[str, dict[str, Parameter]] = {}
        self._studies: dict[str, optuna.Study] = {}
        self._samplers: dict[str, StageSampler] = {}
        # By stage and number, the trials that have ended, or wait until `note` tells other: a long search has many.
        self._ended: dict[str, dict[int, TrialRecord | None]] = {}

    def open_stage(
        self,
        stage: Stage,
        taken_over: TrialRecord | None,
        standing: Mapping[str, Any] | None = None,
        ranges: Mapping[str, Parameter] | None = None,
        earlier: Sequence[TrialRecord] = (),
        warm: Sequence[TrialRecord] = (),
    ) -> None:
        """Open or make the study of a stage; a new one is told the last winner, which is not run again.

        Args:
            standing: values of the stage's keys with which the winner was trained: the configuration's.
            ranges: of the stage's keys, where they are narrower than the space's.
            earlier: trials of the stages before that are told too.
            warm: trials of an earlier search that are told too.
        """
        own = {key: (ranges or self._parameters)[key] for key in stage.keys}
        # The other stages look around a batch size that has been chosen.
        within = self._within if stage.name in (BATCH_SIZE, JOINT) else {}
        sampler = StageSampler(own, stage.trials, derive_seed(self._seed, stage.name), within)
        # `load_if_exists` would write to the journal of a finished search.
        if stage.study_name in optuna.get_all_study_names(self._storage):
            study = optuna.load_study(study_name=stage.study_name, storage=self._storage, sampler=sampler)
        else:
            study = optuna.create_study(
                study_name=stage.study_name, storage=self._storage, sampler=sampler, direction=self._direction
            )
        self._studies[stage.name], self._samplers[stage.name], self._ranges[stage.name] = study, sampler, own
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "name" not in trial.user_attrs:
                study.tell(trial.number, state=TrialState.FAIL)
        trials = study.get_trials(deepcopy=False)
        told = {trial.user_attrs.get("taken_over") or trial.user_attrs.get("name") for trial in trials}
        if any("name" in trial.user_attrs and not trial.user_attrs.get("warm") for trial in trials):
            return
        winners = [] if taken_over is None else [replace(taken_over, values=dict(standing or {}))]
        for record in [*winners, *earlier]:
            if record.name not in told:
                _add(study, own, record, {"taken_over": record.name})
        for record in warm:
            if record.name in told:
                continue
            attributes = {"warm": True, "name": record.name, "number": -1, "values": record.values}
            measured = {"seconds": record.seconds, "error": record.error}
            _add(study, own, record, {**attributes, "measured": measured, "status": record.status})

    def widen_stage(self, stage: Stage, widened: Mapping[str, Parameter], start: int) -> None:
        """Search wider ranges of some of a stage's keys from its trial number `start` on."""
        own = self._ranges[stage.name]
        added = {}
        for key, parameter in own.items():
            wide = widened.get(key, parameter)
            # The part of the new range that the old one lacked.
            update = {"low": parameter.high} if wide.high != parameter.high else {"high": parameter.low}
            added[key] = parameter if wide == parameter else wide.model_copy(update={**update, "default": None})
        self._ranges[stage.name] = {**own, **widened}
        self._samplers[stage.name].widen(self._ranges[stage.name], added, start, stage.trials)

    def exhausted(self, stage: Stage) -> bool:
        """Whether every value of a stage's ranges was tried, where those can be counted."""
        grids = [parameter.grid for parameter in self._ranges[stage.name].values()]
        if not grids or any(grid is None for grid in grids):
            return False
        trials = self._studies[stage.name].get_trials(deepcopy=False)
        # One that was cut off while it was asked for was not tried.
        tried = {tuple(trial.params[key] for key in stage.keys) for trial in trials
                 if {"name", "taken_over"} & set(trial.user_attrs)}  # fmt: skip
        return len(tried) >= math.prod(len(grid or []) for grid in grids)

    def ranges(self, stage: Stage) -> dict[str, Parameter]:
        """The ranges that an open stage searches now."""
        return self._ranges[stage.name]

    def ask(
        self,
        stage: Stage,
        base: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        derive: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> TrialRecord:
        """Start a trial of a stage.

        The stage's keys have the values that the sampler suggests, and those that `derive` makes of them; the others
        are as in `base`. `extra` are attributes of the trial.
        """
        study, sampler = self._studies[stage.name], self._samplers[stage.name]
        number = len(self.trials(stage))
        sampler.begin(number)
        trial = study.ask({key: distribution(parameter) for key, parameter in self._ranges[stage.name].items()})
        name = f"{stage.name}-{number:02d}-{derive_seed(self._seed, stage.study_name, number) % 16**5:05x}"
        values = {**base, **trial.params, **(derive(trial.params) if derive else {})}
        attributes = {"name": name, "number": number, "values": values, **(extra or {})}
        # The name comes last: a trial without one was cut off here, and was never started.
        for key, value in reversed(attributes.items()):
            trial.set_user_attr(key, value)
        return read_record(stage.name, self._frozen(stage.name, trial.number))

    def report(self, record: TrialRecord, row: Mapping[str, Any]) -> TrialRecord:
        """Write one epoch's evaluation; an epoch that was reported before changes nothing."""
        if row["epoch"] > len(record.curve):
            trial = self._frozen(*record.handle)
            spent = record.seconds + row.get("seconds", 0.0)
            known = {
                "seconds": spent,
                "error": row.get("objective_error"),
                "test_objective": row.get("test_objective"),
                "elapsed": row.get("elapsed"),
            }
            measured = {key: value for key, value in known.items() if value is not None}
            self._storage.set_trial_user_attr(trial._trial_id, "measured", measured)
            self._storage.set_trial_intermediate_value(trial._trial_id, row["epoch"], row["objective"])
        return self._read(record)

    def tell(self, record: TrialRecord, status: str, reason: str = "") -> TrialRecord:
        """End a trial: completed with its objective, pruned with its last evaluation; one that failed, or did not fit,
        as a violated constraint, which is no score."""
        study_name, number = record.handle
        if status in CONSTRAINTS:
            trial = optuna.trial.Trial(self._studies[study_name], self._frozen(study_name, number)._trial_id)
            trial.set_constraint(CONSTRAINTS[status], 1.0)
        self.note(record, "status", status)
        if reason:
            self.note(record, "reason", reason)
        value = record.objective if status == COMPLETED else None
        self._studies[study_name].tell(number, value, state=STATE_OF[status])
        return self._read(record)

    def pause(self, record: TrialRecord, reason: str) -> None:
        """Let a trial wait at a ceiling; it goes on by `call`, or is over by `tell`."""
        self.note(record, "reason", reason)
        self.note(record, "status", CAPPED)

    def call(self, record: TrialRecord) -> None:
        """Let a trial that waits go on, as soon as there is room for it."""
        self.note(record, "reason", "")
        self.note(record, "status", CALLED)

    def start_again(self, record: TrialRecord) -> TrialRecord:
        """Say that a trial that was called runs."""
        self.note(record, "status", RUNNING)
        return self._read(record)

    def note(self, record: TrialRecord, key: str, value: Any) -> None:
        """Attach a value to a running trial."""
        self._ended.get(record.handle[0], {}).pop(record.handle[1], None)
        # An optuna.Trial made for this would ask the sampler for values again.
        self._storage.set_trial_user_attr(self._frozen(*record.handle)._trial_id, key, value)

    def trials(self, stage: Stage) -> list[TrialRecord]:
        """The trials that a stage started, in their order."""
        return [record for record in self._records(stage) if not record.warm]

    def warm_trials(self, stage: Stage) -> list[TrialRecord]:
        """The trials of an earlier search that a stage was told."""
        return [record for record in self._records(stage) if record.warm]

    def _records(self, stage: Stage) -> list[TrialRecord]:
        if stage.name not in self._studies:
            return []
        ended, found = self._ended.setdefault(stage.name, {}), []
        for number in itertools.count():
            if number in ended:
                found.append(ended[number])
                continue
            if (trial := self._find(stage.name, number)) is None:
                return [record for record in found if record is not None]
            found.append(read_record(stage.name, trial) if "name" in trial.user_attrs else None)
            if trial.state.is_finished() or waits(trial):
                ended[number] = found[-1]
        raise AssertionError("itertools.count has no end")

    def knows(self, stage: Stage) -> bool:
        """Whether the journal has this stage already."""
        return stage.study_name in optuna.get_all_study_names(self._storage)

    def set_note(self, stage: Stage, key: str, value: Any) -> None:
        """Attach a value to an open stage."""
        self._studies[stage.name].set_user_attr(key, value)

    def get_note(self, stage: Stage, key: str) -> Any:
        """A value that was attached to an open stage; None where there is none."""
        study = self._studies.get(stage.name)
        return None if study is None else study.user_attrs.get(key)

    def _read(self, record: TrialRecord) -> TrialRecord:
        return read_record(record.stage, self._frozen(*record.handle))

    def _frozen(self, study_name: str, number: int) -> FrozenTrial:
        trial = self._find(study_name, number)
        assert trial is not None
        return trial

    def _find(self, stage: str, number: int) -> FrozenTrial | None:
        """A trial by its number in the stage's study, without a list of all; None beyond the last."""
        study_id = self._studies[stage]._study_id
        try:
            return self._storage.get_trial(self._storage.get_trial_id_from_study_id_trial_number(study_id, number))
        except KeyError:
            return None


def read_trials(path: Path) -> list[TrialRecord]:
    """All trials of a journal, of all its stages, without writing to it. Raises UserError where it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: is missing, so nothing is known of that search's trials")
    found = []
    with naming_damage(path):
        storage = JournalStorage(Journal(path))
        check_trials(storage, STATE_OF)
        studies = optuna.get_all_study_summaries(storage, include_best_trial=False)
        for summary in sorted(studies, key=lambda each: each.study_name):
            stage = summary.study_name.split("-", 1)[1]
            for trial in storage.get_all_trials(summary._study_id, deepcopy=False):
                if "name" in trial.user_attrs and not trial.user_attrs.get("warm"):
                    found.append(read_record(stage, trial))
    return found


def _add(
    study: optuna.Study, ranges: Mapping[str, Parameter], record: TrialRecord, attributes: Mapping[str, Any]
) -> None:
    """Tell a study of a trial that it did not start, where its values lie within the study's ranges."""
    own = {key: record.values[key] for key in ranges if key in record.values}
    if not own or not all(key in own and parameter.contains(own[key]) for key, parameter in ranges.items()):
        return
    study.add_trial(
        optuna.trial.create_trial(
            state=STATE_OF[record.status],
            params=own,
            distributions={key: distribution(parameter) for key, parameter in ranges.items()},
            value=record.objective if record.status == COMPLETED else None,
            intermediate_values=dict(enumerate(record.curve, start=1)),
            constraints={CONSTRAINTS[record.status]: 1.0} if record.status in CONSTRAINTS else None,
            user_attrs=dict(attributes),
        )
    )


def confirm_stage(number: int, trials: int) -> Stage:
    """The stage that repeats the best trials and the baseline with fresh seeds."""
    return Stage(number, CONFIRM, (), trials)
