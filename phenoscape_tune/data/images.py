"""The images of a folder as training reads them: N squares of uint8 and the specimens that they show."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from phenoscape_tune.data.decoding import Unreadable
from phenoscape_tune.data.specimens import Specimens


class Pixels(Protocol):
    """uint8 (N, C, S, S), read by an index or by an array of indices: a memory map, or files that are decoded."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True)
class Images:
    """N images and the specimens that they show, in the same order."""

    pixels: Pixels
    """uint8 (N, 3, size, size), read-only."""
    specimens: Specimens
    """The N readable ones."""
    unreadable: Unreadable
    """(name, reason) of each image that was left out."""
    folder: Path | None
    """Where the packed pixels lie; None where there are none."""
