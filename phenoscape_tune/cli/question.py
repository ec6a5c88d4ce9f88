"""What a user asks of a search, from flags, files and images: resolved, and refused where it cannot be run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.cli.common import ensure_data, pack_progress, resolve_config, warn
from phenoscape_tune.cli.request import SearchRequest
from phenoscape_tune.cli.saved_search import SEARCH_FILE, read_search
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import find_file, flatten, merge, set_key
from phenoscape_tune.search.space import SearchSpace, build_space, load_space
from phenoscape_tune.storage import is_url
from phenoscape_tune.yaml_file import load_mapping

if TYPE_CHECKING:
    from phenoscape_tune.data.parts import Parts
    from phenoscape_tune.search.plan import Plan
    from phenoscape_tune.search.record import TrialRecord


UNNAMED = "search"  # the name of a search whose space is no file
# What a flag, or an argument of the call in Python, changes of the space.
FLAGS = {
    "order": "order",
    "trials": "budget.trials",
    "max_epochs": "budget.max_epochs",
    "hours": "budget.hours",
    "gpu_hours": "budget.gpu_hours",
}


def search_folder(asked: SearchRequest) -> Path:
    """The absolute folder of a search."""
    if asked.out and is_url(asked.out):
        raise UserError(
            f"--out: {asked.out} is remote, while the journal of a search is locked, appended to and synced, which "
            "needs a file system; write a local folder, and storage=URL for a copy of it there"
        )
    if asked.out:
        return Path(asked.out).expanduser().absolute()
    if asked.name is None and asked.space is None:
        raise UserError("--space: say what to search, for example --space lr_temp.yaml")
    of_space = Path(asked.space).name.removesuffix(".yaml") if isinstance(asked.space, str) else UNNAMED
    name = asked.name or of_space
    if Path(name).name != name or name in (".", ".."):
        raise UserError(f"--name: '{name}' is not a plain folder name; use --out for a path")
    return (Path("outputs") / name).absolute()


def resolve_search(asked: SearchRequest) -> tuple[SearchSpace, TrainConfig, int]:
    """Space, base configuration and length of a trial, in epochs: flags win, then key=value, then the files."""
    if asked.space is None:
        raise UserError("--space: say what to search, for example --space lr_temp.yaml")
    faults = []
    space: SearchSpace | None = None
    config: TrainConfig | None = None
    try:
        space = asked.space if isinstance(asked.space, SearchSpace) else load_space(asked.space)[0]
    except UserError as error:
        faults.append(str(error))
    try:
        config = resolve_config(asked.config, asked.overrides)
    except UserError as error:
        faults.append(str(error))
    if space is None or config is None:
        raise UserError("\n".join(faults))
    if asked.seed is not None:
        config = build_config({**config.given(), "seed": asked.seed}, "--seed")
    changed = _with_flags(space, asked)
    # key=value beats the space file's budget, a flag beats both.
    key_value = asked.max_epochs is None and "max_epochs" in asked.overrides
    length = config.max_epochs if key_value else changed.budget.max_epochs or config.max_epochs
    # The length stands beside the space in search.yaml: there it stays what the file says.
    budget = changed.budget.model_copy(update={"max_epochs": space.budget.max_epochs})
    return changed.model_copy(update={"budget": budget}), config, length


def _with_flags(space: SearchSpace, asked: SearchRequest) -> SearchSpace:
    """The space as the flags change it, judged like that of a file."""
    faults = []
    for flag, key in FLAGS.items():
        value = getattr(asked, flag)
        if value is None:
            continue
        mapping = space.to_mapping()
        set_key(mapping, key, value)
        try:
            space = build_space(mapping, f"--{flag.replace('_', '-')}")
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    return space.model_copy(update={"confirm": None}) if asked.no_confirm else space


def look_at_data(
    space: SearchSpace, base: TrainConfig, max_epochs: int, folder: Path, quiet: bool
) -> tuple[Plan, Parts, int]:
    """Pack the images, and refuse what would fail in the first trial: labels, sizes, unreadable files, augmentations
    that have no meaning for the images. The plan's base is settled on them.

    Returns the plan, the base's images, and the most channels that a trial may have.
    """
    from phenoscape_tune.augment_checks import check_transforms
    from phenoscape_tune.data.labels import doubt_of_classes
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
    if metric.needs_labels and base.labels is None and (doubt := doubt_of_classes(parts.classes)):
        warn([doubt])
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


def read_earlier_trials(asked: SearchRequest, plan: Plan, parts: Parts) -> list[TrialRecord]:
    """The trials of `--warm-start`."""
    if not asked.warm_start:
        return []
    from phenoscape_tune.search.warm_start import read_earlier

    earlier = Path(asked.warm_start).expanduser().absolute()
    records = read_earlier(earlier, read_search(earlier), plan, parts.fingerprint)
    if not asked.quiet:
        print(f"warm start: {len(records)} trials of {earlier} fit this space", flush=True)
    return records


def refuse_changes(asked: SearchRequest, saved: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError, naming the differences, where what is asked for now is not what the search was started with.

    What is not given now stays as it was then, which is said: a later version may have another default.
    """
    values = (asked.config, asked.seed, *(getattr(asked, flag) for flag in FLAGS))
    changes = asked.overrides or asked.no_confirm or any(value is not None for value in values)
    if asked.space is None and not changes:
        return
    from phenoscape_tune.data.parts import settle_like

    if asked.space is None:
        raise UserError("--resume goes on with the search as it was started: leave out all but --name or --out")
    space, base, max_epochs = resolve_search(asked)
    # Read anew: a search that an earlier version began lacks the keys that have come since, with their defaults.
    where = str(folder / SEARCH_FILE)
    space_then, base_then = build_space(saved["space"], where), build_config(saved["config"], where)
    config = settle_like(ensure_data(base), base_then).to_mapping()
    now = flatten({"max_epochs": max_epochs, "space": space.to_mapping(), "config": config})
    then = flatten(
        {"max_epochs": saved["max_epochs"], "space": space_then.to_mapping(), "config": base_then.to_mapping()}
    )
    changed = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    given = _given_keys(asked)
    different = [key for key in changed if _is_within(key, given)]
    if different:
        lines = "\n  ".join(f"{key}: was {then.get(key)!r}, is {now.get(key)!r}" for key in different)
        raise UserError(
            f"{folder}: was started with another space or configuration:\n  {lines}\n"
            "resume it as it was started (--resume with --name or --out alone), or choose another --name"
        )
    if not asked.quiet:
        warn([f"{key}: stays {then.get(key)!r}, as the search was started; is not given now" for key in changed])


def _given_keys(asked: SearchRequest) -> set[str]:
    """Keys of `search.yaml` that flags, key=value and files give a value, which is then no default."""
    file: Mapping[str, Any] = {}
    if isinstance(asked.config, TrainConfig):
        file = asked.config.given()
    elif asked.config is not None:
        file = load_mapping(find_file(asked.config, "configs"))
    if isinstance(asked.space, SearchSpace):
        space = asked.space.model_dump(mode="json", exclude_unset=True)
    else:
        space = load_mapping(find_file(str(asked.space), "search_spaces"))
    config = merge(file, asked.overrides)
    given = set(flatten({"config": config, "space": space}))
    given.add("space.parameters")  # one that is left out is a change, too
    given |= {f"space.{key}" for flag, key in FLAGS.items() if getattr(asked, flag) is not None}
    others = {
        "max_epochs": config.get("max_epochs") or "space.budget.max_epochs" in given,
        "config.seed": asked.seed is not None,
        "space.confirm": asked.no_confirm,
    }
    return given | {key for key, value in others.items() if value}


def _is_within(key: str, given: set[str]) -> bool:
    """Whether a dotted key, or one that it lies below, is among the given ones."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in given for length in range(1, len(parts) + 1))
