"""A folder of images → specimens (name, label, group) and their deterministic, stratified split."""

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from phenoscape_tune.data.layout import printable as printable
from phenoscape_tune.data.listing import HEADER_SUFFIX, list_images
from phenoscape_tune.data.readers import Modality
from phenoscape_tune.errors import UserError

PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class Specimens:
    """The images of one folder, with what is known about each; N images in the order of their names."""

    root: Path
    """The folder below which all names lie."""
    names: tuple[str, ...]
    """N posix paths relative to ``root``, sorted."""
    labels: np.ndarray | None
    """int64 (N,), index into ``classes``, -1 for an unlabelled image; None where nothing names the classes."""
    classes: tuple[str, ...]
    """Class names, sorted; empty without labels."""
    groups: tuple[str, ...]
    """N names of what must stay in one part of a split: the specimen's, or the image's own."""
    label_source: str
    """One sentence for the log: where the labels came from, or why there are none."""
    modality: Modality = "rgb"
    """Which reader reads them."""
    passed_over: int = 0
    """Pictures of another modality that lie beside them."""

    def keep(self, indices: Iterable[int] | np.ndarray) -> "Specimens":
        """The specimens at ``indices`` (int, in the order given); ``classes`` stay as they are."""
        chosen = np.asarray(list(indices), dtype=np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
            groups=tuple(self.groups[i] for i in chosen),
        )

    def readable(self, unreadable: Iterable[tuple[str, str]]) -> "Specimens":
        """The specimens without the ``unreadable`` (name, reason)."""
        left_out = {name for name, _ in unreadable}
        if not left_out:
            return self
        return self.keep(i for i, name in enumerate(self.names) if name not in left_out)


@dataclass(frozen=True)
class Split:
    """Three disjoint parts that together cover the specimens: sorted int64 indices."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def find_specimens(
    data_dir: Path,
    labels_csv: Path | None = None,
    group_by: str | None = None,
    modality: Literal["auto"] | Modality = "auto",
) -> Specimens:
    """Every image of a ``modality`` below ``data_dir``, with its label and its group; see ``listing.list_images``.

    Labels are the first folder below the one that all images share, where every image lies in such a folder and
    there are at least two; or the ``label`` column of ``labels_csv`` (header ``filename,label[,group]``, file names
    relative to ``data_dir``). There a handful a class is enough: images without a row, or with an empty label (whose
    row still names the group), are unlabelled. ``group_by`` is a regular expression searched in each name; its first
    group, or the whole match, is the specimen's name. Folders and files whose name begins with a dot are skipped;
    links are followed once.

    Raises UserError for a folder that is missing, holds no image or holds the parts of a split; for a CSV that does
    not fit the folder; for a ``group_by`` that is no regular expression or stands beside a ``group`` column.
    """
    root = Path(data_dir).expanduser()
    listing = list_images(root, modality)
    names = listing.names
    if labels_csv is None:
        labels_of, label_source = _labels_from_folders(root, names)
        csv_groups = None
    else:
        labels_of, csv_groups, label_source = _read_labels_csv(Path(labels_csv).expanduser(), root, names)
    if csv_groups is not None and group_by is not None:
        raise UserError(
            f"group_by: {group_by!r} is given and {labels_csv} has a column 'group': both name the specimens. "
            "Remove group_by, or the column."
        )
    classes = tuple(sorted(set(labels_of) - {""})) if labels_of is not None else ()
    index_of = {"": -1, **{name: index for index, name in enumerate(classes)}}
    return Specimens(
        root=root,
        names=names,
        labels=None if labels_of is None else np.array([index_of[label] for label in labels_of], dtype=np.int64),
        classes=classes,
        groups=csv_groups or _name_groups(names, group_by),
        label_source=label_source,
        modality=listing.modality,
        passed_over=listing.passed_over,
    )


def split_specimens(specimens: Specimens, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Train, validation and test parts: whole groups, stratified by label, the same for the same seed.

    Within each class the groups stand in the order of sha256("seed/group"), so that neither the order of listing
    nor a new image moves the others; the test part is taken first. A group with several labels counts to its most
    frequent one; the groups without any label are split like a class of their own. A class with three groups or more
    is in every part whose fraction is above 0; every class is in the training part.

    Raises UserError where the fractions (of the groups, 0 to 1) leave nothing for training.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"val_fraction: {val_fraction} and test_fraction: {test_fraction} must not be negative and must leave "
            "images for training: write two numbers whose sum is below 1, such as 0.2 and 0.1."
        )
    numbers: dict[str, int] = {}
    group_of = np.fromiter((numbers.setdefault(group, len(numbers)) for group in specimens.groups), np.int64)
    groups = list(numbers)
    label_of = _main_labels(specimens.labels, group_of, len(groups))
    part_of = np.zeros(len(groups), np.int8)  # of each group: 0 training, 1 validation, 2 test
    for label in np.unique(label_of):
        own = np.flatnonzero(label_of == label)
        own = own[_hash_order([groups[number] for number in own], seed)]
        n_val, n_test = _count_parts(len(own), val_fraction, test_fraction)
        part_of[own[:n_test]], part_of[own[n_test : n_test + n_val]] = 2, 1
    return Split(*(np.flatnonzero(part_of[group_of] == part) for part in range(3)))


def _hash_order(groups: Sequence[str], seed: int) -> np.ndarray:
    """int64 (n,): the indices of the groups' names in the order of sha256("seed/group")."""
    told = (f"{seed}/{group}".encode("utf-8", "surrogateescape") for group in groups)
    # 32 bytes a group, as four numbers whose order is that of the bytes; a list of a million digests takes 70 MB.
    digests = np.frombuffer(b"".join(hashlib.sha256(text).digest() for text in told), dtype=">u8").reshape(-1, 4)
    return np.lexsort(digests.T[::-1])


