"""Runs a search's tasks as Ray Tune trials: one Tuner for all stages, on actors that are reused.

The conductor decides; Tune starts, stops and watches the trials. Tune's own snapshot is never read.
"""

from __future__ import annotations

import logging
import math
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phenoscape_tune.search.callbacks import Interrupt, NotSaved, Waiting  # first: it sets what Ray reads at its import

# isort: split
from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.layers import get_key
from phenoscape_tune.mirror import Mirror
from phenoscape_tune.search.conductor import Conductor, Task
from phenoscape_tune.search.display import Display
from phenoscape_tune.search.record import INFEASIBLE
from phenoscape_tune.search.report import write_leaderboard
from phenoscape_tune.search.retention import Retention
from phenoscape_tune.search.trial import DIES, ENDED, FULL_DISK, NOTE, run_trial

# isort: split
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

MEMORY_MONITOR = "RAY_memory_usage_threshold"  # stands in what Ray says where it ends a process for memory
WRITING_SHARE = 0.05  # of the driver's time, for the leaderboard while trials run


class _Suggestions(NotSaved, Searcher):
    """Tune's searcher: hands out the conductor's tasks, at most `concurrent` at a time."""

    def __init__(self, conductor: Conductor, concurrent: int, threads: int, reports: _Reports) -> None:
        super().__init__(metric="objective", mode="max")
        self._reports = reports
        self._conductor = conductor
        self._concurrent = concurrent
        self._threads = threads

    def suggest(self, trial_id: str) -> Any:
        conductor = self._conductor
        # One more would be chosen before the running ones have taught anything.
        if len(conductor.live) >= self._concurrent:
            return None
        task = None
        with self._reports.until_full():
            task = conductor.next_task()
        if task is None:
            return Searcher.FINISHED if conductor.done else None
        return _task_mapping(conductor, task, self._threads)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The scheduler hears of it with the trial's name."""

    def save(self, checkpoint_path: str) -> None:
        """The study's journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: a resume is a new Tuner."""


def _task_mapping(conductor: Conductor, task: Task, threads: int) -> dict[str, Any]:
    keys = sorted(conductor.plan.space.parameters)
    config = task.config.to_unsettled_mapping()
    stage, number = conductor.stage, task.record.number
    digits = max(2, len(str(stage.trials - 1)))
    hparams = {"stage": task.record.stage} | {key: get_key(config, key) for key in keys}
    return {
        "name": task.record.name,
        "config": config,
        "resume": task.resume,
        "reported_epochs": len(task.record.curve),
        "test": task.test,
        "title": f"{stage.number}-{number:0{digits}} {task.record.name}",
        "stage": stage.label,
        "hparams": hparams,
        "metric": conductor.plan.objective.name,
        # Of the search, not of the trial: confirmations with fresh seeds are judged on the same views.
        "reference_seed": conductor.plan.seed,
        "threads": threads,
        "report_timeout": conductor.report_timeout,
    }


