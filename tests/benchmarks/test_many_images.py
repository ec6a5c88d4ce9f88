"""The benchmark of many images, with a few: what it measures is done, and what is sparse is said to be so."""

from __future__ import annotations

import json
from pathlib import Path

import many_images
import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(many_images, "DISTINCT", 40)
    many_images.write_folder(tmp_path / "images", 200)
    return tmp_path / "images"


def packed_in(cache: Path) -> tuple[np.ndarray, dict[str, object]]:
    (packed,) = cache.glob("packed-*/")
    return np.load(packed / "images.npy", mmap_mode="r"), json.loads((packed / "index.json").read_text())


def test_files_are_links_to_some_distinct_ones(folder: Path) -> None:
    files = sorted(folder.rglob("*.jpg"))
    assert len(files) == 200
    assert len({file.stat().st_ino for file in files}) == 40
    assert len(list(folder.iterdir())) == 20


def test_packing_and_opening_are_measured(folder: Path, tmp_path: Path) -> None:
    found = many_images.measure_packing(folder, tmp_path / "cache", repeats=2)
    assert found["square"] == 73
    assert len(found["images_per_second"]) == len(found["limit_images_per_second"]) == 2
    assert 0 < found["share_of_limit"]["least"] <= found["share_of_limit"]["most"]
    opening = many_images.measure_opening(folder, tmp_path / "cache", repeats=2)
    assert set(opening["trial"]["steps_seconds"]) == {"find_specimens", "key_of", "read_index", "split_specimens"}
    assert opening["trial"]["seconds"] >= sum(opening["trial"]["steps_seconds"].values()) > 0
    assert len(opening["seconds"]) == len(opening["imagefolder_seconds"]) == 2


def test_what_is_sparse_is_as_packing_writes_it_but_black(folder: Path, tmp_path: Path) -> None:
    many_images.measure_packing(folder, tmp_path / "decoded", repeats=1)
    many_images.pack_holes(folder, tmp_path / "sparse")
    (real, index), (black, sparse_index) = packed_in(tmp_path / "decoded"), packed_in(tmp_path / "sparse")
    assert sparse_index == index
    assert (black.shape, black.dtype) == (real.shape, real.dtype)
    assert real.any()
    assert not black.any()
    assert min(many_images.measure_opening(folder, tmp_path / "sparse", repeats=1)["seconds"]) > 0


def test_opening_does_not_pack(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not found again"):
        many_images.measure_opening(folder, tmp_path / "cache", repeats=1)
