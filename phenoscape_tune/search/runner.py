"""Runs a search's tasks as Ray Tune trials: one Tuner for all stages, on actors that are reused.

The conductor decides; Tune starts, stops and watches the trials. Tune's own snapshot is never read.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by Ray when it is first imported, or by its processes when they start.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # A trial that closes slowly after an early stop would otherwise lose its slot for good (2 s by default).
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
        # Relative paths mean the folder that the search was started in.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # A trial that ends without a result reports why, and has no objective to report.
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
)

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from phenoscape_tune.config import TrainConfig, build_config, get_key
from phenoscape_tune.data.parts import Parts, data_key, open_parts
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.conductor import Conductor, Task
from phenoscape_tune.search.display import Display
from phenoscape_tune.search.report import write_leaderboard
from phenoscape_tune.search.study import FAILED, INFEASIBLE

if TYPE_CHECKING:
    from phenoscape_tune.training.capacity import Capacity

ENDED = "ended"  # key of a trial's last words


def start_ray(cpus: int, verbose: bool) -> None:
    """Start Ray on this machine, without a dashboard, unless it runs; what it says is shown only where `verbose`."""
    if ray.is_initialized():
        return
    if not verbose:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",  # a cluster that RAY_ADDRESS names is not ours to use
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
        configure_logging=verbose,
    )
    # Ray puts a handler of its own there, which ends the process without a word.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def count_gpus() -> int:
    """GPUs that Ray found."""
    return int(ray.cluster_resources().get("GPU", 0))


@ray.remote
def _check(config: dict[str, Any]) -> None:
    import warnings

    warnings.filterwarnings("ignore")
    from phenoscape_tune.model import build_encoder
    from phenoscape_tune.training.device import default_device

    resolved = build_config(config)
    default_device(resolved)
    build_encoder(resolved, 3, [0.5] * 3, [0.25] * 3)


def check_on_worker(config: TrainConfig, gpus: float) -> None:
    """Build the network once in a worker, which also loads what the trials need. Raises UserError as that does."""
    try:
        ray.get(_check.options(num_gpus=gpus).remote(config.to_mapping()))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


@ray.remote(max_calls=1)  # its process ends with it
def _measure(config: dict[str, Any], channels: int, up_to: int, concurrent: int, share: float, cpus: int) -> Capacity:
    from phenoscape_tune.training.capacity import measure_in_process

    memory = None
    if 0 < share < 1:  # a share of a GPU is a share of its memory
        import torch

        memory = share * torch.cuda.get_device_properties(0).total_memory / 2**30
    env = {"OMP_NUM_THREADS": str(cpus)}
    return measure_in_process(build_config(config), channels, up_to, memory, env, concurrent)


def measure_on_worker(
    config: TrainConfig, channels: int, up_to: int, cpus: int, gpus: float, concurrent: int
) -> Capacity:
    """What a trial's share of the device holds, and how fast it is at each batch size up to `up_to`.

    Args:
        cpus, gpus: what a trial reserves; concurrent: trials side by side.

    Raises UserError where it cannot be measured, or not even two images fit.
    """
    task = _measure.options(num_gpus=gpus)
    try:
        capacity = ray.get(task.remote(config.to_mapping(), channels, up_to, concurrent, gpus, cpus))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    if not capacity.images_per_second:
        raise UserError("batch_size: not even two images fit this device at once; try a smaller input_size or backbone")
    return capacity


# Of this process: finding and checking 100,000 files again would take seconds a trial.
_opened: dict[tuple[object, ...], Parts] = {}


def _images(config: TrainConfig) -> Parts:
    """The images of a search, opened once a process; they do not change while it runs."""
    key = data_key(config)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_parts(config)
    return _opened[key]


def run_trial(task: dict[str, Any]) -> None:
    """Train one trial and report each epoch to Tune; runs in a Ray actor."""
    import torch

    torch.set_num_threads(task["threads"])
    from phenoscape_tune.training.launch import launch
    from phenoscape_tune.training.memory import OutOfMemory
    from phenoscape_tune.training.run import Diverged, RunOptions

    config = build_config(task["config"], task["name"])
    last = Path(config.out_dir) / "checkpoints" / "last.ckpt"
    options = RunOptions(
        resume=last if task["resume"] and last.is_file() else None,
        reported_epochs=task["reported_epochs"],
        test=task["test"],
        hparams=task["hparams"],
        metric=task["metric"],
        reference_seed=task["reference_seed"],
    )
    try:
        launch(config, tune.report, options, _images(config))
    except (Diverged, UserError) as error:
        tune.report({ENDED: FAILED, "reason": str(error)})
    except OutOfMemory as error:
        tune.report({ENDED: INFEASIBLE, "reason": str(error)})
        raise  # what is left in this process's memory must not fail the next trial
    except Exception as error:
        # The process may be in any state: raised, the error makes Ray end it and start a fresh one.
        first_line = (str(error).splitlines() or [""])[0]
        tune.report({ENDED: FAILED, "reason": f"{type(error).__name__}: {first_line}"[:300]})
        raise


class _NotSaved:
    """Tune pickles its parts into a snapshot that nobody reads; the study cannot be pickled, and need not be."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Suggestions(_NotSaved, Searcher):
    """Tune's searcher: hands out the conductor's tasks, at most `concurrent` at a time."""

    def __init__(self, conductor: Conductor, concurrent: int, threads: int) -> None:
        super().__init__(metric="objective", mode="max")
        self._conductor = conductor
        self._concurrent = concurrent
        self._threads = threads

    def suggest(self, trial_id: str) -> Any:
        conductor = self._conductor
        # One more would be chosen before the running ones have taught anything.
        if len(conductor.live) >= self._concurrent:
            return None
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
    config = task.config.to_mapping()
    hparams = {"stage": task.record.stage} | {key: get_key(config, key) for key in keys}
    return {
        "name": task.record.name,
        "config": config,
        "resume": task.resume,
        "reported_epochs": len(task.record.curve),
        "test": task.test,
        "hparams": hparams,
        "metric": conductor.plan.objective.name,
        # Of the search, not of the trial: confirmations with fresh seeds are judged on the same views.
        "reference_seed": conductor.plan.seed,
        "threads": threads,
    }


