"""One trial of a search, in the process of a Ray actor: its task becomes a run, and each epoch is reported to Tune."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from ray import tune

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.parts import Parts, data_key, open_parts
from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.files import naming_full_disk
from phenoscape_tune.search.record import FAILED, INFEASIBLE

# Keys of a trial's last words: how it ended, and whether its process is not to be used again.
ENDED, DIES = "ended", "process_dies"
FULL_DISK = "full disk"  # not an end of the trial, but of the search, which can be resumed
NOTE = "note"  # key, in a report, of a line for the user


# Read before an actor takes its next trial. A Ray that the caller started does not hand on what `start_ray` sets; with
# Ray's own 2 s a trial that closes slowly after an early stop would lose its slot for good.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "120")

# Of this process: finding and checking 100,000 files again would take seconds a trial.
_opened: dict[tuple[object, ...], Parts] = {}


def _images(config: TrainConfig) -> Parts:
    """The images of a search, opened once a process; they do not change while it runs."""
    key = data_key(config)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_parts(config)
    return _opened[key]


class Deadline:
    """Ends this process, whatever it is at, where a trial does not report for `seconds`.

    The interpreter's own watchdog does it, which needs no lock of the interpreter: code that hangs may hold that. Where
    each thread was goes to the end of `log`.
    """

    UNWIND = 90.0  # seconds that a stopped trial may take to close its files; below Tune's own patience

    def __init__(self, log: Path, seconds: float) -> None:
        self._log = log
        self._seconds = seconds

    def __enter__(self) -> Deadline:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._log.open("a")
        self._watch(self._seconds)
        return self

    def _watch(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._file)

    def report(self, row: dict[str, Any]) -> None:
        """Report to Tune; how long that takes is not the trial's."""
        faulthandler.cancel_dump_traceback_later()
        try:
            tune.report(row)
        except BaseException:
            self._watch(min(self.UNWIND, self._seconds))
            raise
        self._watch(self._seconds)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()


def run_trial(task: dict[str, Any]) -> None:
    """Train one trial and report each epoch to Tune; runs in a Ray actor."""
    import torch

    torch.set_num_threads(task["threads"])
    config = build_config(task["config"], task["name"])
    log = Path(config.out_dir) / "logs" / "training.log"
    try:
        with naming_full_disk(Path(config.out_dir)), Deadline(log, task["report_timeout"]) as deadline:
            _train(task, config, deadline.report)
    except NoSpaceLeft as error:
        tune.report({ENDED: FULL_DISK, "reason": str(error)})


def _train(task: dict[str, Any], config: TrainConfig, report: Callable[[dict[str, Any]], None]) -> None:
    """Train, and say why where that cannot go on to its end.

    Raises NoSpaceLeft where the disk is full, RankDied where a process of the trial's is gone.
    """
    from phenoscape_tune.training.board import TrialRow
    from phenoscape_tune.training.launch import launch
    from phenoscape_tune.training.memory import OutOfMemory
    from phenoscape_tune.training.rank_group import RankDied
    from phenoscape_tune.training.run import Diverged, RunOptions
    from phenoscape_tune.training.uploads import find_last

    notes: list[str] = []

    def report_with_note(row: dict[str, Any]) -> None:
        report({**row, NOTE: notes.pop()} if notes else row)

    try:
        resume, note = find_last(config, task["reported_epochs"]) if task["resume"] else (None, None)
        notes += [note] if note else []
        options = RunOptions(
            resume=resume,
            reported_epochs=task["reported_epochs"],
            test=task["test"],
            trial=TrialRow(task["title"], task["stage"], task["hparams"]),
            metric=task["metric"],
            reference_seed=task["reference_seed"],
            notes=tuple(notes),
        )
        launch(config, report_with_note, options, _images(config))
    except (NoSpaceLeft, RankDied):
        raise
    except (Diverged, UserError) as error:
        report({ENDED: FAILED, "reason": str(error)})
    except OutOfMemory as error:
        report({ENDED: INFEASIBLE, "reason": str(error), DIES: True})
        raise  # what is left in this process's memory must not fail the next trial
    except Exception as error:
        # The process may be in any state: raised, the error makes Ray end it and start a fresh one.
        first_line = (str(error).splitlines() or [""])[0]
        report({ENDED: FAILED, "reason": f"{type(error).__name__}: {first_line}"[:300], DIES: True})
        raise
