"""A trial of a search: what the journal tells of it, and how its end stands there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from phenoscape_tune.evaluate.objective import trial_objective

COMPLETED, PRUNED, FAILED, INFEASIBLE, RUNNING = "completed", "pruned", "failed", "infeasible", "running"
CAPPED = "capped"  # at the stage's ceiling (ceiling.py): it waits there, and when the stage ends, is over

STATE_OF = {
    COMPLETED: TrialState.COMPLETE,
    PRUNED: TrialState.PRUNED,
    CAPPED: TrialState.PRUNED,
    # The samplers pass over failed trials; of a pruned one with a violated constraint they learn where not to go.
    FAILED: TrialState.PRUNED,
    INFEASIBLE: TrialState.PRUNED,
}
SCORED = (COMPLETED, CAPPED, PRUNED)  # ends after which the last values are scores
CALLED = "called"  # status of one that waited, and goes on as soon as there is room
FAILURES = "failures"  # note of a trial: times that its process died
CONSTRAINTS = {FAILED: "training", INFEASIBLE: "memory"}  # names of what a trial violated


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the journal has it.

    Attributes:
        name: `<stage>-<nn>-<id>`, also its folder's name.
        values: what it was given, by configuration key: the searched values so far, of this stage and those before.
        curve: one evaluation of the objective an epoch.
        error: standard error of the last evaluation.
        of, seed: in the confirmation, the trial that is repeated, and the fresh seed.
        elapsed: seconds of the search's own time at the last report.
        warm: it comes from an earlier search, and was not run by this one.
        failures: times that its process died.
        waiting: it waits at the ceiling of a stage that is running, and may still go on.
        called: it waited, and goes on as soon as there is room.
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
    elapsed: float = 0.0
    warm: bool = False
    failures: int = 0
    waiting: bool = False
    called: bool = False
    handle: tuple[str, int] = field(default=("", 0), repr=False, compare=False)

    @cached_property
    def objective(self) -> float | None:
        """Mean of the last three evaluations; None before the first."""
        return trial_objective(self.curve) if self.curve else None

    @property
    def ended(self) -> bool:
        return self.status != RUNNING


def waits(trial: FrozenTrial) -> bool:
    """Whether a trial, as Optuna has it, waits at a ceiling."""
    return not trial.state.is_finished() and trial.user_attrs.get("status") == CAPPED


def read_record(stage: str, trial: FrozenTrial) -> TrialRecord:
    """A trial of a stage as Optuna has it."""
    attributes = trial.user_attrs
    measured = attributes.get("measured", {})
    curve = tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))
    waiting = waits(trial)
    return TrialRecord(
        name=attributes["name"],
        stage=stage,
        number=attributes["number"],
        values=dict(attributes["values"]),
        status=attributes.get("status", RUNNING) if trial.state.is_finished() or waiting else RUNNING,
        curve=curve,
        error=measured.get("error"),
        seconds=measured.get("seconds", 0.0),
        gpus=attributes.get("gpus", 0.0),
        reason=attributes.get("reason", ""),
        of=attributes.get("of"),
        seed=attributes.get("seed"),
        test_objective=measured.get("test_objective"),
        elapsed=measured.get("elapsed", 0.0),
        warm=attributes.get("warm", False),
        failures=attributes.get(FAILURES, 0),
        waiting=waiting,
        called=not trial.state.is_finished() and attributes.get("status") == CALLED,
        handle=(stage, trial.number),
    )