class _Reports(_NotSaved, FIFOScheduler):
    """Tune's scheduler: passes reports to the conductor, and its decision back."""

    def __init__(self, conductor: Conductor, display: Display) -> None:
        super().__init__()
        self._conductor = conductor
        self._display = display
        self.interrupted = False

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        name = trial.config["name"]
        if ENDED in result:
            self._conductor.fail(name, result["reason"], result[ENDED])
            self._tell(ended=True)
            return TrialScheduler.STOP
        goes_on = self._conductor.report(name, result)
        self._tell(ended=not goes_on, epoch=True)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        if not self.interrupted:
            self._conductor.fail(trial.config["name"], "its process ended without a word")
            self._tell(ended=True)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        # A trial that ended by its reports is known; one that Tune ends by itself has stopped without a reason.
        if not self.interrupted:
            self._conductor.fail(trial.config["name"], "its training function returned before its last epoch")

    def _tell(self, ended: bool, epoch: bool = False) -> None:
        if ended:
            write_leaderboard(self._conductor)
        self._display.update(epoch)


class _Interrupt(_NotSaved, tune.Callback):
    """Ctrl-C and SIGTERM: tell the scheduler, then let Tune end in order; a second one ends at once."""

    def __init__(self, reports: _Reports) -> None:
        self._reports = reports
        self._installed = False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._installed:
            return
        self._installed = True
        tunes_own = signal.getsignal(signal.SIGINT)

        def interrupt(number: int, frame: Any) -> None:
            if self._reports.interrupted:
                os._exit(130)  # the journal is on disk at every report: there is nothing left to save
            self._reports.interrupted = True
            if callable(tunes_own):
                tunes_own(signal.SIGINT, frame)

        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)


def run_search(
    conductor: Conductor,
    display: Display,
    concurrent: int,
    cpus: int,
    gpus: float,
    verbose: bool = False,
    trial: Callable[[dict[str, Any]], None] = run_trial,
) -> bool:
    """Run a search to its end. Returns False where it was interrupted; everything reported is in the study then.

    Args:
        concurrent: trials side by side.
        cpus, gpus: what each trial reserves; its threads are as many as its CPUs.
        trial: runs one task in a Ray actor.
    """
    reports = _Reports(conductor, display)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory(prefix="phenoscape_tune-") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": cpus, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                search_alg=_Suggestions(conductor, concurrent, cpus),
                scheduler=reports,
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=scratch, verbose=1 if verbose else 0, callbacks=[_Interrupt(reports)]
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            reports.interrupted = True
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    write_leaderboard(conductor)
    return conductor.done
