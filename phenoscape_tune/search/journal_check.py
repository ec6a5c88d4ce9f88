"""Whether a journal says what a search writes: a stranger's file, or a damaged one, is refused where it is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial

from phenoscape_tune.errors import UserError


@contextmanager
def naming_damage(path: Path, remedy: str = "") -> Iterator[None]:
    """Whatever reading a damaged journal raises (nearly anything) as a UserError that names the file."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: a line of it is damaged ({type(error).__name__}: {told}){remedy}") from error


def check_trials(storage: JournalStorage, states: Mapping[str, Any]) -> None:
    """Raise ValueError where a trial of a journal is not as a search writes it.

    Args:
        states: Optuna's state of a trial that ended, by the status that the search gave it.
    """
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        number, _, stage = summary.study_name.partition("-")
        _require(number.isdecimal() and bool(stage), f"study {summary.study_name!r}")
        for trial in storage.get_all_trials(summary._study_id, deepcopy=False):
            _check(trial, f"trial {trial.number} of {summary.study_name}", states)


def _check(trial: FrozenTrial, where: str, states: Mapping[str, Any]) -> None:
    trial._validate()  # values within the ranges that they were drawn from
    for step, value in trial.intermediate_values.items():
        _require(isinstance(step, int) and step >= 1 and _is_number(value), f"{where}: epoch {step!r}")
    _require(trial.values is None or (len(trial.values) == 1 and _is_number(trial.values[0])), f"{where}: its value")
    _check_samplers(trial.system_attrs, where)
    attributes = trial.user_attrs
    _require(_is_text(attributes.get("taken_over", "")), f"{where}: taken_over")
    if "name" not in attributes:  # a winner taken over, or one that was cut off while it was asked for
        return
    for key, sound in _ATTRIBUTES.items():
        if key in attributes or key in _NEEDED:
            _require(sound(attributes.get(key)), f"{where}: {key}: {attributes.get(key)!r}")
    if trial.state.is_finished():
        status = attributes.get("status")
        _require(isinstance(status, str) and states.get(status) == trial.state, f"{where}: status: {status!r}")


def _check_samplers(attributes: Mapping[str, Any], where: str) -> None:
    """What Optuna noted of a trial: constraints that it violated, and in parts the values that TPE drew for it."""
    drawn = []
    for key, value in attributes.items():
        if key.startswith("constraints:"):
            _require(_is_number(value), f"{where}: {key}")
        elif key.startswith("tpe:relative_params"):
            _require(_is_text(value), f"{where}: {key}")
            drawn.append(value)
    if drawn:
        _require(isinstance(json.loads("".join(drawn)), dict), f"{where}: tpe:relative_params")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_measured(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_number(each) or (each is None and key in ("error", "test_objective")) for key, each in value.items()
    )


def _is_values(value: Any) -> bool:
    return isinstance(value, dict) and all(
        each is None or isinstance(each, bool | int | float | str | list) for each in value.values()
    )


_ATTRIBUTES: dict[str, Callable[[Any], bool]] = {
    # It is also the name of a folder below `trials`.
    "name": lambda value: _is_text(value) and value not in ("", ".", "..") and not {"/", "\0"} & set(value),
    "number": _is_whole,
    "values": _is_values,
    "status": _is_text,
    "reason": _is_text,
    "measured": _is_measured,
    "gpus": _is_number,
    "of": lambda value: value is None or _is_text(value),
    "seed": lambda value: value is None or _is_whole(value),
    "warm": lambda value: isinstance(value, bool),
    "failures": _is_whole,
}
_NEEDED = {"name", "number", "values"}


def _require(sound: bool, what: str) -> None:
    if not sound:
        raise ValueError(f"{what} is not what a search writes")
