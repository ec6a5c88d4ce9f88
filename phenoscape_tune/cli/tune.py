"""`tune.py`: search for the learning rate, batch size, temperature and augmentation strength to train with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import (
    DONE,
    INTERRUPTED,
    OTHER_FAULT,
    check_folder,
    check_storage,
    ensure_data,
    prepare_folder,
    run_command,
    warn_of_advice,
)
from phenoscape_tune.cli.devices import (
    Devices,
    find_address,
    measure_batch_sizes,
    start_devices,
)
from phenoscape_tune.cli.doctor import examine
from phenoscape_tune.cli.preview import show_dry_run, show_plan
from phenoscape_tune.cli.question import (
    look_at_data,
    read_earlier_trials,
    refuse_changes,
    resolve_search,
    search_folder,
)
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
from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.mirror import Mirror

if TYPE_CHECKING:
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.plan import Plan
    from phenoscape_tune.search.study import TrialRecord


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tune.py",
        description="Search for the learning rate, batch size, temperature and augmentation strength with which to "
        "train a SimCLR encoder on your images. Without --config and data_dir it runs on generated sample specimens.",
    )
    parser.add_argument("--space", metavar="FILE", help="search space: a path, or a name in search_spaces/")
    parser.add_argument("--config", metavar="FILE", help="base configuration: a path, or a name in configs/")
    parser.add_argument("--name", help="name of the search (default: the space file's)")
    parser.add_argument("--out", metavar="DIR", help="folder of the search (default: outputs/<name>)")
    parser.add_argument(
        "--order", choices=("staged", "joint"), help="stage by stage as documented, or all keys at once"
    )
    parser.add_argument("--trials", type=_positive, metavar="N", help="trials to start, confirmations not counted")
    parser.add_argument("--max-epochs", type=_positive, metavar="N", help="length of a trial")
    parser.add_argument("--hours", type=_time, metavar="H", help="wall time, confirmation included")
    parser.add_argument("--gpu-hours", type=_time, metavar="H", help="time of all GPUs together")
    parser.add_argument("--concurrent", type=_positive, metavar="N", help="trials side by side")
    parser.add_argument("--no-confirm", action="store_true", help="do not repeat the best trials with fresh seeds")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the search and of training")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a search that was interrupted")
    again.add_argument(
        "--resume-or-start", action="store_true", help="go on where the search was begun, else start it (for jobs)"
    )
    again.add_argument("--overwrite", action="store_true", help="delete an earlier search of the same name")
    parser.add_argument("--warm-start", metavar="DIR", help="learn from the trials of an earlier search")
    parser.add_argument(
        "--address", metavar="auto|HOST:PORT", help="run on a Ray cluster that runs already (default: RAY_ADDRESS)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--doctor", action="store_true", help="check installation, devices, storage, data and cluster")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print the result only")
    loud.add_argument("-v", "--verbose", action="store_true", help="show what Ray says too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key, e.g. data_dir=birds")
    return parser


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _time(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of hours above 0")
    return hours


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_tune, argv)


def _tune(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    if args.doctor:
        return examine(args)
    folder = search_folder(args)
    try:
        return _search(args, folder)
    except NoSpaceLeft as error:
        if not (folder / SEARCH_FILE).is_file():
            raise
        kept = "everything reported is kept. Free some, then go on with:"
        print(f"error: {error}; {kept}\n  {resume_command(folder, args.address)}", file=sys.stderr)
        return OTHER_FAULT


def _search(args: argparse.Namespace, folder: Path) -> int:
    if args.resume or (args.resume_or_start and (folder / SEARCH_FILE).is_file()):
        return _resume(args, folder)
    space, base, max_epochs = resolve_search(args)
    if args.dry_run:
        show_dry_run(args, space, base, max_epochs, folder)
        return DONE
    warn_of_advice(base, args.quiet)
    hint = f"go on with it by '{resume_command(folder)}'"
    check_folder(folder, SEARCH_FILES, args.overwrite, hint)
    plan, parts, channels = look_at_data(space, ensure_data(base, args.quiet), max_epochs, folder, args.quiet)
    warm = read_earlier_trials(args, plan, parts)
    check_storage(base)
    devices = start_devices(args, plan, channels)
    plan = measure_batch_sizes(plan, channels, devices, args.quiet)
    show_plan(args, plan, parts, devices)
    with _one_at_a_time(folder):
        # Only now, with all that the user wrote checked, may an earlier result be deleted; and not one that another
        # process has begun there meanwhile.
        check_folder(folder, SEARCH_FILES, args.overwrite, hint)
        prepare_folder(folder, [name for name in SEARCH_FILES if name != LOCK_FILE])
        write_search(plan, parts)
        return _run(args, plan, devices, warm)


def _resume(args: argparse.Namespace, folder: Path) -> int:
    saved = read_search(folder)
    if args.warm_start and args.resume:
        raise UserError("--warm-start: the search has begun; earlier trials can only be told to a new one")
    refuse_changes(args, saved, folder)
    plan = saved_plan(folder, saved)
    space, base, max_epochs = plan.space, plan.base, plan.rungs.max_epochs
    if args.dry_run:
        show_dry_run(args, space, base, max_epochs, folder)
        return DONE
    with _one_at_a_time(folder):
        conductor = open_conductor(plan)
        if conductor.settle():
            # One that has been told needs no storage, which may be out of reach by now.
            told = (folder / "summary.json").exists()
            with Mirror(None, folder) if told else open_mirror(conductor) as mirror:
                return _finish(conductor, mirror)
        _, parts, channels = look_at_data(space, base, max_epochs, folder, args.quiet)
        if parts.fingerprint != saved["data"]:
            raise UserError(
                f"{base.data_dir}: holds other images, classes or parts than when the search in {folder} was started, "
                "so its trials cannot be compared with new ones; start a new search (--name or --overwrite)"
            )
        check_storage(base)
        devices = start_devices(args, plan, channels)
        show_plan(args, plan, parts, devices, ended=sum(record.ended for record in conductor.records()))
        return _run(args, plan, devices)


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


def _run(args: argparse.Namespace, plan: Plan, devices: Devices, warm: Sequence[TrialRecord] = ()) -> int:
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.runner import run_search
    from phenoscape_tune.search.tensorboard import write_experiment

    conductor = open_conductor(plan, devices, warm)
    again = resume_command(conductor.plan.folder, args.address)
    advice = f"interrupted; everything reported is kept. Go on with:\n  {again}"
    with open_mirror(conductor) as mirror:
        try:
            write_experiment(conductor.plan)
            with Display(conductor, args.quiet, devices.concurrent) as display:
                shares = (devices.concurrent, devices.cpus, devices.gpus)
                how = {"verbose": args.verbose, "advice": advice, "joined": find_address(args.address) is not None}
                ended = run_search(conductor, display, *shares, mirror=mirror, **how)
        except KeyboardInterrupt:
            ended = False
        if not ended:
            print(f"\n{advice}")
            return INTERRUPTED
        return _finish(conductor, mirror)


def _finish(conductor: Conductor, mirror: Mirror) -> int:
    from phenoscape_tune.search.display import describe_outcome
    from phenoscape_tune.search.report import decide, write_best, write_leaderboard, write_summary
    from phenoscape_tune.search.report_page import write_report
    from phenoscape_tune.search.retention import Retention
    from phenoscape_tune.search.tensorboard import write_pictures

    outcome = decide(conductor)
    folder = conductor.plan.folder
    best = folder / "best.yaml" if outcome is not None else None
    # A finished search is shown as it ended: what was deleted since must not weaken what stands there.
    if not (folder / "summary.json").exists():
        if outcome is not None:
            write_best(conductor.plan, outcome)
        write_leaderboard(conductor)
        write_report(conductor, outcome)
        write_pictures(conductor, outcome)
        write_summary(conductor, outcome)
    Retention(conductor, mirror).sweep(None if outcome is None else outcome.best.record.name)
    print("\n".join(["", *describe_outcome(conductor, outcome, best)]))
    return DONE if outcome else OTHER_FAULT


if __name__ == "__main__":
    sys.exit(main())
