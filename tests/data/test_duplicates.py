from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from phenoscape_tune.data import duplicates
from phenoscape_tune.data.duplicates import group_equal, group_near
from phenoscape_tune.data.sample import draw_specimen

SAMPLE = [Image.fromarray(draw_specimen(i % 6, 96, np.random.default_rng([5, i]))) for i in range(48)]


def thumbnail(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.resize((16, 16), Image.Resampling.BOX))


def resave(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


def pinned(number: int) -> Image.Image:
    """A drawn museum specimen: one pose on one background, its size, ground colour and spots its own."""
    rng = np.random.default_rng([9, number])
    ys, xs = np.mgrid[-1:1:96j, -1:1:96j]
    pixels = 235 + rng.normal(0, 2, (96, 96, 3))
    wings = (xs / (0.6 + rng.uniform(-0.06, 0.06))) ** 2 + (ys / (0.4 + rng.uniform(-0.05, 0.05))) ** 2 < 1
    ground = np.array([150, 90, 40]) + rng.normal(0, 12, 3)
    pixels[wings] = ground
    for _ in range(rng.integers(3, 8)):
        x, y, radius = rng.uniform(-0.45, 0.45), rng.uniform(-0.25, 0.25), rng.uniform(0.04, 0.1)
        pixels[((xs - x) ** 2 + (ys - y) ** 2 < radius**2) & wings] = 0.3 * ground
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PINNED = [pinned(number) for number in range(48)]
EDITS = {
    "re-saved": resave,
    "halved": lambda picture: picture.resize((48, 48), Image.Resampling.BICUBIC),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
    "contrast": lambda picture: ImageEnhance.Contrast(picture).enhance(1.1),
}


def test_equal_keys_are_grouped_in_the_order_of_their_first() -> None:
    assert group_equal([b"c", b"a", b"b", b"a", b"c", b"c"]) == [[0, 4, 5], [1, 3]]
    assert group_equal([]) == []


@pytest.mark.parametrize("edit", EDITS, ids=str)
@pytest.mark.parametrize("pictures", [SAMPLE, PINNED], ids=["sample", "pinned"])
def test_an_edited_copy_is_near_its_original_and_nothing_else_is(pictures: list[Image.Image], edit: str) -> None:
    copied = range(0, 48, 6)
    shown = [*pictures, *(EDITS[edit](pictures[i]) for i in copied)]
    groups = group_near(np.stack([thumbnail(picture) for picture in shown]))
    assert groups == [[i, 48 + place] for place, i in enumerate(copied)]


def test_two_copies_alone_are_found_and_two_strangers_are_not() -> None:
    assert group_near(np.stack([thumbnail(SAMPLE[0]), thumbnail(resave(SAMPLE[0]))])) == [[0, 1]]
    assert group_near(np.stack([thumbnail(SAMPLE[0]), thumbnail(SAMPLE[1])])) == []
    assert group_near(np.stack([thumbnail(SAMPLE[0])])) == []
    assert group_near(np.empty((0, 16, 16, 3), dtype=np.uint8)) == []


def test_images_of_one_colour_are_not_compared() -> None:
    flat = np.full((5, 16, 16, 3), 90, dtype=np.uint8)
    flat[3:] = 200
    assert group_near(flat) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.floats(0, 6))
def test_blocks_find_what_comparing_every_pair_finds(seed: int, n: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (max(1, n // 3), 16, 16, 3))[rng.integers(max(1, n // 3), size=n)]
    thumbnails = (pictures + rng.normal(0, noise, pictures.shape)).clip(0, 255).astype(np.uint8)
    _, vectors = duplicates._normalise(thumbnails)
    near = 1 - vectors @ vectors.T <= duplicates._largest_distance(vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "ROWS", 7)
        patch.setattr(duplicates, "COLUMNS", 11)
        patch.setattr(duplicates, "CHECKED", 5)
        groups = group_near(thumbnails)
    group_of = {i: number for number, group in enumerate(groups) for i in group}
    assert len(group_of) == sum(map(len, groups))
    for i in range(n):
        others = set(np.flatnonzero(near[i])) - {i}
        assert (i in group_of) == bool(others)
        assert all(group_of[j] == group_of[i] for j in others)


def test_a_folder_of_copies_is_one_group_and_takes_no_long_time() -> None:
    rng = np.random.default_rng(0)
    thumbnails = thumbnail(SAMPLE[0])[None] // 2 + rng.integers(0, 2, (3000, 16, 16, 3)).astype(np.uint8)
    started = time.perf_counter()
    (group,) = group_near(thumbnails)
    assert len(group) == 3000
    assert time.perf_counter() - started < 30
