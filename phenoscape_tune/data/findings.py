"""What a check found: a finding a check, an entry for each image or group of images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phenoscape_tune.data.specimens import Specimens

Entry = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    """Its name in check.json."""
    meaning: str
    """What is counted, and the measure."""
    remedy: str
    """What to do where there are any."""
    fault: bool
    """Whether any of them harms the training or its comparison; else it is worth a look."""
    entries: tuple[Entry, ...]
    """One for each, with the file's ``name`` or several ``names``."""

    @property
    def count(self) -> int:
        return len(self.entries)


class Description:
    """Tells a group of images: their names, parts and, where known, classes."""

    def __init__(self, specimens: Specimens, part_of: np.ndarray) -> None:
        self.specimens, self.part_of = specimens, part_of

    def __call__(self, indices: Sequence[int]) -> Entry:
        names, labels = self.specimens.names, self.specimens.labels
        entry: Entry = {"names": [names[i] for i in indices], "parts": [self.part_of[i] for i in indices]}
        if labels is not None:
            entry["classes"] = class_names(self.specimens, indices)
        return entry


def class_names(specimens: Specimens, indices: Iterable[int]) -> list[str | None]:
    assert specimens.labels is not None
    return [specimens.classes[label] if label >= 0 else None for label in (specimens.labels[i] for i in indices)]
