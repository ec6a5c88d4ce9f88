"""A run from what is asked of it to its result, for `train.py` and for `phenoscape_tune.train` alike."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenoscape_tune.cli.common import (
    check_folder,
    check_storage,
    ensure_data,
    pack_progress,
    prepare_folder,
    resolve_config,
    show_details,
    warn,
    warn_of_advice,
)
from phenoscape_tune.cli.devices import batch_warnings
from phenoscape_tune.cli.request import RunRequest
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import Interrupted, NoResult, NoSpaceLeft, UserError
from phenoscape_tune.evaluate.objective import Metric
from phenoscape_tune.layers import flatten, load_config, merge
from phenoscape_tune.storage import Storage, is_url, split_url
from phenoscape_tune.training.batch_advice import describe_memory, smallest
from phenoscape_tune.training.disk import check_space, run_bytes
from phenoscape_tune.training.gpus import visible_gpus
from phenoscape_tune.yaml_file import dump_mapping

log = logging.getLogger(__name__)

FETCHED = ".fetched"  # in a run's folder: what is not yet whole of a run in remote storage
RUN_FILES = ("config.yaml", "checkpoints", "logs", "test_scores.csv", FETCHED)


@dataclass(frozen=True)
class Trained:
    """A run that has ended.

    Attributes:
        config: the resolved configuration; its `out_dir` is the run's folder.
        rows: what was reported, a row an epoch; of a resumed run also the epochs before.
        metric: the objective.
    """

    config: TrainConfig
    rows: Sequence[Mapping[str, Any]]
    metric: Metric

    def describe(self) -> list[str]:
        """The result line by line, and what to go on with."""
        final, folder = self.rows[-1], Path(self.config.out_dir)
        scores = f"validation loss {final['val_loss']:.3f}, {self.metric.title} {final['objective']:.3f}"
        return [
            f"trained {final['epoch']} epochs: {scores}",
            f"weights   {shlex.quote(str(folder / 'checkpoints' / 'best.ckpt'))}",
            f"look      tensorboard --logdir {shlex.quote(str(folder))}",
        ]


def train(asked: RunRequest) -> Trained:
    """Train, or go on from a checkpoint, to the end.

    Raises UserError where it cannot be run as asked, NoResult where it came to none, Interrupted as its name says.
    """
    config, resume = _resolve(asked)
    warn_of_advice(config, asked.quiet)
    _tell_memory(config, asked.quiet)
    folder = Path(config.out_dir).expanduser().absolute()

    def check() -> None:
        hint = f"go on with --resume {folder / 'checkpoints' / 'last.ckpt'}"
        check_folder(folder, RUN_FILES, asked.overwrite, hint)

    if resume is None:
        check()
        config = ensure_data(config, asked.quiet)
    config = config.model_copy(update={"out_dir": str(folder)})
    with show_details(asked.verbose):
        return _run(config, resume, asked, check)


def preview(asked: RunRequest) -> None:
    """Print the resolved configuration, with warnings of what this machine lacks for it; start nothing."""
    config, _ = _resolve(asked)
    print(dump_mapping(config.to_mapping()), end="")
    warn_of_advice(config, asked.quiet)
    _tell_memory(config, asked.quiet)
    if config.data_dir and not Path(config.data_dir).is_dir():
        warn([f"data_dir: {config.data_dir}: no such folder on this machine"])


def _resolve(asked: RunRequest) -> tuple[TrainConfig, Path | None]:
    """The configuration, and the checkpoint to go on from."""
    if not asked.resume:
        return resolve_config(asked.config, asked.overrides), None
    resume = _fetch(asked.resume, asked) if is_url(asked.resume) else Path(asked.resume).expanduser().absolute()
    return _resolve_resumed(asked, resume), resume


def _fetch(address: str, asked: RunRequest) -> Path:
    """The checkpoint of a run in remote storage, with its configuration, fetched into the run's local folder.

    Raises UserError where it is not there, or the folder exists already.
    """
    if asked.dry_run:
        raise UserError("--dry-run: fetches nothing, so it cannot tell of a run in remote storage; leave it out")
    url, name = split_url(address, 2)
    storage = Storage(url)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            own = Path(scratch) / "config.yaml"
            if not storage.download("config.yaml", own):
                raise UserError(f"--resume: {url}: holds no config.yaml, so {name} is no checkpoint of a run there")
            folder = Path(load_config(str(own), asked.overrides).out_dir).expanduser().absolute()
        hint = f"go on with --resume {folder / name}, or write another out_dir=FOLDER"
        check_folder(folder, RUN_FILES, asked.overwrite, hint)
        prepare_folder(folder, RUN_FILES)
        # Aside, so that a process which is killed meanwhile leaves no run's folder, and the same command works again.
        aside = folder / FETCHED
        try:
            if not storage.download(name, aside / name):
                raise UserError(f"--resume: {address}: no such checkpoint")
            storage.download("config.yaml", aside / "config.yaml")
            for top in (Path(name).parts[0], "config.yaml"):
                os.replace(aside / top, folder / top)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--resume: {address}: cannot be fetched ({error})") from error
    return folder / name


def _tell_memory(config: TrainConfig, quiet: bool) -> None:
    """The GPUs' memory with the guide's batch sizes for it, and whether the configuration's is one of them."""
    cards = visible_gpus() if config.accelerator != "cpu" and not quiet else []
    # On standard error: a dry run's output is a configuration.
    for line in describe_memory(cards):
        print(line, file=sys.stderr)
    warn(batch_warnings(None, config, smallest(cards)))


