"""A search from what is asked of it to its outcome, for `tune.py` and for `phenoscape_tune.tune` alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import check_folder, check_storage, ensure_data, prepare_folder, warn_of_advice
from phenoscape_tune.cli.devices import Devices, measure_batch_sizes, start_devices
from phenoscape_tune.cli.preview import show_dry_run, show_plan
from phenoscape_tune.cli.question import (
    look_at_data,
    read_earlier_trials,
    refuse_changes,
    resolve_search,
    search_folder,
)
from phenoscape_tune.cli.request import SearchRequest
from phenoscape_tune.cli.saved_search import (
    LOCK_FILE,
    SEARCH_FILE,
    SEARCH_FILES,
    open_conductor,
    read_search,
    resume_command,
    saved_plan,
    write_search,
)
from phenoscape_tune.cli.search_copy import open_mirror
from phenoscape_tune.errors import Interrupted, NoResult, NoSpaceLeft, UserError
from phenoscape_tune.mirror import Mirror

if TYPE_CHECKING:
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.plan import Plan
    from phenoscape_tune.search.record import TrialRecord
    from phenoscape_tune.search.verdict import Outcome


@dataclass(frozen=True)
class Found:
    """A search that has ended, and its outcome; None where no trial was valid."""

    conductor: Conductor
    outcome: Outcome | None

    def describe(self) -> list[str]:
        """The outcome line by line: baseline, winner, gain, and what to go on with."""
        from phenoscape_tune.search.display import describe_outcome

        best = None if self.outcome is None else self.conductor.plan.folder / "best.yaml"
        return describe_outcome(self.conductor, self.outcome, best)


def search(asked: SearchRequest) -> Found:
    """Run a search, or go on with it, to its end.

    Raises UserError where it cannot be run as asked, NoResult where a disk is full, Interrupted as its name says.
    """
    folder = search_folder(asked)
    try:
        return _resume(asked, folder) if _goes_on(asked, folder) else _start(asked, folder)
    except NoSpaceLeft as error:
        if not (folder / SEARCH_FILE).is_file():
            raise
        kept = "everything reported is kept. Free some, then go on with:"
        raise NoResult(f"{error}; {kept}\n  {resume_command(folder, asked.address)}") from error


def preview(asked: SearchRequest) -> None:
    """Print the plan and start nothing. Raises UserError for what can be refused without the images."""
    folder = search_folder(asked)
    if _goes_on(asked, folder):
        plan = _read_plan(asked, folder)[0]
        show_dry_run(asked, plan.space, plan.base, plan.rungs.max_epochs, folder)
    else:
        show_dry_run(asked, *resolve_search(asked), folder)


def _goes_on(asked: SearchRequest, folder: Path) -> bool:
    return asked.resume or (asked.resume_or_start and (folder / SEARCH_FILE).is_file())


def _start(asked: SearchRequest, folder: Path) -> Found:
    space, base, max_epochs = resolve_search(asked)
    warn_of_advice(base, asked.quiet)
    hint = f"go on with it by '{resume_command(folder)}'"
    check_folder(folder, SEARCH_FILES, asked.overwrite, hint)
    plan, parts, channels = look_at_data(space, ensure_data(base, asked.quiet), max_epochs, folder, asked.quiet)
    warm = read_earlier_trials(asked, plan, parts)
    check_storage(base)
    devices = start_devices(asked, plan, channels)
    plan = measure_batch_sizes(plan, channels, devices, asked.quiet)
    show_plan(asked, plan, parts, devices, warm=len(warm))
    with _one_at_a_time(folder):
        # Only now, with all that the user wrote checked, may an earlier result be deleted; and not one that another
        # process has begun there meanwhile.
        check_folder(folder, SEARCH_FILES, asked.overwrite, hint)
        prepare_folder(folder, [name for name in SEARCH_FILES if name != LOCK_FILE])
        write_search(plan, parts)
        return _run(asked, plan, devices, warm)


def _read_plan(asked: SearchRequest, folder: Path) -> tuple[Plan, str]:
    """The plan of the search in a folder, and the fingerprint of its images."""
    saved = read_search(folder)
    if asked.warm_start and asked.resume:
        raise UserError("--warm-start: the search has begun; earlier trials can only be told to a new one")
    refuse_changes(asked, saved, folder)
    return saved_plan(folder, saved), saved["data"]


def _resume(asked: SearchRequest, folder: Path) -> Found:
    plan, fingerprint = _read_plan(asked, folder)
    base = plan.base
    with _one_at_a_time(folder):
        conductor = open_conductor(plan)
        if conductor.settle():
            # One that has been told needs no storage, which may be out of reach by now.
            told = (folder / "summary.json").exists()
            with Mirror(None, folder) if told else open_mirror(conductor) as mirror:
                return finish(conductor, mirror)
        if (folder / "summary.json").exists():
            raise UserError(
                f"{folder}: was finished by an earlier version, which gave its stages other numbers of trials; its "
                "result stands there (report.html, best.yaml) and is left as it is; start a new one for more (--name)"
            )
        _, parts, channels = look_at_data(plan.space, base, plan.rungs.max_epochs, folder, asked.quiet)
        if parts.fingerprint != fingerprint:
            raise UserError(
                f"{base.data_dir}: holds other images, classes or parts than when the search in {folder} was started, "
                "so its trials cannot be compared with new ones; start a new search (--name or --overwrite)"
            )
        check_storage(base)
        devices = start_devices(asked, plan, channels)
        ended = sum(record.ended for record in conductor.records())
        show_plan(asked, plan, parts, devices, ended, len(conductor.warm))
        return _run(asked, plan, devices)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a search's folder. Raises UserError where another process runs the same search."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is running this search; wait for it, or end it") from None
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}), and a search is locked and judged there; give "
            "the folder back its permissions, or copy it to where you may write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _run(asked: SearchRequest, plan: Plan, devices: Devices, warm: Sequence[TrialRecord] = ()) -> Found:
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.runner import run_search
    from phenoscape_tune.search.tensorboard import write_experiment

    conductor = open_conductor(plan, devices, warm)
    again = resume_command(conductor.plan.folder, asked.address)
    advice = f"interrupted; everything reported is kept. Go on with:\n  {again}"
    with open_mirror(conductor) as mirror:
        try:
            write_experiment(conductor.plan)
            with Display(conductor, asked.quiet, devices.concurrent, asked.verbose) as display:
                ended = run_search(
                    conductor, display, devices.concurrent, devices.cpus, devices.gpus, advice=advice,
                    mirror=mirror, joined=devices.joined,
                )  # fmt: skip
            if ended:
                return finish(conductor, mirror)
        except KeyboardInterrupt:
            raise Interrupted(advice) from None
        raise Interrupted(advice)


def finish(conductor: Conductor, mirror: Mirror) -> Found:
    """Decide, and write what is found, once; a finished search is left as it stands."""
    from phenoscape_tune.search.report import write_best, write_leaderboard, write_summary
    from phenoscape_tune.search.report_page import write_report
    from phenoscape_tune.search.retention import Retention
    from phenoscape_tune.search.tensorboard import write_pictures
    from phenoscape_tune.search.verdict import decide

    outcome = decide(conductor)
    # A finished search is shown as it ended: what was deleted since must not weaken what stands there.
    if not (conductor.plan.folder / "summary.json").exists():
        if outcome is not None:
            write_best(conductor.plan, outcome)
        write_leaderboard(conductor)
        write_report(conductor, outcome)
        write_pictures(conductor, outcome)
        write_summary(conductor, outcome)
    Retention(conductor, mirror).sweep(None if outcome is None else outcome.best.record.name)
    return Found(conductor, outcome)
