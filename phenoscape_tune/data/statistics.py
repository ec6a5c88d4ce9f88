"""What the training part's values are like: each channel's mean and spread, and the mean spectrum of each class.

Computed once, in pieces, and stored beside the packed images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.data.images import Images, Pixels, let_go
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.files import write_whole

MOST_IMAGES = 2000  # of which the statistics are taken, evenly spread
PIECE_BYTES = 64 * 2**20  # of float64 values that are worked on at a time


@dataclass(frozen=True)
class Statistics:
    """Of images in 0..1."""

    mean: tuple[float, ...]
    """(C,)"""
    std: tuple[float, ...]
    """(C,)"""
    spectra: ClassSpectra | None
    """Mean and spread of each class; None for RGB pictures."""


def measure(images: Images, train: np.ndarray) -> Statistics:
    """The statistics of the images at ``train`` (int64), from at most 2,000 of them; as stored, where they are."""
    chosen = train[:: max(1, -(-len(train) // MOST_IMAGES))]
    record = None if images.folder is None else images.folder / f"statistics-{_key(images, chosen)}.json"
    found = None if record is None else _recorded(record)
    if found is None:
        found = _measure(images, chosen)
        if record is not None:
            with suppress(OSError, NoSpaceLeft):  # measured anew the next time
                write_whole(record, json.dumps(asdict(found)))
    return found


def _key(images: Images, chosen: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(chosen, np.int64).tobytes())
    labels = images.specimens.labels
    if images.recipe.modality != "rgb" and labels is not None:
        digest.update(labels[chosen].tobytes())
        digest.update("\0".join(images.specimens.classes).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _recorded(record: Path) -> Statistics | None:
    try:
        return TypeAdapter(Statistics).validate_python(json.loads(record.read_bytes()))
    except (OSError, ValueError):
        return None


def _measure(images: Images, chosen: np.ndarray) -> Statistics:
    C, pictures = images.pixels.shape[1], images.recipe.modality == "rgb"
    pixels, total, squares, means = 0, np.zeros(C), np.zeros(C), []
    for values in _pieces(images.pixels, chosen):
        pixels += values[:, 0].size
        total += values.sum(axis=(0, 2, 3))
        squares += np.square(values).sum(axis=(0, 2, 3))
        if not pictures:
            means.append(_means_without_background(values, images.recipe))
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    spectra = None if pictures else _class_spectra(images, chosen, np.concatenate(means))
    return Statistics(tuple(mean.tolist()), tuple(std.tolist()), spectra)


def _means_without_background(values: np.ndarray, recipe: Recipe) -> np.ndarray:
    """float64 (n, C): the mean of each channel of images (n, C, S, S), where they are not all background."""
    fill = np.rint(np.array(recipe.fill) * 65535) / 65535
    shown = (np.abs(values - fill[:, None, None]) > 1e-9).any(axis=1)  # (n, S, S)
    count = np.maximum(shown.sum(axis=(1, 2)), 1)
    return np.einsum("nchw,nhw->nc", values, shown) / count[:, None]


def _class_spectra(images: Images, chosen: np.ndarray, means: np.ndarray) -> ClassSpectra:
    """Mean over the images of a class of each image's mean (n, C), and their spread."""
    specimens, recipe = images.specimens, images.recipe
    labels = np.zeros(len(chosen), np.int64) if specimens.labels is None else specimens.labels[chosen]
    names = ("all images",) if specimens.labels is None else specimens.classes
    return ClassSpectra.of_images(means, labels, names, recipe.channels)


def _pieces(pixels: Pixels, chosen: np.ndarray) -> Iterator[np.ndarray]:
    """The images at ``chosen`` as float64 (n, C, S, S) in 0..1, few enough at a time."""
    most = float(np.iinfo(pixels.dtype).max)
    step = max(1, min(256, PIECE_BYTES // (8 * int(np.prod(pixels.shape[1:])))))
    for start in range(0, len(chosen), step):
        values = pixels[chosen[start : start + step]].astype(np.float64) / most
        let_go(pixels)
        yield values
