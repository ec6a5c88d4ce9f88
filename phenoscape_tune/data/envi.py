"""Hyperspectral cubes in ENVI files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phenoscape_tune.data.layout import Layout


def read_layout(path: Path) -> Layout:
    raise NotImplementedError


def read_channels(path: Path, channels: Sequence[int] | None = None) -> np.ndarray:
    raise NotImplementedError


DATA_SUFFIXES = (".bil", ".bsq", ".bip", ".raw", ".dat", ".img", "")


def is_envi_header(path: Path) -> bool:
    """Whether a file begins as ENVI's headers do."""
    try:
        with path.open("rb") as file:
            return file.read(8).lstrip(b"\xef\xbb\xbf").startswith(b"ENVI")
    except OSError:
        return False
