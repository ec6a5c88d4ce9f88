"""A folder of images → specimens: name, label, group."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from phenoscape_tune.data.labels import labels_from_folders, read_labels_csv
from phenoscape_tune.data.listing import list_images
from phenoscape_tune.data.readers import Modality
from phenoscape_tune.errors import UserError


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
    not_read: str = ""
    """Archives, videos and photographs beside them that no reader knows, by suffix with their number."""

    def describe_others(self) -> str:
        """What lies beside the images and is not read, as the end of a line; nothing where there is nothing."""
        told = f"; {self.passed_over:,} images of another modality beside them are passed over"
        return (told if self.passed_over else "") + (f"; not read: {self.not_read}" if self.not_read else "")

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
        labels_of, label_source = labels_from_folders(root, names)
        csv_groups = None
    else:
        labels_of, csv_groups, label_source = read_labels_csv(Path(labels_csv).expanduser(), root, names)
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
        not_read=listing.not_read,
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
