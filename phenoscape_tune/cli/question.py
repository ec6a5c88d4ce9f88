"""What a user asks of a search, from flags, files and images: resolved, and refused where it cannot be run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.cli.common import ensure_data, pack_progress, resolve_config, warn
from phenoscape_tune.cli.saved_search import SEARCH_FILE, read_search
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import find_file, flatten, merge, parse_overrides
from phenoscape_tune.search.space import SearchSpace, build_space, load_space, share_faults
from phenoscape_tune.storage import is_url
from phenoscape_tune.yaml_file import load_mapping

if TYPE_CHECKING:
    from phenoscape_tune.data.parts import Parts
    from phenoscape_tune.search.plan import Plan
    from phenoscape_tune.search.study import TrialRecord


def search_folder(args: argparse.Namespace) -> Path:
    """The absolute folder of a search."""
    if args.out and is_url(args.out):
        raise UserError(
            f"--out: {args.out} is remote, while the journal of a search is locked, appended to and synced, which "
            "needs a file system; write a local folder, and storage=URL for a copy of it there"
        )
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
        config = build_config({**config.given(), "seed": args.seed}, "--seed")
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


def look_at_data(
    space: SearchSpace, base: TrainConfig, max_epochs: int, folder: Path, quiet: bool
) -> tuple[Plan, Parts, int]:
    """Pack the images, and refuse what would fail in the first trial: labels, sizes, unreadable files, augmentations
    that have no meaning for the images. The plan's base is settled on them.

    Returns the plan, the base's images, and the most channels that a trial may have.
    """
    from phenoscape_tune.augment_checks import check_transforms
    from phenoscape_tune.data.parts import FEW_A_CLASS, open_parts, settle
    from phenoscape_tune.evaluate.objective import choose_metric
    from phenoscape_tune.search.choices import open_choices
    from phenoscape_tune.search.plan import make_plan, trial_devices
    from phenoscape_tune.search.searched_transforms import check_searched

    # The budget is checked before the images, which may be many.
    make_plan(space, base, max_epochs, folder)
    parts = open_parts(base, None if quiet else pack_progress, lambda line: warn([line]))
    base = settle(base, parts.images.recipe)
    check_transforms(base.transforms, parts.images.channels)
    check_searched(space, base, parts.images.channels)
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
    sizes = [int(v) for _, v in batch.extremes() if v is not None] if batch else []
    largest, most = max([base.batch_size, *sizes]), len(parts.split.train)
    times = base.accumulate_grad_batches * trial_devices(base)
    if largest * times > most:
        key = "parameters.batch_size" if sizes and max(sizes) == largest else "batch_size"
        told = f" ({times} of them in a step: accumulate_grad_batches, devices)" if times > 1 else ""
        raise UserError(
            f"{key}: {largest}{told} is larger than the training part of {base.data_dir} ({most} images); lower "
            f"{'the range' if sizes else 'it'}, or add images"
        )
    channels = open_choices(space, base, parts, metric, None if quiet else pack_progress, lambda line: warn([line]))
    return make_plan(space, base, max_epochs, folder, metric), parts, channels


def read_earlier_trials(args: argparse.Namespace, plan: Plan, parts: Parts) -> list[TrialRecord]:
    """The trials of `--warm-start`."""
    if not args.warm_start:
        return []
    from phenoscape_tune.search.warm_start import read_earlier

    earlier = Path(args.warm_start).expanduser().absolute()
    records = read_earlier(earlier, read_search(earlier), plan, parts.fingerprint)
    if not args.quiet:
        print(f"warm start: {len(records)} trials of {earlier} fit this space", flush=True)
    return records


def refuse_changes(args: argparse.Namespace, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError, naming the differences, where what is asked for now is not what the search was started with.

    What is not given now stays as it was then, which is said: a later version may have another default.
    """
    values = (args.config, args.trials, args.max_epochs, args.order, args.seed, args.hours, args.gpu_hours)
    asked = args.overrides or args.no_confirm or any(value is not None for value in values)
    if args.space is None and not asked:
        return
    from phenoscape_tune.data.parts import settle_like

    if args.space is None:
        raise UserError("--resume goes on with the search as it was started: leave out all but --name or --out")
    space, base, max_epochs = resolve_search(args)
    # Read anew: a search that an earlier version began lacks the keys that have come since, with their defaults.
    where = str(folder / SEARCH_FILE)
    space_then, base_then = build_space(saved["space"], where), build_config(saved["config"], where)
    config = settle_like(ensure_data(base), base_then).to_mapping()
    now = flatten({"max_epochs": max_epochs, "space": space.to_mapping(), "config": config})
    then = flatten(
        {"max_epochs": saved["max_epochs"], "space": space_then.to_mapping(), "config": base_then.to_mapping()}
    )
    changed = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    given = _given_keys(args)
    different = [key for key in changed if _is_within(key, given)]
    if different:
        lines = "\n  ".join(f"{key}: was {then.get(key)!r}, is {now.get(key)!r}" for key in different)
        raise UserError(
            f"{folder}: was started with another space or configuration:\n  {lines}\n"
            "resume it as it was started (--resume with --name or --out alone), or choose another --name"
        )
    if not args.quiet:
        warn([f"{key}: stays {then.get(key)!r}, as the search was started; is not given now" for key in changed])


def _given_keys(args: argparse.Namespace) -> set[str]:
    """Keys of `search.yaml` that flags, key=value and files give a value, which is then no default."""
    overrides = parse_overrides(args.overrides)
    file = {} if args.config is None else load_mapping(find_file(args.config, "configs"))
    config, space = merge(file, overrides), load_mapping(find_file(args.space, "search_spaces"))
    given = set(flatten({"config": config, "space": space}))
    given.add("space.parameters")  # one that is left out is a change, too
    flags = {
        "max_epochs": args.max_epochs or config.get("max_epochs") or "space.budget.max_epochs" in given,
        "config.seed": args.seed is not None,
        "space.budget.trials": args.trials,
        "space.budget.hours": args.hours,
        "space.budget.gpu_hours": args.gpu_hours,
        "space.order": args.order,
        "space.confirm": args.no_confirm,
    }
    return given | {key for key, value in flags.items() if value}


def _is_within(key: str, given: set[str]) -> bool:
    """Whether a dotted key, or one that it lies below, is among the given ones."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in given for length in range(1, len(parts) + 1))
