"""`tune.py`: search for the learning rate, batch size, temperature and augmentation strength to train with."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from phenoscape_tune.config import TrainConfig, build_config, parse_overrides, unsupported_keys
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace, build_space, load_space
from phenoscape_tune.yaml_file import dump_mapping, load_mapping

if TYPE_CHECKING:
    from phenoscape_tune.data.parts import Parts
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.plan import Plan

SEARCH_FILE = "search.yaml"
SEARCH_FILES = (
    *(SEARCH_FILE, "study.journal", "study.journal.lock", ".search.lock", "leaderboard.csv", "best.yaml"),
    *("summary.json", "trials", "logs", "best"),
)


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
    parser.add_argument("--hours", type=float, metavar="H", help="wall time (comes with a later version)")
    parser.add_argument("--gpu-hours", type=float, metavar="H", help="device time (comes with a later version)")
    parser.add_argument("--concurrent", type=_positive, metavar="N", help="trials side by side")
    parser.add_argument("--no-confirm", action="store_true", help="do not repeat the best trials with fresh seeds")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the search and of training")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with a search that was interrupted")
    again.add_argument("--overwrite", action="store_true", help="delete an earlier search of the same name")
    parser.add_argument("--warm-start", metavar="DIR", help="learn from an earlier search (comes with a later version)")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_tune, argv)


def _tune(argv: Sequence[str]) -> int:
    args = build_parser().parse_intermixed_args(argv)
    for flag in ("hours", "gpu_hours", "warm_start", "address", "doctor"):
        if getattr(args, flag) is not None and getattr(args, flag) is not False:
            raise UserError(f"--{flag.replace('_', '-')}: does nothing in this version yet; leave it out")
    folder = search_folder(args)
    if args.resume:
        return _resume(args, folder)
    space, base, max_epochs = resolve_search(args)
    if args.dry_run:
        return _dry_run(args, space, base, max_epochs, folder)
    from phenoscape_tune.search.plan import make_plan

    check_supported(base, args.config or "command line")
    warn_of_advice(base, args.quiet)
    check_folder(folder, SEARCH_FILES, args.overwrite, f"go on with it by '{_resume_command(folder)}'")
    plan = make_plan(space, ensure_data(base), max_epochs, folder)
    parts = _check_data(plan, args.quiet)
    devices = _start_devices(args, plan, parts)
    # Only now, with all that the user wrote checked, may an earlier result be deleted.
    if folder.is_dir():
        with _one_at_a_time(folder):
            prepare_folder(folder, SEARCH_FILES)
    else:
        prepare_folder(folder, SEARCH_FILES)
    _write_search(plan, parts)
    with _one_at_a_time(folder):
        return _run(args, open_conductor(plan), devices)


def _resume(args: argparse.Namespace, folder: Path) -> int:
    from phenoscape_tune.search.plan import make_plan

    saved = _read_search(folder)
    _refuse_changes(args, saved, folder)
    space, base = build_space(saved["space"], str(folder / SEARCH_FILE)), build_config(saved["config"], SEARCH_FILE)
    if args.dry_run:
        return _dry_run(args, space, base, int(saved["max_epochs"]), folder)
    plan = make_plan(space, base, int(saved["max_epochs"]), folder)
    with _one_at_a_time(folder):
        conductor = open_conductor(plan)
        if conductor.settle():
            return _finish(conductor)
        parts = _check_data(plan, args.quiet)
        if parts.fingerprint != saved["data"]:
            raise UserError(
                f"{base.data_dir}: holds other images, classes or parts than when the search in {folder} was started, "
                "so its trials cannot be compared with new ones; start a new search (--name or --overwrite)"
            )
        return _run(args, conductor, _start_devices(args, plan, parts))


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
    budget = space.budget.model_copy(update={"trials": args.trials} if args.trials else {})
    if budget.hours or budget.gpu_hours:
        raise UserError(f"{args.space}: budget.hours and budget.gpu_hours do nothing in this version yet; use trials")
    changes: dict[str, Any] = {"budget": budget, "order": args.order or space.order}
    if args.no_confirm:
        changes["confirm"] = None
    # key=value beats the space file's budget, a flag beats both.
    length = args.max_epochs or overrides.get("max_epochs") or budget.max_epochs or config.max_epochs
    return space.model_copy(update=changes), config, int(length)


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


def _check_data(plan: Plan, quiet: bool) -> Parts:
    """Pack the images, and refuse what would fail in the first trial: labels, sizes, unreadable files."""
    from phenoscape_tune.data.parts import open_parts
    from phenoscape_tune.evaluate.objective import choose_metric

    parts = open_parts(plan.base, None if quiet else pack_progress, lambda line: warn([line]))
    choose_metric(plan.space.objective.metric, parts.labels is not None)
    batch = plan.space.parameters.get("batch_size")
    largest = max((int(v) for _, v in batch.extremes() if v is not None), default=0) if batch else 0
    if largest > len(parts.split.train):
        raise UserError(
            f"parameters.batch_size: {largest} is larger than the training part of {plan.base.data_dir} "
            f"({len(parts.split.train)} images); lower the range, or add images"
        )
    return parts


@dataclass(frozen=True)
class Devices:
    """What the trials run on: how many side by side, and the CPUs and GPUs of each."""

    concurrent: int
    cpus: int
    gpus: float


def _start_devices(args: argparse.Namespace, plan: Plan, parts: Parts) -> Devices:
    """Start Ray, print the plan, and build the network once. Raises UserError where it cannot run as asked."""
    from phenoscape_tune.search.display import describe_plan
    from phenoscape_tune.search.plan import share_devices

    cpus = available_cpus()
    share_devices(cpus, 0, args.concurrent)  # refused before Ray takes its ten seconds
    if not args.quiet:
        print("starting Ray ...", file=sys.stderr, flush=True)
    from phenoscape_tune.search.runner import check_on_worker, count_gpus, start_ray

    start_ray(cpus, args.verbose)
    gpus = 0 if plan.base.accelerator == "cpu" else count_gpus()
    devices = Devices(*share_devices(cpus, gpus, args.concurrent))
    if not args.quiet:
        print("\n".join(describe_plan(plan, _devices(gpus), parts.describe(), devices.concurrent)), flush=True)
    check_on_worker(plan.base, devices.gpus)
    return devices


def open_conductor(plan: Plan) -> Conductor:
    """The conductor of a search, as far as its journal knows."""
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.study import Study

    return Conductor(plan, Study(plan.folder / "study.journal", plan.space.parameters, plan.seed))


def _run(args: argparse.Namespace, conductor: Conductor, devices: Devices) -> int:
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.runner import run_search
    from phenoscape_tune.search.tensorboard import write_experiment

    conductor.gpus_per_trial = devices.gpus
    try:
        write_experiment(conductor.plan)
        with Display(conductor, args.quiet, devices.concurrent) as display:
            ended = run_search(conductor, display, devices.concurrent, devices.cpus, devices.gpus, verbose=args.verbose)
    except KeyboardInterrupt:
        ended = False
    if not ended:
        print(f"\ninterrupted; everything reported is kept. Go on with:\n  {_resume_command(conductor.plan.folder)}")
        return INTERRUPTED
    return _finish(conductor)


def _finish(conductor: Conductor) -> int:
    from phenoscape_tune.search.display import describe_outcome
    from phenoscape_tune.search.report import decide, write_best, write_leaderboard, write_summary

    outcome = decide(conductor)
    folder = conductor.plan.folder
    best = folder / "best.yaml" if outcome is not None else None
    # A finished search is shown as it ended: what was deleted since must not weaken what stands there.
    if not (folder / "summary.json").exists():
        if outcome is not None:
            write_best(conductor.plan, outcome)
        write_leaderboard(conductor)
        write_summary(conductor, outcome)
    print("\n".join(["", *describe_outcome(conductor.plan, outcome, best)]))
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


def _write_search(plan: Plan, parts: Parts) -> None:
    from phenoscape_tune.files import write_whole
    from phenoscape_tune.search.report import versions

    content = {
        "seed": plan.seed,
        "max_epochs": plan.rungs.max_epochs,
        "data": parts.fingerprint,
        "space": plan.space.to_mapping(),
        "config": plan.base.to_mapping(),
        "versions": versions(),
    }
    write_whole(plan.folder / SEARCH_FILE, dump_mapping(content))


def _read_search(folder: Path) -> dict[str, Any]:
    if not (folder / SEARCH_FILE).is_file():
        raise UserError(f"{folder}: holds no {SEARCH_FILE}, so there is no search to resume; leave out --resume")
    saved = load_mapping(folder / SEARCH_FILE)
    missing = [key for key in ("seed", "max_epochs", "data", "space", "config") if key not in saved]
    if missing:
        raise UserError(f"{folder / SEARCH_FILE}: lacks {', '.join(missing)}; it cannot be resumed, start a new search")
    return saved


def _refuse_changes(args: argparse.Namespace, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError, naming the differences, where what is asked for now is not what the search was started with."""
    values = (args.config, args.trials, args.max_epochs, args.order, args.seed)
    asked = args.overrides or args.no_confirm or any(value is not None for value in values)
    if args.space is None and not asked:
        return
    if args.space is None:
        raise UserError("--resume goes on with the search as it was started: leave out all but --name or --out")
    space, base, max_epochs = resolve_search(args)
    now = _flatten({"max_epochs": max_epochs, "space": space.to_mapping(), "config": ensure_data(base).to_mapping()})
    then = _flatten({key: saved[key] for key in ("max_epochs", "space", "config")})
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


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _resume_command(folder: Path) -> str:
    return f"python scripts/tune.py --resume --out {shlex.quote(str(folder))}"


if __name__ == "__main__":
    sys.exit(main())