class _Reports(NotSaved, FIFOScheduler):
    """Tune's scheduler: passes reports to the conductor, and its decision back."""

    def __init__(self, conductor: Conductor, display: Display, mirror: Mirror | None) -> None:
        super().__init__()
        self._mirror = mirror
        self._conductor = conductor
        self._display = display
        self._retention = Retention(conductor, mirror)
        self.interrupted = False
        self.full_disk: NoSpaceLeft | None = None
        # When each running trial was last heard of, by the monotonic clock, and how long it may be silent.
        self._heard: dict[str, tuple[float, float]] = {}
        # Tune's name of the latest run of each trial: one that goes on is a new one, and may begin before Tune is done
        # with the one before.
        self._latest: dict[str, str] = {}
        self._told, self._telling, self._news = -math.inf, 0.0, False  # of the leaderboard: when, how long, what is new

    @contextmanager
    def until_full(self) -> Iterator[None]:
        """Within, a full disk interrupts the search: what Tune does about exceptions here is to end a trial."""
        try:
            yield
        except NoSpaceLeft as error:
            if not self.interrupted:
                self.full_disk = error
                signal.raise_signal(signal.SIGINT)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        # Until it starts it may have to wait, for a machine or for the process of an earlier trial.
        self._heard[trial.config["name"]] = (time.monotonic(), math.inf)
        self._latest[trial.config["name"]] = trial.trial_id

    def _is_over(self, trial: Trial) -> bool:
        return self._latest.get(trial.config["name"]) != trial.trial_id

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self._is_over(trial):
            return TrialScheduler.STOP
        self.hear(trial)
        with self.until_full():
            return self._decide(trial.config["name"], result)
        return TrialScheduler.STOP

    def _decide(self, name: str, result: dict[str, Any]) -> str:
        if result.get(ENDED) == FULL_DISK:
            raise NoSpaceLeft(result["reason"])
        if note := result.get(NOTE):
            self._display.say(f"{name}: {note}")
        if ENDED in result:
            self._conductor.fail(name, result["reason"], result[ENDED])
            self._tell(ended=True)
            # Stopped, it would unwind here and leave its process to the next trial; left to go on, it raises its error.
            return TrialScheduler.CONTINUE if result.get(DIES) else TrialScheduler.STOP
        goes_on = self._conductor.report(name, result)
        self._tell(ended=not goes_on, epoch=True)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if self.interrupted or self._is_over(trial):
            return
        name = trial.config["name"]
        since, silent_at_most = self._heard[name]
        with self.until_full():
            if time.monotonic() - since >= silent_at_most:  # it has ended itself: see `trial.Deadline`
                self._conductor.fail(name, f"no report for {silent_at_most:g} s (where it hung: logs/training.log)")
            elif _killed_for_memory(trial):
                told = (
                    f"batch_size {trial.config['config']['batch_size']}: the machine ran low on memory and Ray ended it"
                )
                self._conductor.give_back(name, told, INFEASIBLE)
            else:
                told = _raised(trial) or "its process ended without a word"
                self._conductor.give_back(name, told, started=silent_at_most < math.inf)
                if any(record.name == name and not record.ended for record in self._conductor.records()):
                    self._display.say(f"{name}: {told}; it goes on from its last checkpoint")
            self._tell(ended=True)

    def hear(self, trial: Trial) -> None:
        """A trial is alive."""
        self._heard[trial.config["name"]] = (time.monotonic(), trial.config["report_timeout"])

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        # A trial that ended by its reports is known; one that Tune ends by itself has stopped without a reason.
        if not self.interrupted and not self._is_over(trial):
            with self.until_full():
                self._conductor.fail(trial.config["name"], "its training function returned before its last epoch")

    def _tell(self, ended: bool, epoch: bool = False) -> None:
        self._news = self._news or ended
        since = time.monotonic()
        # It is written whole each time: of a long search as often as that costs little beside the trials.
        if self._news and since - self._told >= self._telling / WRITING_SHARE:
            write_leaderboard(self._conductor)
            self._retention.sweep()
            if self._mirror is not None:
                self._mirror.put("study.journal", "leaderboard.csv")
            self._told, self._telling, self._news = since, time.monotonic() - since, False
        self._display.update(epoch)


def _killed_for_memory(trial: Trial) -> bool:
    """Whether Ray's memory monitor ended a trial's process, which it says in the error's text alone."""
    return MEMORY_MONITOR in _error_text(trial)


def _raised(trial: Trial) -> str | None:
    """The exception that ended a trial, in one line; None where its process is gone without one."""
    lines = [line.strip() for line in _error_text(trial).splitlines() if line.strip()]
    return lines[-1][:300] if any(line.startswith("Traceback") for line in lines) else None


def _error_text(trial: Trial) -> str:
    path = trial.error_file
    return Path(path).read_text(errors="replace") if path is not None and Path(path).is_file() else ""


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep Tune from telling, within, of the files that it has of each trial elsewhere: here the study has them. What
    Ray says besides is not touched."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    try:
        logger.setLevel(max(logger.getEffectiveLevel(), logging.ERROR))
        yield
    finally:
        logger.setLevel(level)


def run_search(
    conductor: Conductor,
    display: Display,
    concurrent: int,
    cpus: int,
    gpus: float,
    trial: Callable[[dict[str, Any]], None] = run_trial,
    advice: str = "interrupted",
    mirror: Mirror | None = None,
    joined: bool = False,
) -> bool:
    """Run a search to its end. Returns False where it was interrupted; everything reported is in the study then.

    Raises NoSpaceLeft where a disk is full, after an orderly end of all trials; they stay unfinished.

    Args:
        concurrent: trials side by side.
        cpus, gpus: what each trial reserves; its threads are as many as its CPUs.
        trial: runs one task in a Ray actor.
        advice: what a second Ctrl-C, which ends at once, leaves the user with.
        mirror: copies the journal and the leaderboard to remote storage as trials end.
        joined: whether Ray is a cluster's, which other machines may join.
    """
    reports = _Reports(conductor, display, mirror)
    interrupt = Interrupt(reports, advice)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory(prefix="phenoscape_tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": cpus, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                search_alg=_Suggestions(conductor, concurrent, cpus, reports),
                scheduler=reports,
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,  # else a table every five seconds, of what our display shows
                callbacks=[interrupt, Waiting(reports, cpus, gpus, joined)],
            ),
        )
        try:
            with _unheard():
                tuner.fit()
        except KeyboardInterrupt:
            reports.interrupted = True
        finally:
            interrupt.over.set()
            # After the first Ctrl-C a second one ends at once, whatever the process is at until its end.
            for number, handler in before.items() if not reports.interrupted else ():
                signal.signal(number, handler)
    if reports.full_disk is not None:
        raise reports.full_disk
    write_leaderboard(conductor)
    return conductor.done
