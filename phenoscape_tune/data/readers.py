"""The three readers, behind one contract: one file → its layout, and the channels that are asked for.

Each is a module with `read_layout(path) -> Layout`, from the header alone, and `read_channels(path, channels) ->
(n, H, W)`: the values as they stand in the file, in its own type and the machine's byte order, of the channels asked
for (indices, in the order asked) or of all (None). Both raise `UnreadableImage` with a short reason for whatever is no
whole image of that kind, and never change the number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from phenoscape_tune.data import envi, pictures, tiff
from phenoscape_tune.data.layout import Layout

Modality = Literal["rgb", "multispectral", "hyperspectral"]


class Reader(Protocol):
    """What every reader's module offers; see above."""

    def read_layout(self, path: Path) -> Layout: ...

    def read_channels(self, path: Path, channels: Sequence[int] | None = None) -> np.ndarray: ...


def reader_of(modality: Modality) -> Reader:
    """The module that reads the files of a modality."""
    readers: dict[str, Reader] = {"rgb": pictures, "multispectral": tiff, "hyperspectral": envi}
    return readers[modality]
