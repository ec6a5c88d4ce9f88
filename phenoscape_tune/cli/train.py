"""`train.py`: train one SimCLR encoder from a configuration."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from phenoscape_tune.cli.common import (
    DONE,
    INTERRUPTED,
    OTHER_FAULT,
    check_folder,
    check_storage,
    ensure_data,
    pack_progress,
    prepare_folder,
    resolve_config,
    run_command,
    show_details,
    warn,
    warn_of_advice,
)
from phenoscape_tune.cli.devices import batch_warnings
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.layers import flatten, load_config, merge, parse_overrides
from phenoscape_tune.storage import Storage, is_url, split_url
from phenoscape_tune.training.batch_advice import describe_memory, smallest
from phenoscape_tune.training.disk import check_space, run_bytes
from phenoscape_tune.training.gpus import visible_gpus
from phenoscape_tune.yaml_file import dump_mapping

log = logging.getLogger(__name__)

FETCHED = ".fetched"  # in a run's folder: what is not yet whole of a run in remote storage
RUN_FILES = ("config.yaml", "checkpoints", "logs", "test_scores.csv", FETCHED)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a SimCLR encoder. Without --config and data_dir it runs on generated sample specimens.",
    )
    parser.add_argument("--config", metavar="FILE", help="configuration: a path, or a name in configs/")
    parser.add_argument("--resume", metavar="CKPT", help="go on from a checkpoint, in its run's folder")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the same folder")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and start nothing")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print the result only")
    loud.add_argument("-v", "--verbose", action="store_true", help="also tell cache, defaults, seconds, checkpoints")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key, e.g. data_dir=birds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_train, argv)


def _train(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    resume = None
    if args.resume:
        resume = _fetch(args) if is_url(args.resume) else Path(args.resume).absolute()
    config = _resolve_resumed(args, resume) if resume else resolve_config(args.config, parse_overrides(args.overrides))
    if args.dry_run:
        print(dump_mapping(config.to_mapping()), end="")
        warn_of_advice(config, args.quiet)
        _tell_memory(config, args.quiet)
        if config.data_dir and not Path(config.data_dir).is_dir():
            warn([f"data_dir: {config.data_dir}: no such folder on this machine"])
        return DONE
    warn_of_advice(config, args.quiet)
    _tell_memory(config, args.quiet)
    folder = Path(config.out_dir).expanduser().absolute()

    def check() -> None:
        hint = f"go on with --resume {folder / 'checkpoints' / 'last.ckpt'}"
        check_folder(folder, RUN_FILES, args.overwrite, hint)

    if resume is None:
        check()
        config = ensure_data(config, args.quiet)
    config = config.model_copy(update={"out_dir": str(folder)})
    with show_details(args.verbose):
        return _run(config, resume, args.quiet, check)


def _fetch(args: argparse.Namespace) -> Path:
    """The checkpoint of a run in remote storage, with its configuration, fetched into the run's local folder.

    Raises UserError where it is not there, or the folder exists already.
    """
    if args.dry_run:
        raise UserError("--dry-run: fetches nothing, so it cannot tell of a run in remote storage; leave it out")
    url, name = split_url(args.resume, 2)
    storage = Storage(url)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            own = Path(scratch) / "config.yaml"
            if not storage.download("config.yaml", own):
                raise UserError(f"--resume: {url}: holds no config.yaml, so {name} is no checkpoint of a run there")
            folder = Path(load_config(str(own), parse_overrides(args.overrides)).out_dir).expanduser().absolute()
        hint = f"go on with --resume {folder / name}, or write another out_dir=FOLDER"
        check_folder(folder, RUN_FILES, args.overwrite, hint)
        prepare_folder(folder, RUN_FILES)
        # Aside, so that a process which is killed meanwhile leaves no run's folder, and the same command works again.
        aside = folder / FETCHED
        try:
            if not storage.download(name, aside / name):
                raise UserError(f"--resume: {args.resume}: no such checkpoint")
            storage.download("config.yaml", aside / "config.yaml")
            for top in (Path(name).parts[0], "config.yaml"):
                os.replace(aside / top, folder / top)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise UserError(f"--resume: {args.resume}: cannot be fetched ({error})") from error
    return folder / name


def _tell_memory(config: TrainConfig, quiet: bool) -> None:
    """The GPUs' memory with the guide's batch sizes for it, and whether the configuration's is one of them."""
    cards = visible_gpus() if config.accelerator != "cpu" and not quiet else []
    # On standard error: a dry run's output is a configuration.
    for line in describe_memory(cards):
        print(line, file=sys.stderr)
    warn(batch_warnings(None, config, smallest(cards)))


def _resolve_resumed(args: argparse.Namespace, resume: Path) -> TrainConfig:
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
    overrides = parse_overrides(args.overrides)
    config = build_config(merge(own.to_mapping(), overrides), "command line")
    if args.config:
        # With the same key=value on both sides: what was given when the run was started is given again.
        from phenoscape_tune.data.parts import settle_like

        asked = flatten(ensure_data(settle_like(load_config(args.config, overrides), config)).to_mapping())
        then = flatten(ensure_data(config).to_mapping())
        different = [key for key in then | asked if asked.get(key) != then.get(key) and key != "out_dir"]
        if different:
            was = flatten(own.to_mapping())
            lines = "\n  ".join(f"{key}: was {was.get(key)!r}, is {asked.get(key)!r}" for key in different)
            raise UserError(
                f"{args.config}: is not the configuration of the run in {folder}:\n  {lines}\n"
                "leave out --config, and change a key on purpose with key=value"
            )
    return config.model_copy(update={"out_dir": str(folder)})


def _run(config: TrainConfig, resume: Path | None, quiet: bool, check: Callable[[], None]) -> int:
    from phenoscape_tune.data.parts import open_parts, settle

    folder = Path(config.out_dir)
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
        with show_training(quiet):
            rows = launch(config, lambda row: warn([row["note"]] if "note" in row else []), options, parts)
    except NoSpaceLeft as error:
        again = f"go on with:\n  {_resume_command(last)}" if last.is_file() else "run the same command with --overwrite"
        print(f"error: {error}; free some, then {again}", file=sys.stderr)
        return OTHER_FAULT
    except Diverged as error:
        advice = f"the loss is no longer a number; try a smaller lr (it was {config.lr:g})"
        print(f"error: {error}: {advice}", file=sys.stderr)
        return OTHER_FAULT
    except OutOfMemory as error:
        print(f"error: {error}", file=sys.stderr)
        return OTHER_FAULT
    except RankDied as error:
        again = f"go on with:\n  {_resume_command(last)}" if last.is_file() else "run the same command with --overwrite"
        print(f"error: {error}; perhaps the machine ran out of memory; {again}", file=sys.stderr)
        return OTHER_FAULT
    except KeyboardInterrupt:
        again = f"go on with:\n  {_resume_command(last)}" if last.is_file() else "no epoch was finished"
        print(f"\ninterrupted; {again}", file=sys.stderr)
        return INTERRUPTED
    final = rows[-1]
    title = choose_metric("auto", parts.labels is not None, parts.few_labels).title
    print(
        f"\ntrained {final['epoch']} epochs: validation loss {final['val_loss']:.3f}, {title} {final['objective']:.3f}"
    )
    print(f"weights   {folder / 'checkpoints' / 'best.ckpt'}\nlook      tensorboard --logdir {folder}")
    return DONE


def _resume_command(last: Path) -> str:
    return f"python scripts/train.py --resume {shlex.quote(str(last))}"


if __name__ == "__main__":
    sys.exit(main())
