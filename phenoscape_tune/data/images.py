"""The images of a folder as training reads them: N squares and the specimens that they show."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.decoding import Unreadable
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.specimens import Specimens

LARGE_BYTES = 256 * 2**20


class Pixels(Protocol):
    """uint8 or uint16 (N, C, S, S), read by an index or an array of them: a memory map, or files that are decoded."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


def let_go(pixels: Pixels) -> None:
    """Tell the system that what was read of a large memory map need not stay in this process.

    The pages stay in the system's cache, which gives them back at once, or frees them where others need the room; a
    process that has read all of a map would else count all of it as its own.
    """
    if isinstance(pixels, np.memmap) and pixels.nbytes > LARGE_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        pixels._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Images:
    """N images and the specimens that they show, in the same order."""

    pixels: Pixels
    """uint8 or uint16 (N, C, size, size), read-only: 0 to the type's largest value stand for 0 to 1."""
    specimens: Specimens
    """The N readable ones."""
    unreadable: Unreadable
    """(name, reason) of each image that was left out."""
    folder: Path | None
    """Where the packed pixels lie; None where there are none."""
    recipe: Recipe
    """How the files became the squares."""

    @property
    def channels(self) -> Channels:
        """The C channels of the squares."""
        return self.recipe.channels
