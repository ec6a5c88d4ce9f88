"""The images of a folder as training reads them: N squares and the specimens that they show."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.decoding import Unreadable
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.specimens import Specimens


class Pixels(Protocol):
    """uint8 or uint16 (N, C, S, S), read by an index or an array of them: a memory map, or files that are decoded."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


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
