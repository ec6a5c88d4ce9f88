"""One file of many channels on its square: values, masks, missing data, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spectral.io.envi as envi_writer
import tifffile

from phenoscape_tune.data import cubes
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.cubes import read_bands, read_square
from phenoscape_tune.data.layout import OtherChannels, UnreadableImage
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.squares import Square

SIZE = 12
RNG = np.random.default_rng(0)


def write_tiff(path: Path, pixels: np.ndarray) -> Path:
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate", metadata=None)
    return path


def write_cube(path: Path, pixels: np.ndarray, **metadata: Any) -> Path:
    """(C, H, W) as an ENVI file."""
    envi_writer.save_image(str(path), pixels.transpose(1, 2, 0), ext=".bil", interleave="bil", metadata=metadata)
    return path


def recipe_of(channels: int, modality: Any = "multispectral", **changes: Any) -> Recipe:
    names = tuple(f"channel {number}" for number in range(channels))
    plain = Recipe(
        Square(SIZE, "pad", (128, 128, 128)), Channels(names), modality, of=channels, taken=tuple(range(channels))
    )
    return replace(plain, **changes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_values_of_the_squares_size_are_the_files_own(tmp_path: Path, dtype: str) -> None:
    most = 1.0 if dtype == "float32" else float(np.iinfo(dtype).max)
    pixels = (RNG.random((5, SIZE, SIZE)) * most).astype(dtype)
    found = read_square(write_tiff(tmp_path / "a.tif", pixels), recipe_of(5))
    assert found.dtype == np.uint16
    expected = np.rint(pixels.astype(np.float64) / most * 65535)
    assert np.abs(found - expected).max() <= (dtype == "float32")  # whose last digits lie on both sides of a half


def test_channels_are_taken_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (7, SIZE, SIZE), dtype=np.uint16)
    recipe = replace(recipe_of(7), taken=(5, 0, 3), channels=Channels(("a", "b", "c")))
    np.testing.assert_array_equal(read_square(write_tiff(tmp_path / "a.tif", pixels), recipe), pixels[[5, 0, 3]])


def test_a_range_of_values_becomes_0_to_1_and_the_rest_is_cut_off(tmp_path: Path) -> None:
    pixels = np.full((2, SIZE, SIZE), 100, np.int16)
    pixels[0, 0, :5] = (-50, 0, 200, 300, 4000)
    recipe = recipe_of(2, "hyperspectral", value_range=(0.0, 200.0))
    found = read_square(write_cube(tmp_path / "a.hdr", pixels), recipe) / 65535
    assert found[0, 0, :6] == pytest.approx([0, 0, 1, 1, 1, 0.5], abs=1e-5)
    whole = np.concatenate([b.values for b in read_bands(tmp_path / "a.hdr", recipe, clip=False)])
    assert whole[0, 0, :5] == pytest.approx([-0.25, 0, 1, 1.5, 20])


@pytest.mark.parametrize("per_chunk", [1, 3, 100])
def test_pieces_give_what_the_whole_gives(tmp_path: Path, per_chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = RNG.integers(0, 65536, (10, 20, 31), dtype=np.uint16)
    path, recipe = write_cube(tmp_path / "a.hdr", pixels), recipe_of(10, "hyperspectral")
    whole = read_square(path, recipe)
    monkeypatch.setattr(cubes, "CHUNK_BYTES", per_chunk * 4 * 20 * 31)
    np.testing.assert_array_equal(read_square(path, recipe), whole)
    assert len(list(read_bands(path, recipe))) == -(-10 // per_chunk)


def masked(path: Path) -> tuple[Path, np.ndarray]:
    """A file of two channels and a mask of 3 x 5 pixels, and its pixels."""
    pixels = RNG.integers(1, 65536, (3, 20, 30), dtype=np.uint16)
    pixels[2] = 0
    pixels[2, 4:7, 10:15] = 1
    return write_tiff(path, pixels), pixels


def test_what_the_mask_hides_becomes_the_background(tmp_path: Path) -> None:
    path, pixels = masked(tmp_path / "a.tif")
    recipe = replace(recipe_of(3), taken=(1, 0), channels=Channels(("b", "a")), mask=2)
    (found,) = read_bands(path, recipe)
    inside = pixels[2] > 0
    assert found.values[:, inside] == pytest.approx(pixels[[1, 0]][:, inside] / 65535)
    assert (found.values[:, ~inside] == np.float32(128 / 255)).all()


def test_an_image_is_cut_to_the_specimen_with_a_margin(tmp_path: Path) -> None:
    path, pixels = masked(tmp_path / "a.tif")
    recipe = replace(recipe_of(3), taken=(0,), channels=Channels(("a",)), mask=2, crop_to_mask=True)
    (found,) = read_bands(path, recipe)
    assert found.values.shape == (1, 5, 7)
    np.testing.assert_array_equal(found.raw[0, 1:4, 1:6], pixels[0, 4:7, 10:15])


def test_an_empty_mask_is_told(tmp_path: Path) -> None:
    pixels = np.ones((3, 8, 8), np.uint16)
    pixels[2] = 0
    recipe = replace(recipe_of(3), taken=(0, 1), channels=Channels(("a", "b")), mask=2)
    with pytest.raises(UnreadableImage, match="its mask is empty"):
        read_square(write_tiff(tmp_path / "a.tif", pixels), recipe)


def test_pixels_that_are_not_finite_in_any_channel_are_background(tmp_path: Path) -> None:
    pixels = RNG.random((4, SIZE, SIZE)).astype(np.float32)
    pixels[:, 2:5, 3] = np.nan
    found = read_square(write_tiff(tmp_path / "a.tif", pixels), recipe_of(4))
    assert (found[:, 2:5, 3] == round(128 / 255 * 65535)).all()
    assert found[:, 5] == pytest.approx(np.rint(pixels[:, 5] * 65535), abs=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("per_chunk", [1, 100])
def test_values_that_are_not_finite_in_some_channels_are_damage(
    tmp_path: Path, bad: float, per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cubes, "CHUNK_BYTES", per_chunk * 4 * SIZE * SIZE)
    pixels = RNG.random((6, SIZE, SIZE)).astype(np.float32)
    pixels[:, 0, 0] = np.nan  # background
    pixels[1, 3, 3:5] = bad
    pixels[4] = bad
    with pytest.raises(UnreadableImage, match=r"not finite .* in channel 1 \(2 pixels\), channel 4 \(143 pixels\)$"):
        read_square(write_tiff(tmp_path / "a.tif", pixels), recipe_of(6))
    with pytest.raises(UnreadableImage, match="no value is finite"):
        read_square(write_tiff(tmp_path / "b.tif", np.full_like(pixels, bad)), recipe_of(6))


@pytest.mark.parametrize("per_chunk", [1, 100])
def test_pixels_that_have_the_headers_value_for_no_data_in_all_bands_are_background(
    tmp_path: Path, per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cubes, "CHUNK_BYTES", per_chunk * 4 * SIZE * SIZE)
    pixels = RNG.integers(1, 60000, (3, SIZE, SIZE), dtype=np.uint16)
    pixels[:, 4] = 0
    pixels[1, 6] = 0  # dark
    path = write_cube(tmp_path / "a.hdr", pixels, **{"data ignore value": 0})
    values = np.concatenate([bands.values for bands in read_bands(path, recipe_of(3, "hyperspectral"))])
    assert (values[:, 4] == np.float32(128 / 255)).all()
    assert (values[1, 6] == 0).all()
    rest = np.delete(np.arange(SIZE), 4)
    assert values[:, rest] == pytest.approx(pixels[:, rest] / 65535, abs=1e-6)


def test_saturated_channels_are_told_by_the_largest_value_of_a_sensor(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 4000, (5, SIZE, SIZE), dtype=np.uint16)
    pixels[1] = 65535
    pixels[2, :6] = 4095  # of 12 bits
    pixels[3, :6] = 4096  # of no sensor
    (found,) = read_bands(write_tiff(tmp_path / "a.tif", pixels), recipe_of(5))
    assert found.saturated == pytest.approx([0, 1, 0.5, 0, 0])


def test_a_file_of_other_channels_is_not_read(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.zeros((6, 8, 8), np.uint16))
    with pytest.raises(OtherChannels, match="6 channels, where 7 are expected"):
        read_square(path, recipe_of(7))
    cube = write_cube(tmp_path / "b.hdr", np.ones((3, 8, 8), np.uint16), wavelength=[400, 500, 690])
    for known, fits in (((400.0, 500.0, 600.0), False), ((400.0, 501.0, 680.0), True)):
        recipe = recipe_of(3, "hyperspectral", wavelengths=known)
        if fits:
            assert read_square(cube, recipe).shape == (3, SIZE, SIZE)
        else:
            with pytest.raises(OtherChannels, match="band 2 at 690 nm, where 600 nm is expected"):
                read_square(cube, recipe)
