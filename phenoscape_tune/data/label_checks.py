"""What is wrong with the labels and the specimens of a folder: for `checks.py`."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.findings import Description, Entry, Finding, class_names
from phenoscape_tune.data.labels import read_label_rows
from phenoscape_tune.data.specimens import Specimens

IMBALANCED = 10  # times that the largest class has the smallest one's images


def find_split_groups(specimens: Specimens, part_of: np.ndarray) -> Finding:
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(specimens.groups):
        members[group].append(index)
    torn = {group: own for group, own in members.items() if len(set(part_of[own])) > 1}
    return Finding(
        "split_groups",
        f"specimens with images in several parts, of {len(members):,} specimens",
        "give all images of a specimen one group",
        True,
        tuple({"group": group, "names": [specimens.names[i] for i in own]} for group, own in torn.items()),
    )


def find_conflicts(specimens: Specimens, describe: Description, copies: list[list[int]]) -> Finding:
    groups: list[list[int]] = []
    if specimens.labels is not None:
        members: dict[str, list[int]] = defaultdict(list)
        for index, group in enumerate(specimens.groups):
            members[group].append(index)
        several = [own for own in members.values() if len(own) > 1]
        groups = [own for own in [*copies, *several] if len(set(class_names(specimens, own)) - {None}) > 1]
    return Finding(
        "conflicting_labels",
        "copies of an image, or images of a specimen, with different classes",
        "correct their labels: one of them is wrong",
        True,
        tuple(describe(own) for own in groups),
    )


def count_classes(specimens: Specimens, parts: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    if specimens.labels is None:
        return {}
    counts = {}
    for label, name in enumerate(specimens.classes):
        own = np.flatnonzero(specimens.labels == label)
        counts[name] = {
            "images": len(own),
            "specimens": len({specimens.groups[i] for i in own}),
            **{part: int((specimens.labels[indices] == label).sum()) for part, indices in parts.items()},
        }
    return counts


def find_class_faults(specimens: Specimens, parts: dict[str, np.ndarray], config: TrainConfig) -> list[Finding]:
    counts = count_classes(specimens, parts)
    wanted = [part for part in parts if part != "test" or config.test_fraction > 0]
    lacking = {name: [part for part in wanted if not own[part]] for name, own in counts.items()}
    sizes = {name: own["images"] for name, own in counts.items() if own["images"]}
    skewed: tuple[Entry, ...] = ()
    if len(sizes) > 1 and not config.balance and max(sizes.values()) >= IMBALANCED * min(sizes.values()):
        largest, smallest = max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)
        ratio = round(sizes[largest] / sizes[smallest], 2)
        skewed = ({"largest": largest, "smallest": smallest, "ratio": ratio},)
    return [
        Finding(
            "small_classes",
            "classes too small for the split: not in every part of it",
            "add images of them (three specimens at least), or leave them out of the labels",
            True,
            tuple({"class": name, **counts[name], "not_in": parts_} for name, parts_ in lacking.items() if parts_),
        ),
        Finding(
            "imbalance",
            f"the largest class has {IMBALANCED} times the images of the smallest, or more",
            "balance=true samples classes evenly in training",
            False,
            skewed,
        ),
    ]


def find_label_faults(specimens: Specimens, config: TrainConfig) -> list[Finding]:
    unknown: list[str] = []
    if config.labels is not None:
        rows, _ = read_label_rows(Path(config.labels).expanduser())
        unknown = [name for name in rows if not (specimens.root / name).exists()]
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in specimens.classes:
        spellings[re.sub(r"[\s_.-]+", "", name.casefold())].append(name)
    return [
        Finding(
            "label_rows",
            "rows of the labels CSV that name no file of the folder",
            "correct the names (relative to the folder), or remove the rows",
            True,
            tuple({"name": name} for name in unknown),
        ),
        Finding(
            "class_names",
            "classes whose names differ in case, spaces, dots, hyphens or underscores only",
            "give them one name, where they are one class",
            True,
            tuple({"names": names} for names in spellings.values() if len(names) > 1),
        ),
    ]


def find_unmatched(specimens: Specimens, config: TrainConfig) -> Finding:
    names = [name for name, group in zip(specimens.names, specimens.groups, strict=True) if name == group]
    if config.group_by is None:
        names = []
    return Finding(
        "group_by",
        "file names that group_by does not match",
        "correct the expression: each of them is a specimen of its own now",
        len(names) == len(specimens.names),
        tuple({"name": name} for name in names),
    )
