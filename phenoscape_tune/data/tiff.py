"""Many-channel TIFF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phenoscape_tune.data.layout import Layout


def read_layout(path: Path) -> Layout:
    raise NotImplementedError


def read_channels(path: Path, channels: Sequence[int] | None = None) -> np.ndarray:
    raise NotImplementedError
