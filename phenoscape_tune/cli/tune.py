"""`tune.py`: search for the learning rate, batch size, temperature and augmentation strength to train with."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.cli.common import (
    DONE,
    INTERRUPTED,
    OTHER_FAULT,
    available_cpus,
    check_folder,
    check_supported,
    ensure_data,
    pack_progress,
    prepare_folder,
    resolve_config,
    run_command,
    warn,
    warn_of_advice,
)
from phenoscape_tune.cli.saved_search import (
    SEARCH_FILE,
    SEARCH_FILES,
    read_search,
    resume_command,
    saved_plan,
    write_search,
)
from phenoscape_tune.config import TrainConfig, build_config, flatten, parse_overrides, unsupported_keys
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace, build_space, load_space, share_faults

if TYPE_CHECKING:
    from phenoscape_tune.data.parts import Parts
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
    again.add_argument("--overwrite", action="store_true", help="delete an earlier search of the same name")
    parser.add_argument("--warm-start", metavar="DIR", help="learn from the trials of an earlier search")
    parser.add_argument("--address", metavar="HOST:PORT", help="run on a Ray cluster (comes with a later version)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--doctor", action="store_true", help="check the installation (comes with a later version)")
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
    for flag in ("address", "doctor"):
        if getattr(args, flag) is not None and getattr(args, flag) is not False:
            raise UserError(f"--{flag.replace('_', '-')}: does nothing in this version yet; leave it out")
    folder = search_folder(args)
    if args.resume:
        return _resume(args, folder)
    space, base, max_epochs = resolve_search(args)
    if args.dry_run:
        return _dry_run(args, space, base, max_epochs, folder)
    check_supported(base, args.config or "command line")
    warn_of_advice(base, args.quiet)
    check_folder(folder, SEARCH_FILES, args.overwrite, f"go on with it by '{resume_command(folder)}'")
    plan, parts = _look_at_data(space, ensure_data(base), max_epochs, folder, args.quiet)
    warm = _read_earlier(args, plan, parts)
    devices = _start_devices(args, plan)
    plan = _measure_batch_sizes(plan, parts, devices, args.quiet)
    _show_plan(args, plan, parts, devices)
    # Only now, with all that the user wrote checked, may an earlier result be deleted.
    if folder.is_dir():
        with _one_at_a_time(folder):
            prepare_folder(folder, SEARCH_FILES)
    else:
        prepare_folder(folder, SEARCH_FILES)
    write_search(plan, parts)
    with _one_at_a_time(folder):
        return _run(args, plan, devices, warm)


def _resume(args: argparse.Namespace, folder: Path) -> int:
    saved = read_search(folder)
    if args.warm_start:
        raise UserError("--warm-start: the search has begun; earlier trials can only be told to a new one")
    _refuse_changes(args, saved, folder)
    space, base = build_space(saved["space"], str(folder / SEARCH_FILE)), build_config(saved["config"], SEARCH_FILE)
    if args.dry_run:
        return _dry_run(args, space, base, int(saved["max_epochs"]), folder)
    with _one_at_a_time(folder):
        plan = saved_plan(folder, saved)
        conductor = open_conductor(plan)
        if conductor.settle():
            return _finish(conductor)
        _, parts = _look_at_data(space, base, int(saved["max_epochs"]), folder, args.quiet)
        if parts.fingerprint != saved["data"]:
            raise UserError(
                f"{base.data_dir}: holds other images, classes or parts than when the search in {folder} was started, "
                "so its trials cannot be compared with new ones; start a new search (--name or --overwrite)"
            )
        devices = _start_devices(args, plan)
        _show_plan(args, plan, parts, devices)
        return _run(args, plan, devices)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a search's folder. Raises UserError where another process runs the same search."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".search.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is running this search; wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def search_folder(args: argparse.Namespace) -> Path:
    """The absolute folder of a search."""
    if args.out:
        return Path(args.out).expanduser().absolute()
    if args.name is None and args.space is None:
        raise UserError("--space: say what to search, for example --space lr_temp.yaml")
    name = args.name or Path(args.space).name.removesuffix(".yaml")
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--name: '{name}' is not a plain folder name; use --out for a path")
    return (Path("outputs") / name).absolute()


def resolve_search(args: argparse.Namespace) -> tuple[SearchSpace, TrainConfig, int]:
    """Space, base configuration and length of a trial, in epochs: flags win, then key=value, then the files."""
    if args.space is None:
        raise UserError("--space: say what to search, for example --space lr_temp.yaml")
    faults = []
    space: SearchSpace | None = None
    config: TrainConfig | None = None
    overrides = parse_overrides(args.overrides)
    try:
        space, _ = load_space(args.space)
    except UserError as error:
        faults.append(str(error))
    try:
        config = resolve_config(args.config, overrides)
    except UserError as error:
        faults.append(str(error))
    if space is None or config is None:
        raise UserError("\n".join(faults))
    if args.seed is not None:
        config = build_config({**config.to_mapping(), "seed": args.seed}, "--seed")
    flags = {"trials": args.trials, "hours": args.hours, "gpu_hours": args.gpu_hours}
    budget = space.budget.model_copy(update={key: value for key, value in flags.items() if value is not None})
    changes: dict[str, Any] = {"budget": budget, "order": args.order or space.order}
    if args.no_confirm:
        changes["confirm"] = None
    # key=value beats the space file's budget, a flag beats both.
    length = args.max_epochs or overrides.get("max_epochs") or budget.max_epochs or config.max_epochs
    space = space.model_copy(update=changes)
    if faults := share_faults(space):  # of the order that a flag chose
        raise UserError("\n".join(f"{args.space}: {fault}" for fault in faults))
    return space, config, int(length)


def _dry_run(args: argparse.Namespace, space: SearchSpace, base: TrainConfig, max_epochs: int, folder: Path) -> int:
    from phenoscape_tune.search.display import describe_plan
    from phenoscape_tune.search.plan import make_plan, share_devices

    plan = make_plan(space, base, max_epochs, folder)
    gpus = _visible_gpus() if base.accelerator != "cpu" else 0
    try:
        concurrent, _, _ = share_devices(available_cpus(), gpus, args.concurrent)
    except UserError as error:  # of this machine, which need not be the one that will run it
        warn([str(error)])
        concurrent = args.concurrent
    data = f"data: {base.data_dir or 'generated sample specimens'} (not looked at)"
    print("\n".join(describe_plan(plan, _devices(gpus), data, concurrent)))
    warn(unsupported_keys(base))
    warn_of_advice(base, args.quiet)
    if base.accelerator == "gpu" and not gpus:
        warn(["accelerator: gpu: this machine has no GPU"])
    if base.data_dir and not Path(base.data_dir).is_dir():
        warn([f"data_dir: {base.data_dir}: no such folder on this machine"])
    return DONE


def _look_at_data(
    space: SearchSpace, base: TrainConfig, max_epochs: int, folder: Path, quiet: bool
) -> tuple[Plan, Parts]:
    """Pack the images, and refuse what would fail in the first trial: labels, sizes, unreadable files."""
    from phenoscape_tune.data.parts import FEW_A_CLASS, open_parts
    from phenoscape_tune.evaluate.objective import choose_metric
    from phenoscape_tune.search.plan import make_plan

    # The budget is checked before the images, which may be many.
    make_plan(space, base, max_epochs, folder)
    parts = open_parts(base, None if quiet else pack_progress, lambda line: warn([line]))
    metric = choose_metric(space.objective.metric, parts.labels is not None, parts.few_labels)
    if metric.name == "probe_accuracy" and parts.partly_labelled and not len(parts.labelled(parts.split.val)):
        raise UserError(
            f"objective.metric: probe_accuracy: no image of the validation part is labelled in {base.labels}; label "
            "three images of each class or more, or write metric: knn_accuracy"
        )
    if parts.few_labels and space.objective.metric == "auto":
        told = (
            f"objective: {metric.title}: below {FEW_A_CLASS} labelled images a class labels ranked trials less surely "
        )
        warn([f"{told}when measured (docs/objectives.md); to use them all the same, write metric: knn_accuracy"])
    batch = space.parameters.get("batch_size")
    largest = max((int(v) for _, v in batch.extremes() if v is not None), default=0) if batch else 0
    if largest > len(parts.split.train):
        raise UserError(
            f"parameters.batch_size: {largest} is larger than the training part of {base.data_dir} "
            f"({len(parts.split.train)} images); lower the range, or add images"
        )
    return make_plan(space, base, max_epochs, folder, metric), parts


def _read_earlier(args: argparse.Namespace, plan: Plan, parts: Parts) -> list[TrialRecord]:
    """The trials of `--warm-start`."""
    if not args.warm_start:
        return []
    from phenoscape_tune.search.warm_start import read_earlier

    earlier = Path(args.warm_start).expanduser().absolute()
    records = read_earlier(earlier, read_search(earlier), plan, parts.fingerprint)
    if not args.quiet:
        print(f"warm start: {len(records)} trials of {earlier} fit this space", flush=True)
    return records


@dataclass(frozen=True)
class Devices:
    """What the trials run on: how many side by side, and the CPUs and GPUs of each."""

    concurrent: int
    cpus: int
    gpus: float
    total_gpus: int
    since: float  # when the command began to use them, by the monotonic clock


def _start_devices(args: argparse.Namespace, plan: Plan) -> Devices:
    """Start Ray, and build the network once. Raises UserError where it cannot run as asked."""
    from phenoscape_tune.search.plan import share_devices

    since, cpus = time.monotonic(), available_cpus()
    share_devices(cpus, 0, args.concurrent)  # refused before Ray takes its ten seconds
    if not args.quiet:
        print("starting Ray ...", file=sys.stderr, flush=True)
    from phenoscape_tune.search.runner import check_on_worker, count_gpus, start_ray

    start_ray(cpus, args.verbose)
    gpus = 0 if plan.base.accelerator == "cpu" else count_gpus()
    if plan.space.budget.gpu_hours and not gpus:
        raise UserError("budget.gpu_hours: no GPU is used here, so no time of one is ever spent; write hours")
    devices = Devices(*share_devices(cpus, gpus, args.concurrent), total_gpus=gpus, since=since)
    check_on_worker(plan.base, devices.gpus)
    return devices


def _measure_batch_sizes(plan: Plan, parts: Parts, devices: Devices, quiet: bool) -> Plan:
    """The plan with what the device holds and how fast it is at each batch size, where the batch size is searched.

    Measured before the trials, which would share the device with it.
    """
    batch = plan.space.parameters.get("batch_size")
    bounds = None if batch is None else batch.bounds
    if bounds is None:
        return plan
    from phenoscape_tune.search.runner import measure_on_worker

    if not quiet:
        print("measuring batch sizes ...", file=sys.stderr, flush=True)
    up_to = min(int(bounds[1]), len(parts.split.train))
    return replace(
        plan,
        capacity=measure_on_worker(plan.base, parts.channels, up_to, devices.cpus, devices.gpus, devices.concurrent),
    )


def _show_plan(args: argparse.Namespace, plan: Plan, parts: Parts, devices: Devices) -> None:
    from phenoscape_tune.search.display import describe_plan

    if not args.quiet:
        lines = describe_plan(plan, _devices(devices.total_gpus), parts.describe(), devices.concurrent)
        print("\n".join(lines), flush=True)


def open_conductor(plan: Plan, devices: Devices | None = None, warm: Sequence[TrialRecord] = ()) -> Conductor:
    """The conductor of a search, as far as its journal knows; without devices it can tell, but not go on."""
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.spending import Spending
    from phenoscape_tune.search.study import Study, read_trials

    journal, spending = plan.folder / "study.journal", None
    if devices is not None:
        # Starting Ray and measuring belong to the time of a search, and so do its earlier parts.
        earlier = max((trial.elapsed for trial in read_trials(journal)), default=0.0) if journal.exists() else 0.0
        before = earlier + time.monotonic() - devices.since
        spending = Spending(plan.space.budget, devices.concurrent, devices.gpus, before)
    study = Study(journal, plan.space.parameters, plan.seed, plan.objective.higher_is_better)
    return Conductor(plan, study, warm=warm, spending=spending)


def _run(args: argparse.Namespace, plan: Plan, devices: Devices, warm: Sequence[TrialRecord] = ()) -> int:
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.runner import run_search
    from phenoscape_tune.search.tensorboard import write_experiment

    conductor = open_conductor(plan, devices, warm)
    try:
        write_experiment(conductor.plan)
        with Display(conductor, args.quiet, devices.concurrent) as display:
            ended = run_search(conductor, display, devices.concurrent, devices.cpus, devices.gpus, verbose=args.verbose)
    except KeyboardInterrupt:
        ended = False
    if not ended:
        print(f"\ninterrupted; everything reported is kept. Go on with:\n  {resume_command(conductor.plan.folder)}")
        return INTERRUPTED
    return _finish(conductor)


def _finish(conductor: Conductor) -> int:
    from phenoscape_tune.search.display import describe_outcome
    from phenoscape_tune.search.report import decide, write_best, write_leaderboard, write_summary
    from phenoscape_tune.search.report_page import write_report
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
    print("\n".join(["", *describe_outcome(conductor, outcome, best)]))
    return DONE if outcome else OTHER_FAULT


def _devices(gpus: int) -> str:
    return f"{gpus} GPU{'s' * (gpus > 1)}" if gpus else f"{available_cpus()} CPU cores"


def _visible_gpus() -> int:
    """GPUs of this machine, asked of the driver's tool so that neither torch nor Ray is needed."""
    import os

    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([item for item in visible.split(",") if item.strip() and item.strip() != "-1"])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _refuse_changes(args: argparse.Namespace, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError, naming the differences, where what is asked for now is not what the search was started with."""
    values = (args.config, args.trials, args.max_epochs, args.order, args.seed, args.hours, args.gpu_hours)
    asked = args.overrides or args.no_confirm or any(value is not None for value in values)
    if args.space is None and not asked:
        return
    if args.space is None:
        raise UserError("--resume goes on with the search as it was started: leave out all but --name or --out")
    space, base, max_epochs = resolve_search(args)
    now = flatten({"max_epochs": max_epochs, "space": space.to_mapping(), "config": ensure_data(base).to_mapping()})
    then = flatten({key: saved[key] for key in ("max_epochs", "space", "config")})
    different = [
        f"{key}: was {then.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*now, *then})
        if now.get(key) != then.get(key)
    ]
    if different:
        lines = "\n  ".join(different)
        raise UserError(
            f"{folder}: was started with another space or configuration:\n  {lines}\n"
            "resume it as it was started (--resume with --name or --out alone), or choose another --name"
        )


if __name__ == "__main__":
    sys.exit(main())