def _labels_from_folders(root: Path, names: Sequence[str]) -> tuple[list[str] | None, str]:
    """Each image's class folder and the sentence that says so; None where the folders name no classes."""
    counts = Counter(name.rpartition("/")[0] for name in names)
    parts = {folder: tuple(folder.split("/")) if folder else () for folder in counts}
    first, last = min(parts.values()), max(parts.values())
    ends = (depth for depth, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    shared = next(ends, min(len(first), len(last)))
    below = {folder: part[shared:] for folder, part in parts.items()}
    loose = sum(count for folder, count in counts.items() if not below[folder])
    classes = sorted({part[0] for part in below.values() if part})
    parent = root.joinpath(*first[:shared])
    if len(classes) >= 2 and all(name.lower() in PART_NAMES for name in classes):
        raise UserError(
            f"data_dir: {parent} holds the parts of a split ({', '.join(classes)}), which are no classes. "
            f"Point data_dir at one of them, such as {parent / classes[0]}; the search splits it by itself."
        )
    if loose == len(names):
        return None, f"no labels: images lie directly in {'the' if not shared else 'one'} folder"
    if loose:
        return None, (
            f"no labels: {loose} of {len(names)} images lie directly in {parent.name or parent}, "
            f"beside {len(classes)} sub-folder{'s' if len(classes) > 1 else ''}"
        )
    return [below[name.rpartition("/")[0]][0] for name in names], f"labels from {len(classes)} class sub-folders"


def read_label_rows(path: Path) -> tuple[dict[str, tuple[str, str]], bool]:
    """Label and group ("" for none) by file name, as the rows of a labels CSV give them; whether it has groups.

    Raises UserError for a file that is no such CSV, or has a name twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip().lower() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            if not {"filename", "label"} <= set(columns):
                raise UserError(
                    f"labels: {path} must begin with the header filename,label or filename,label,group, "
                    f"separated by commas; it begins with {','.join(columns) or 'nothing'!r}."
                )
            rows: dict[str, tuple[str, str]] = {}
            for row in reader:
                name = (row["filename"] or "").strip().replace("\\", "/").removeprefix("./")
                if not name:
                    continue
                if name in rows:
                    raise UserError(f"labels: {path}, line {reader.line_num}: {name} stands twice. Keep one row.")
                rows[name] = ((row["label"] or "").strip(), (row.get("group") or "").strip())
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        raise UserError(f"labels: {path} cannot be read as a CSV file in UTF-8: {fault}.") from fault
    return rows, "group" in columns


def _read_labels_csv(path: Path, root: Path, names: Sequence[str]) -> tuple[list[str], tuple[str, ...] | None, str]:
    """Labels ("" for none) and, where there is such a column, groups of all images; and the sentence that says so."""
    rows, has_groups = read_label_rows(path)
    rows = _by_header(rows, names)
    found = [rows.get(name, ("", "")) for name in names]
    labels = [label for label, _ in found]
    unknown = sorted(set(rows) - set(names))
    _check_labels(path, root, dict(zip(names, labels, strict=True)), unknown, len(rows))
    groups = tuple(group or name for name, (_, group) in zip(names, found, strict=True)) if has_groups else None
    counts = Counter(label for label in labels if label)
    some = f" for {counts.total()} of {len(names)} images" if counts.total() < len(names) else ""
    source = f"labels of {len(counts)} classes{some} from {path.name}"
    return labels, groups, source + (f" ({len(unknown)} rows name no image here)" if unknown else "")


def _by_header(rows: dict[str, tuple[str, str]], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The rows, where one that names a cube's data file (``a.bil``, ``a``) is told by its header's name (``a.hdr``)."""
    headers = {name.removesuffix(Path(name).suffix): name for name in names if name.lower().endswith(HEADER_SUFFIX)}
    if not headers:
        return rows

    def named(name: str) -> str:
        stem = name.removesuffix(Path(name).suffix)
        return headers.get(name, headers.get(stem, name))

    known = set(names)
    return {(name if name in known else named(name)): row for name, row in rows.items()}


def _check_labels(path: Path, root: Path, labels: Mapping[str, str], unknown: Sequence[str], rows: int) -> None:
    """Raise UserError where the labels ("" for none) by image cannot judge features, or were written for other images.

    ``unknown`` are the names that the CSV's ``rows`` give and the folder has not.
    """
    missing = [name for name, label in labels.items() if not label]
    counts = Counter(label for label in labels.values() if label)
    if not missing:
        if len(counts) < 2:
            raise UserError(
                f"labels: {path} gives all {len(labels)} images the label {next(iter(counts))!r}; at least 2 are "
                "needed. Name two classes or more, or leave labels out to compare trials without labels."
            )
        return
    # A table of more than this folder is no fault, unless images are missing in it: then the names do not fit.
    if 2 * len(unknown) > rows:
        raise UserError(
            f"labels: {path}: {len(unknown)} of {rows} rows name no image in {root} ({_shorten(unknown)}), while "
            f"{len(missing)} of {len(labels)} images have no label ({_shorten(missing)}). File names are relative to "
            "data_dir: correct them, or point data_dir at the folder that they begin in."
        )
    if sum(count >= 2 for count in counts.values()) < 2:
        listed = ", ".join(f"{label} ×{count}" for label, count in counts.most_common(5)) or "none"
        message = f"labels: {path} labels {counts.total()} of {len(labels)} images ({listed}; no label: "
        message += f"{_shorten(missing)})"
        if unknown:
            message += f" and has {len(unknown)} rows that name no image in {root} ({_shorten(unknown)})"
        raise UserError(
            f"{message}; at least 2 classes with 2 labelled images each are needed. Label more images, or leave "
            "labels out to compare trials without labels."
        )


def _name_groups(names: Sequence[str], group_by: str | None) -> tuple[str, ...]:
    if group_by is None:
        return tuple(names)
    try:
        pattern = re.compile(group_by)
    except re.error as fault:
        raise UserError(
            f"group_by: {group_by!r} is no regular expression ({fault}). Write one whose first group is the "
            r"specimen's name, such as '(\w+)_\d+\.jpg$'."
        ) from fault
    groups = []
    for name in names:
        match = pattern.search(name)
        found = (match.group(1) if pattern.groups else match.group(0)) if match else None
        groups.append(found or name)
    return tuple(groups)


def _main_labels(labels: np.ndarray | None, group_of: np.ndarray, groups: int) -> np.ndarray:
    """int64 (groups,): each group's most frequent label, the smallest of several; -1 where none is labelled."""
    found = np.full(groups, -1, np.int64)
    known = np.empty(0, np.int64) if labels is None else np.flatnonzero(labels >= 0)
    if labels is None or not known.size:
        return found
    classes = int(labels.max()) + 1
    pairs, counts = np.unique(group_of[known] * classes + labels[known], return_counts=True)
    # The last one written to a group stands: the most frequent, and of equals the smallest.
    order = np.lexsort((-pairs, counts))
    found[pairs[order] // classes] = pairs[order] % classes
    return found


def _count_parts(groups: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Validation and test groups of a class: largest remainders, at least one each where the class has three."""
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    quotas = [round(groups * fraction, 9) for fraction in fractions]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(3), key=lambda part: counts[part] - quotas[part])
    for part in by_remainder[: groups - sum(counts)]:
        counts[part] += 1
    needed = [part for part in range(3) if fractions[part] > 0 and (part == 0 or groups >= 3)]
    for part in needed:
        if counts[part] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[part] = 1
    return counts[1], counts[2]


def _shorten(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(printable(name) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
