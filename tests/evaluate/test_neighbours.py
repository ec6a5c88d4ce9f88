from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.evaluate import neighbours
from phenoscape_tune.evaluate.neighbours import choose_queries, draw_neighbours, nearest


def test_the_nearest_are_of_other_specimens_and_in_order() -> None:
    angles = np.array([0.0, 0.01, 0.1, 0.3, 2.0])
    features = (np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [9], [2], [1], [5]]).astype(np.float32)
    found = nearest(features, np.array([0, 4]), ["a", "a", "b", "c", "d"], k=2)
    assert [each.tolist() for each in found] == [[2, 3], [3, 2]]
    assert nearest(features[:1], np.array([0]), ["a"])[0].tolist() == []


def test_queries_are_of_all_classes() -> None:
    labels = np.repeat([0, 1, 2, -1], [50, 3, 1, 20])
    queries = choose_queries(np.arange(54), labels, 6)
    assert np.bincount(labels[queries]).tolist() == [2, 2, 1]
    assert choose_queries(np.arange(3), None).tolist() == [0, 1, 2]
    assert len(choose_queries(np.arange(100), np.arange(100))) == neighbours.QUERIES


def test_frames_say_right_and_wrong(tmp_path: Path) -> None:
    images = np.full((4, 3, 8, 8), 128, dtype=np.uint8)
    draw_neighbours(tmp_path / "n.png", images, np.array([0]), [np.array([1, 2, 3])], ["x", "x", "y" * 80, ""], RGB)
    picture = Image.open(tmp_path / "n.png")
    seen = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {ImageColor.getrgb(neighbours._RIGHT), ImageColor.getrgb(neighbours._WRONG)} <= seen
    draw_neighbours(tmp_path / "n.png", images[:, :1], np.array([0]), [np.array([1])], None, Channels(("grey",)))
    seen = {colour for _, colour in Image.open(tmp_path / "n.png").getcolors(1 << 20) or []}
    assert ImageColor.getrgb(neighbours._RIGHT) not in seen


def test_spectra_are_shown_in_false_colour(tmp_path: Path) -> None:
    waves = (450.0, 550.0, 650.0, 750.0)
    spectrum = Channels(tuple(f"{wave:g} nm" for wave in waves), wavelengths=waves)
    images = np.zeros((2, 4, 8, 8), dtype=np.uint16)
    images[:, 2] = 65535
    draw_neighbours(tmp_path / "n.png", images, np.array([0]), [np.array([1])], None, spectrum)
    seen = {colour for _, colour in Image.open(tmp_path / "n.png").getcolors(1 << 20) or []}
    assert (255, 0, 0) in seen


def test_a_picture_can_be_a_small_jpeg_whose_frames_keep_their_colours() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (7, 3, 64, 64), dtype=np.uint8)
    files = [io.BytesIO(), io.BytesIO()]
    names = ["x", *["x", "y"] * 3]
    for file, form in zip(files, ("PNG", "JPEG"), strict=True):
        size = draw_neighbours(file, images, np.array([0]), [np.arange(1, 6)], names, RGB, form)
    png, jpeg = (Image.open(file) for file in files)
    assert (png.format, jpeg.format) == ("PNG", "JPEG")
    assert png.size == jpeg.size == size
    assert len(files[1].getvalue()) < len(files[0].getvalue())
    difference = np.abs(np.subtract(np.asarray(png, dtype=int), np.asarray(jpeg, dtype=int)))
    right = (np.asarray(png) == ImageColor.getrgb(neighbours._RIGHT)).all(axis=2)
    assert right.any() and difference[right].mean() < 10
