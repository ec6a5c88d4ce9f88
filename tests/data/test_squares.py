"""Images of any shape on squares: pictures, and any number of channels in the same way."""

from __future__ import annotations

import numpy as np
import pytest

from phenoscape_tune.data.squares import fit, fit_channels

GREY, RED, GREEN, BLUE = (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def marked_image(height: int, width: int) -> np.ndarray:
    """Grey with a red first and a blue last column (or row), 8 pixels wide: uint8 (3, H, W)."""
    image = np.full((3, height, width), 128, dtype=np.uint8)
    long_view = image if width >= height else image.transpose(0, 2, 1)
    long_view[:, :, :8] = np.array(RED, dtype=np.uint8)[:, None, None]
    long_view[:, :, -8:] = np.array(BLUE, dtype=np.uint8)[:, None, None]
    return image


@pytest.mark.parametrize("shape", [(40, 80), (80, 40)])
def test_resize_modes(shape: tuple[int, int]) -> None:
    image = marked_image(*shape)
    pad, crop, squash = (fit(image, 40, resize, GREEN) for resize in ("pad", "crop", "squash"))
    assert {result.shape for result in (pad, crop, squash)} == {(3, 40, 40)}
    assert {result.dtype for result in (pad, crop, squash)} == {np.dtype(np.uint8)}
    if shape[0] > shape[1]:
        pad, crop, squash = (result.transpose(0, 2, 1) for result in (pad, crop, squash))
    assert pad[:, 20, 0].tolist() == list(RED)
    assert pad[:, 20, -1].tolist() == list(BLUE)
    assert pad[:, 5, 20].tolist() == list(GREEN)
    assert pad[:, 35, 20].tolist() == list(GREEN)
    assert pad[:, 20, 20].tolist() == [128] * 3
    assert (crop == 128).all()
    assert squash[:, 0, 0].tolist() == list(RED)
    assert squash[:, -1, -1].tolist() == list(BLUE)


def test_resize_antialiases_and_survives_extreme_shapes() -> None:
    checks = np.indices((400, 400)).sum(0) % 2 * 255
    assert np.ptp(fit(np.stack([checks] * 3).astype(np.uint8), 40, "squash", GREY).astype(int)) <= 4
    for resize in ("pad", "crop", "squash"):
        assert fit(np.zeros((3, 1, 500), dtype=np.uint8), 16, resize, GREY).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="resize must be"):
        fit(np.zeros((3, 4, 4), dtype=np.uint8), 16, "stretch", GREY)


@pytest.mark.parametrize("resize", ["pad", "crop", "squash"])
@pytest.mark.parametrize("shape", [(40, 80), (33, 17), (7, 5)])
def test_many_channels_are_fitted_as_a_pictures_three(resize: str, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(60, 200, (3, *shape), dtype=np.uint8)
    expected = fit(picture, 24, resize, (10, 20, 30)).astype(float)
    found = fit_channels(np.tile(picture, (3, 1, 1)).astype(np.float32), 24, resize, (10, 20, 30) * 3)
    assert found.dtype == np.float32
    assert found.shape == (9, 24, 24)
    # A picture's values are rounded after each of the two passes and cut to 0..255.
    assert np.abs(found[:3].clip(0, 255) - expected).max() <= 1.5
    np.testing.assert_array_equal(found[:3], found[6:])


def test_values_of_the_right_size_are_left_as_they_are() -> None:
    values = np.random.default_rng(0).normal(0, 1e6, (5, 12, 12)).astype(np.float32)
    for resize in ("pad", "crop", "squash"):
        np.testing.assert_array_equal(fit_channels(values, 12, resize, (0,) * 5), values)