def _resolve_resumed(asked: RunRequest, resume: Path) -> TrainConfig:
    """The configuration of the run that a checkpoint belongs to; key=value changes it on purpose.

    Raises UserError where a --config says something else than the run's own.
    """
    folder = resume.parent.parent
    # Where the last one is gone, the one before takes its place.
    if not resume.is_file() and not (resume.name == "last.ckpt" and resume.with_name("previous.ckpt").is_file()):
        raise UserError(f"--resume: {resume}: no such checkpoint")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--resume: {folder}: holds no config.yaml, so {resume.name} is no checkpoint of a run there")
    own = load_config(str(folder / "config.yaml"))
    config = build_config(merge(own.to_mapping(), asked.overrides), "command line")
    if asked.config is not None:
        named = asked.config if isinstance(asked.config, str) else "config"
        # With the same key=value on both sides: what was given when the run was started is given again.
        from phenoscape_tune.data.parts import settle_like

        given = resolve_config(asked.config, asked.overrides)
        now = flatten(ensure_data(settle_like(given, config)).to_mapping())
        then = flatten(ensure_data(config).to_mapping())
        different = [key for key in then | now if now.get(key) != then.get(key) and key != "out_dir"]
        if different:
            was = flatten(own.to_mapping())
            lines = "\n  ".join(f"{key}: was {was.get(key)!r}, is {now.get(key)!r}" for key in different)
            raise UserError(
                f"{named}: is not the configuration of the run in {folder}:\n  {lines}\n"
                "leave out --config, and change a key on purpose with key=value"
            )
    return config.model_copy(update={"out_dir": str(folder)})


def _run(config: TrainConfig, resume: Path | None, asked: RunRequest, check: Callable[[], None]) -> Trained:
    from phenoscape_tune.data.parts import open_parts, settle

    folder, quiet = Path(config.out_dir), asked.quiet
    check_storage(config)
    parts = open_parts(config, None if quiet else pack_progress, lambda line: warn([line]))
    config = settle(config, parts.images.recipe)
    if not quiet:
        print("loading torch ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    from phenoscape_tune.cli.progress import show_training
    from phenoscape_tune.evaluate.objective import choose_metric
    from phenoscape_tune.model import check_backbone
    from phenoscape_tune.training import checkpoint
    from phenoscape_tune.training.device import default_device
    from phenoscape_tune.training.launch import launch
    from phenoscape_tune.training.memory import OutOfMemory
    from phenoscape_tune.training.rank_group import RankDied, device_count
    from phenoscape_tune.training.run import Diverged, RunOptions, check_run

    log.debug("loaded torch and Ray Train in %.2f s", time.perf_counter() - started)
    check_backbone(config.backbone)
    default_device(config)
    # Only now, with all that the user wrote checked, may an earlier run be deleted.
    if resume is None:
        needed = run_bytes(config, check_run(config, RunOptions(), parts, device_count(config)))
        # What is overwritten is deleted first.
        held = sum(path.stat().st_size for path in folder.glob("checkpoints/*.ckpt"))
        check_space(folder, needed - held, "the run", "free some, or choose another out_dir")
        check()  # another process may have begun a run there meanwhile
        prepare_folder(folder, RUN_FILES)
    last, notes = folder / "checkpoints" / checkpoint.LAST, []
    if resume == last and (note := checkpoint.recover(last.parent)):
        warn([note])
        notes.append(note)
    options = RunOptions(resume=resume, reported_epochs=config.max_epochs, notes=tuple(notes))
    try:
        with show_training(quiet, asked.verbose):
            rows = launch(config, lambda row: warn([row["note"]] if "note" in row else []), options, parts)
    except NoSpaceLeft as error:
        raise NoResult(f"{error}; free some, then {_again(last)}") from error
    except Diverged as error:
        advice = f"the loss is no longer a number; try a smaller lr (it was {config.lr:g})"
        raise NoResult(f"{error}: {advice}") from error
    except OutOfMemory as error:
        raise NoResult(str(error)) from error
    except RankDied as error:
        raise NoResult(f"{error}; perhaps the machine ran out of memory; {_again(last)}") from error
    except KeyboardInterrupt:
        again = _again(last) if last.is_file() else "no epoch was finished"
        raise Interrupted(f"interrupted; {again}") from None
    return Trained(config, tuple(rows), choose_metric("auto", parts.labels is not None, parts.few_labels))


def _again(last: Path) -> str:
    """How to go on with a run that has stopped."""
    if not last.is_file():
        return "run the same command with --overwrite"
    return f"go on with:\n  python scripts/train.py --resume {shlex.quote(str(last))}"
