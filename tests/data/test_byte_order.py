"""The guess of a wrong byte order is right about scenes, and silent about everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from phenoscape_tune.data.byte_order import looks_swapped

INTEGERS = ["u2", "i2", "u4", "i4", "u8", "i8"]


def scene(
    seed: int, blur: float, scale: float, offset: float, noise: float, side: int = 48, bands: int = 5
) -> np.ndarray:
    """float64 (side, side, bands): blurred noise from ``offset`` to ``offset + scale``, and noise of its own."""
    rng = np.random.default_rng(seed)
    light = np.stack([gaussian_filter(rng.normal(size=(side, side)), blur) for _ in range(bands)], -1)
    light = (light - light.min()) / (np.ptp(light) + 1e-9)
    return light * scale + offset + rng.normal(size=light.shape) * noise


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1000),
    blur=st.sampled_from([0, 0.5, 1, 3, 10, 40]),
    scale=st.sampled_from([0, 3, 50, 255, 300, 1000, 4095, 10_000, 30_000]),
    offset=st.sampled_from([0, 1, 100, 200, 255, 256, 1000]),
    noise=st.sampled_from([0, 1, 30, 500]),
    hot=st.sampled_from([0, 0.01, 0.2]),
    dtype=st.sampled_from([*INTEGERS, "f4", "f8", "u1"]),
    side=st.sampled_from([1, 3, 8, 48]),
    period=st.sampled_from([0, 2, 3, 5]),
    stripe=st.sampled_from([100, 256, 300, 1000]),
)
def test_what_is_written_as_it_says_never_looks_swapped(
    seed: int,
    blur: float,
    scale: float,
    offset: float,
    noise: float,
    hot: float,
    dtype: str,
    side: int,
    period: int,
    stripe: int,
) -> None:
    values = scene(seed, blur, scale, offset, noise, side)
    if period:  # the stripes or the mosaic of a sensor
        y, x = np.indices((side, side))
        values += stripe * ((x + (seed % 2) * y) % period == 0)[:, :, None]
    values = values.clip(0, 255 if dtype == "u1" else 32_767)
    values[np.random.default_rng(seed).random(values.shape) < hot] = values.max() if dtype == "u1" else 32_767
    assert not looks_swapped(values.astype(dtype))
    assert not looks_swapped(values.astype(dtype).astype(np.dtype(dtype).newbyteorder(">")))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("blur", [1, 3, 10])
@pytest.mark.parametrize("scale", [1000, 4095, 10_000, 30_000])
def test_scenes_in_the_other_order_do(dtype: str, blur: float, scale: float) -> None:
    for seed in range(5):
        values = scene(seed, blur, scale, 50, scale / 100).clip(0).astype(dtype)
        assert looks_swapped(values.byteswap())
        assert looks_swapped(values.view(values.dtype.newbyteorder()))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("scale", [1e-3, 0.7, 300, 65_535])
def test_floats_in_the_other_order_do(dtype: str, scale: float) -> None:
    values = scene(1, 3, scale, 0.1 * scale, 0.05 * scale).astype(dtype)
    assert looks_swapped(values.byteswap()) and not looks_swapped(values)
    values[::2] = np.nan  # no data
    assert not looks_swapped(values)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).integers(0, 65_536, (40, 40, 3)).astype("u2"),
        np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype("u2"),
        np.full((40, 40, 3), 1000, "u2"),
        np.full((40, 40, 3), np.nan, "f4"),
        np.zeros((40, 40, 3), "f4"),
        np.full((40, 40, 3), 1e20, "f4"),
        np.indices((40, 40)).sum(0)[:, :, None].astype("u2") % 2,
        np.repeat(np.arange(1600).reshape(40, 40, 1) // 400, 3, 2).astype("i4"),
        np.zeros((0, 40, 3), "u2"),
    ],
    ids=["noise", "noise of a byte", "constant", "nan", "zero", "large", "checkerboard", "labels", "empty"],
)
def test_what_is_no_scene_never_does(values: np.ndarray) -> None:
    assert not looks_swapped(values)


def test_most_sound_cubes_are_judged_by_their_first_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    from phenoscape_tune.data import byte_order

    seen: list[int] = []
    judge = byte_order._judge
    monkeypatch.setattr(byte_order, "_judge", lambda band: seen.append(judge(band)) or seen[-1])
    assert not looks_swapped(scene(0, 3, 10_000, 0, 100, bands=400).clip(0).astype("u2"))
    assert seen == [-1]
