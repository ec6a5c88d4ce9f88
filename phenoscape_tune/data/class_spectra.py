"""The mean spectrum of each class, and how far its images lie from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phenoscape_tune.data.channels import Channels


@dataclass(frozen=True)
class ClassSpectra:
    """Of K classes and C channels; values in 0..1."""

    classes: tuple[str, ...]
    """(K,) names; where there are no labels one name for all images."""
    counts: tuple[int, ...]
    """(K,) images of each."""
    mean: tuple[tuple[float, ...], ...]
    """(K, C): mean over the images of each one's mean over its pixels."""
    std: tuple[tuple[float, ...], ...]
    """(K, C): standard deviation over the images."""
    names: tuple[str, ...]
    """(C,) of the channels."""
    wavelengths: tuple[float, ...] | None
    """(C,) nanometres, where they are known."""

    @classmethod
    def of_images(
        cls, means: np.ndarray, labels: np.ndarray, classes: Sequence[str], channels: Channels
    ) -> ClassSpectra:
        """From each image's mean (n, C) and class (n,): int64 index into ``classes``, -1 for none."""
        present = [index for index in range(len(classes)) if (labels == index).any()]
        own = [means[labels == index] for index in present]
        return cls(
            classes=tuple(classes[index] for index in present),
            counts=tuple(len(rows) for rows in own),
            mean=tuple(tuple(rows.mean(axis=0).tolist()) for rows in own),
            std=tuple(tuple(rows.std(axis=0).tolist()) for rows in own),
            names=channels.names,
            wavelengths=channels.wavelengths,
        )
