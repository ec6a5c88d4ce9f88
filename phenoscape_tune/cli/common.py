"""What the commands share: ends and exit codes, output folders, the sample specimens."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from phenoscape_tune.config import TrainConfig, advice, build_config
from phenoscape_tune.errors import Interrupted, NoResult, NoSpaceLeft, UserError
from phenoscape_tune.layers import find_file, load_config, merge
from phenoscape_tune.storage import Storage
from phenoscape_tune.yaml_file import load_mapping

DONE, OTHER_FAULT, INPUT_FAULT, INTERRUPTED = 0, 1, 2, 130

SAMPLE_CONFIG = "sample"
SAMPLE_PER_CLASS = 100  # enough validation images to tell 0.1 of accuracy apart


def run_command(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn its end into an exit code; a fault of the input is one message without a traceback."""
    if threading.current_thread() is threading.main_thread():
        # A batch system's stop is the same orderly end as Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return INPUT_FAULT
    except NoSpaceLeft as error:
        print(f"error: {error}; free some and run the same command again", file=sys.stderr)
        return OTHER_FAULT
    except NoResult as error:
        print(f"error: {error}", file=sys.stderr)
        return OTHER_FAULT
    except KeyboardInterrupt as error:
        _end_at_once_when_interrupted_again()
        before = "interrupted before there was a result; run the same command again"
        print(f"\n{error}" if isinstance(error, Interrupted) else before, file=sys.stderr)
        return INTERRUPTED


def _end_at_once_when_interrupted_again() -> None:
    """What is left is the end of the process; an impatient user need not wait for Ray's, nor read its tracebacks."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))


def resolve_config(asked: TrainConfig | str | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """The configuration, its file or neither, with overrides; without one and a data_dir it is the sample's."""
    if "data_dir" in overrides and not overrides["data_dir"]:
        raise UserError("command line: data_dir: is empty; write data_dir=path/to/your/images")
    if isinstance(asked, TrainConfig):
        return build_config(merge(asked.given(), overrides), "configuration")
    if asked is None and "data_dir" not in overrides:
        sample = load_mapping(find_file(SAMPLE_CONFIG, "configs"))
        load_config(None, overrides)  # faults are told as the command line's
        return build_config(merge(sample, overrides), "command line")
    return load_config(asked, overrides)


def ensure_data(config: TrainConfig, quiet: bool = True) -> TrainConfig:
    """The configuration with absolute paths, so that it means the same to every process and in `best.yaml`.

    Makes the sample specimens of its modality where no data folder is given; unless `quiet`, with a progress line.
    """
    paths = {key: getattr(config, key) for key in ("data_dir", "labels", "cache_dir", "weights")}
    if paths["weights"] == "DEFAULT":
        paths["weights"] = None
    if (paths["cache_dir"] or "").startswith("~"):  # on a cluster each machine has a home folder of its own
        paths["cache_dir"] = None
    found = {key: str(Path(path).expanduser().absolute()) for key, path in paths.items() if path is not None}
    config = config.model_copy(update=found)
    if cache := os.environ.get("PHENOSCAPE_CACHE"):
        os.environ["PHENOSCAPE_CACHE"] = str(Path(cache).expanduser().absolute())
    if config.data_dir is not None:
        return config
    from phenoscape_tune.data.packed import default_cache_dir

    folder = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir()
    sample = _write_sample(config.modality, folder, None if quiet else draw_progress)
    return config.model_copy(update={"data_dir": str(sample)})


def _write_sample(modality: str, folder: Path, progress: Callable[[int, int], None] | None) -> Path:
    """The sample specimens of a modality below a folder; what the RGB sample lacks is not imported for it."""
    if modality == "multispectral":
        from phenoscape_tune.data.spectral_sample import write_multispectral_sample

        return write_multispectral_sample(folder / "sample-specimens-multispectral", progress=progress)
    if modality == "hyperspectral":
        from phenoscape_tune.data.spectral_sample import write_hyperspectral_sample

        return write_hyperspectral_sample(folder / "sample-specimens-hyperspectral", progress=progress)
    from phenoscape_tune.data.sample import write_sample

    return write_sample(folder / "sample-specimens", per_class=SAMPLE_PER_CLASS, progress=progress)


def check_storage(config: TrainConfig) -> None:
    """Raise UserError where the remote storage that a configuration names cannot be written and read."""
    if config.storage is not None:
        Storage(config.storage).check()


def warn(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def warn_of_advice(config: TrainConfig, quiet: bool) -> None:
    if not quiet:
        warn(advice(config))


def check_folder(folder: Path, own: Sequence[str], overwrite: bool, resume_hint: str) -> None:
    """Raise UserError where an output folder exists, holds what is not ours, or cannot be written.

    Changes nothing, so that it can be asked before any work is done.

    Args:
        own: names of the files and folders that may be overwritten, first the one by which such a folder is known.
        resume_hint: what to write to go on with an existing one.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, not a folder; choose another output folder")
    if _is_filled(folder):
        if not overwrite:
            raise UserError(f"{folder}: exists already; {resume_hint}, or --overwrite to start anew in its place")
        if not (folder / own[0]).is_file():
            raise UserError(f"{folder}: holds no {own[0]}, so it is not overwritten; choose another output folder")
        # Somebody's images or notes may lie beside: whatever is not ours is never deleted.
        others = sorted(e.name for e in folder.iterdir() if e.name not in own and not _is_leftover(e.name))
        if others:
            raise UserError(
                f"{folder}: also holds {', '.join(others[:5])}, which is not of an earlier result, so it is not "
                "overwritten; choose another output folder"
            )
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        # Asking for permissions is not enough: a full or read-only disk grants them too.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error


def _is_leftover(name: str) -> bool:
    """Whether a process that was killed has left this: a file written aside, or a probe of a folder."""
    return name.startswith((".preflight-", ".doctor-")) or (name.startswith(".") and name.endswith(".tmp"))


def prepare_folder(folder: Path, own: Sequence[str]) -> None:
    """Make an output folder that `check_folder` let pass, in the place of an earlier one."""
    try:
        for entry in (folder / name for name in own):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made anew ({error.strerror}); choose another output folder") from error


def _is_filled(folder: Path) -> bool:
    # A start that was killed leaves a lock and a file written aside, of no use to anyone.
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def available_cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pack_progress(done: int, total: int) -> None:
    """A progress line on standard error while images are decoded; on a terminal it stays one line."""
    _show_progress("reading", "read", "image", done, total)


def draw_progress(done: int, total: int) -> None:
    """The same while sample specimens are drawn."""
    _show_progress("drawing", "drew", "sample specimen", done, total)


def _show_progress(doing: str, did: str, what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{doing} {what}s {done:,}/{total:,}", end=end, file=sys.stderr, flush=True)
    elif done == total:
        print(f"{did} {total:,} {what}{'s' * (total != 1)}", file=sys.stderr, flush=True)


class _OnStandardError(logging.Handler):
    """What is below the log's own lines; sys.stderr is looked up each time, since a bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO:
            print(self.format(record), file=sys.stderr, flush=True)


@contextmanager
def show_details(verbose: bool) -> Iterator[None]:
    """Show, within, the project's DEBUG lines on standard error where `verbose`; training.log does not have them."""
    if not verbose:
        yield
        return
    logger, handler = logging.getLogger("phenoscape_tune"), _OnStandardError()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
