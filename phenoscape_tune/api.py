"""The project from Python: what `train.py` and `tune.py` do, by the same way, with typed results.

Nothing heavy is imported before it is needed: a fault of the input is told before torch and Ray are loaded.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenoscape_tune.cli.devices import ray_runs
from phenoscape_tune.cli.request import RunRequest, SearchRequest
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import NoResult, UserError
from phenoscape_tune.layers import set_key
from phenoscape_tune.search.space import Order, SearchSpace

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class TrainResult:
    """A run that has ended.

    Attributes:
        folder: of the run: config.yaml, checkpoints/, logs/.
        checkpoint: of the epoch with the best objective, for `embed.py` and `weights`.
        config: the resolved configuration.
        metric: the objective's name: knn_accuracy with labels, else reference_contrast (lower is better).
        objective: of the last epoch, on the validation part.
        val_loss: of the last epoch.
        history: a row an epoch: epoch, train_loss, val_loss, objective, lr, seconds, images_per_second and more.
    """

    folder: Path
    checkpoint: Path
    config: TrainConfig
    metric: str
    objective: float
    val_loss: float
    history: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TuneResult:
    """A search that has ended.

    Attributes:
        folder: of the search: report.html, best.yaml, leaderboard.csv, summary.json, trials/.
        best: the configuration to train with, as in best.yaml: `train(result.best)`.
        values: the searched values in it, by key; none where it keeps the defaults.
        metric: the objective's name.
        higher_is_better: its direction.
        objective: of `best`, on the validation part; the mean over fresh seeds where it was repeated.
        baseline: the same of the defaults; None where they did not train.
        gain: of the best of the search over the defaults: paired, on the test part, where both were repeated, else the
            difference of their objectives. Above 0 is better, whatever the direction; None without a baseline.
        gain_ci95: its 95 % interval; None where it was not repeated with two seeds or more.
        verdict: one sentence, "clear gain ..." or "no clear gain ..." or what else is to say.
    """

    folder: Path
    best: TrainConfig
    values: Mapping[str, Any]
    metric: str
    higher_is_better: bool
    objective: float
    baseline: float | None
    gain: float | None
    gain_ci95: tuple[float, float] | None
    verdict: str


def train(
    config: TrainConfig | StrPath | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: StrPath | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> TrainResult:
    """Train one SimCLR encoder, as `python scripts/train.py` does; the result is in `config.out_dir`.

    Args:
        config: a configuration, the path of its file, or the name of one that comes along; None, without a data_dir
            in `overrides`: generated sample specimens.
        overrides: configuration keys that win over it, dotted for nested ones: {"transforms.cj_strength": 0.8}.
        resume: a checkpoint (outputs/x/checkpoints/last.ckpt) to go on from, with the configuration of its run.
        overwrite: delete an earlier run in the same folder.
        quiet: print warnings only.
        verbose: also tell cache, defaults, seconds, checkpoints, and all that was measured in an epoch.

    Raises UserError where the input is at fault, NoResult where the run diverged, ran out of memory or filled the disk,
    KeyboardInterrupt where it was interrupted. Messages name flags as the script does: --overwrite is overwrite=True.
    """
    from phenoscape_tune.cli.whole_run import train as run

    asked = RunRequest(_named(config), _nested(overrides), _text("resume", resume), overwrite, False, quiet, verbose)
    with _signals_given_back():
        trained = run(asked)
    if not quiet:
        print("\n".join(["", *trained.describe()]))
    folder, final = Path(trained.config.out_dir), trained.rows[-1]
    return TrainResult(
        folder=folder,
        checkpoint=folder / "checkpoints" / "best.ckpt",
        config=trained.config,
        metric=trained.metric.name,
        objective=final["objective"],
        val_loss=final["val_loss"],
        history=trained.rows,
    )


def tune(
    space: SearchSpace | StrPath | None = None,
    config: TrainConfig | StrPath | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    out: StrPath | None = None,
    order: Order | None = None,
    trials: int | None = None,
    max_epochs: int | None = None,
    hours: float | None = None,
    gpu_hours: float | None = None,
    concurrent: int | None = None,
    confirm: bool = True,
    seed: int | None = None,
    resume: bool = False,
    resume_or_start: bool = False,
    overwrite: bool = False,
    warm_start: StrPath | None = None,
    address: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> TuneResult:
    """Search for the values to train with, as `python scripts/tune.py` does; the result is in outputs/<name>.

    A Ray that the process has already is used, and left running; one that is started here is stopped at the end. Call
    it from the main thread, which is the one that Ctrl-C interrupts; a second Ctrl-C ends the whole process at once,
    and loses nothing that was reported.

    Args:
        space: a search space, the path of its file, or the name of one that comes along, such as "lr_temp".
        config, overrides: of the trials, as `train` takes them.
        name: of the search; None: the space file's, or "search".
        out: folder of the search; None: outputs/<name>.
        order: stage by stage as documented, or all keys at once.
        trials: to start, confirmations not counted.
        max_epochs: length of a trial.
        hours, gpu_hours: wall time, and time of all GPUs together, confirmation included.
        concurrent: trials side by side.
        confirm: repeat the best trials and the defaults with fresh seeds.
        seed: of the search and of training.
        resume: go on with a search that was interrupted; a finished one gives its result.
        resume_or_start: go on where the search was begun, else start it.
        overwrite: delete an earlier search in the same folder.
        warm_start: folder of an earlier search to learn from.
        address: of a Ray cluster to run on, "auto" or "HOST:PORT".
        quiet: print warnings only.
        verbose: also tell each epoch of each trial, and what Ray says.

    Raises UserError where the input is at fault, NoResult where no trial was valid or the disk is full,
    KeyboardInterrupt where it was interrupted. Messages name flags as the script does: --resume is resume=True.
    """
    from phenoscape_tune.cli.whole_search import search

    if threading.current_thread() is not threading.main_thread():
        raise UserError("tune: runs in the main thread only, which is the one that Ctrl-C reaches; call it there")
    asked = SearchRequest(
        space=space if isinstance(space, SearchSpace) else _text("space", space), config=_named(config),
        overrides=_nested(overrides), name=name, out=_text("out", out), order=order, trials=trials,
        max_epochs=max_epochs, hours=hours, gpu_hours=gpu_hours, concurrent=concurrent, no_confirm=not confirm,
        seed=seed, resume=resume, resume_or_start=resume_or_start, overwrite=overwrite,
        warm_start=_text("warm_start", warm_start), address=address, quiet=quiet, verbose=verbose,
    )  # fmt: skip
    with _signals_given_back(), _ray_given_back():
        found = search(asked)
    outcome, plan = found.outcome, found.conductor.plan
    if outcome is None:
        raise NoResult("\n".join(found.describe()))
    if not quiet:
        print("\n".join(["", *found.describe()]))
    from phenoscape_tune.search.report import best_config

    return TuneResult(
        folder=plan.folder,
        best=best_config(plan, outcome),
        values=outcome.best.record.values,
        metric=outcome.metric.name,
        higher_is_better=outcome.metric.higher_is_better,
        objective=outcome.best.objective,
        baseline=None if outcome.baseline is None else outcome.baseline.objective,
        gain=outcome.difference,
        gain_ci95=outcome.interval,
        verdict=outcome.verdict,
    )


def _text(argument: str, path: StrPath | None) -> str | None:
    if path is not None and not isinstance(path, str | os.PathLike):
        raise UserError(f"{argument}: {path!r} is no path or name; write text or a Path")
    return None if path is None else os.fspath(path)


def _named(config: TrainConfig | StrPath | None) -> TrainConfig | str | None:
    return config if isinstance(config, TrainConfig) else _text("config", config)


def _nested(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """Configuration keys, dotted or nested, as one nested mapping."""
    nested: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if not isinstance(key, str):
            raise UserError(f"overrides: {key!r} is no key; write the name of one, such as 'batch_size'")
        # A copy: the caller's own mapping may be given further keys by a dotted one.
        set_key(nested, key, os.fspath(value) if isinstance(value, os.PathLike) else deepcopy(value))
    return nested


@contextmanager
def _signals_given_back() -> Iterator[None]:
    """Leave the caller with the handlers that it had: a notebook lives on after an interrupted search."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be set from there
                signal.signal(number, handler)


@contextmanager
def _ray_given_back() -> Iterator[None]:
    """Stop, at the end, a Ray that was started within, and let Ray say what it said before."""
    had, logger = ray_runs(), logging.getLogger("ray")
    level = logger.level
    try:
        yield
    finally:
        logger.setLevel(level)
        if not had and ray_runs():
            from phenoscape_tune.search.cluster import stop_ray

            stop_ray()
