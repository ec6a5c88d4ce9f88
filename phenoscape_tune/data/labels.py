"""Labels of images: by their class folders, or by a CSV."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from phenoscape_tune.data.layout import printable
from phenoscape_tune.data.listing import HEADER_SUFFIX
from phenoscape_tune.errors import UserError

PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
# Numbers and dates; what a camera calls its folders (the DCF standard: three digits and five characters, 100CANON).
NO_CLASS_NAME = re.compile(r"[\d\W_]+|\d{3}[A-Z\d_]{5}")


def labels_from_folders(root: Path, names: Sequence[str]) -> tuple[list[str] | None, str]:
    """Each image's class folder and the sentence that says so; None where the folders name no classes.

    Raises UserError where the folders are the parts of a split.
    """
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
    told = f"labels from {len(classes)} class sub-folders ({_shorten(classes, 3)})"
    return [below[name.rpartition("/")[0]][0] for name in names], told


def doubt_of_classes(classes: Sequence[str]) -> str | None:
    """What is told where all of a folder's sub-folders have names that classes seldom have; None elsewhere."""
    if not classes or not all(NO_CLASS_NAME.fullmatch(name) for name in classes):
        return None
    return (
        f"data_dir: its sub-folders are named by numbers, dates or cameras ({_shorten(classes, 3)}) and are taken for "
        "classes; if they are none, write objective: {metric: reference_contrast} in the space file, which needs no "
        "labels, or give labels=FILE.csv"
    )


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
    except FileNotFoundError as fault:
        raise UserError(
            f"labels: {path} does not exist. Write the path of a CSV file with the header filename,label, or leave "
            "labels out."
        ) from fault
    except OSError as fault:
        raise UserError(f"labels: {path} cannot be read: {fault.strerror}.") from fault
    except (UnicodeDecodeError, csv.Error) as fault:
        raise UserError(f"labels: {path} cannot be read as a CSV file in UTF-8: {fault}.") from fault
    return rows, "group" in columns


def read_labels_csv(path: Path, root: Path, names: Sequence[str]) -> tuple[list[str], tuple[str, ...] | None, str]:
    """Labels ("" for none) and, where there is such a column, groups of all images; and the sentence that says so.

    Raises UserError for a file that is no such CSV, or that does not fit the images.
    """
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


def _shorten(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(printable(name) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
