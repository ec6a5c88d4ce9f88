"""What the training part's values are like: right, measured in pieces, and stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data import statistics
from phenoscape_tune.data.parts import open_parts

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize("pack", [True, False])
def test_they_are_those_of_the_training_images(tiny: Tiny, pack: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "PIECE_BYTES", 3 * 8 * 3 * 32 * 32)
    parts = open_parts(tiny(pack=pack))
    pixels = parts.images.pixels[parts.split.train].astype(np.float64) / 255
    found = statistics.measure(parts.images, parts.split.train)
    assert found.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert found.std == pytest.approx(pixels.std(axis=(0, 2, 3)))
    assert found.spectra is None


@pytest.mark.parametrize("most", [10, 27, 1000])
def test_they_are_of_at_most_so_many_images(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(statistics, "MOST_IMAGES", most)
    measured = []
    monkeypatch.setattr(statistics, "_measure", lambda images, chosen: measured.append(chosen))
    parts = open_parts(tiny(pack=False))
    statistics.measure(parts.images, parts.split.train)
    assert most / 2 <= len(measured[0]) <= most or len(measured[0]) == len(parts.split.train) < most


def test_they_are_stored_beside_the_packed_images_and_measured_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = open_parts(tiny(split_seed=7))
    first = statistics.measure(parts.images, parts.split.train)

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patched:
        patched.setattr(statistics, "_measure", refuse)
        assert statistics.measure(parts.images, parts.split.train) == first
        with pytest.raises(AssertionError, match="measured again"):
            statistics.measure(parts.images, parts.split.val)
    assert parts.images.folder is not None
    for record in parts.images.folder.glob("statistics-*.json"):
        record.write_text("{")
    assert statistics.measure(parts.images, parts.split.train) == first
