"""One recipe for all files of a folder: the channels that they share, and the range of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from phenoscape_tune.data import pictures, survey
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.specimens import find_specimens
from phenoscape_tune.data.squares import Square
from phenoscape_tune.data.survey import answer
from phenoscape_tune.errors import UserError
from tests.data.test_cubes import write_cube, write_tiff

SQUARE = Square(12, "pad", (128, 128, 128))
RNG = np.random.default_rng(0)


def ask(folder: Path, modality: Any, notices: list[str] | None = None, **asked: Any) -> Recipe:
    specimens = find_specimens(folder, modality=modality)
    told = [] if notices is None else notices
    return answer(specimens, Request(SQUARE, modality, **asked), 2, told.append)


def write_tiffs(folder: Path, count: int, pixels: np.ndarray) -> None:
    for number in range(count):
        write_tiff(folder / f"{number}.tif", pixels)


def test_files_of_different_channels_are_refused_naming_both(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 3, np.zeros((7, 8, 8), np.uint16))
    write_tiff(tmp_path / "odd.tif", np.zeros((5, 8, 8), np.uint16))
    with pytest.raises(UserError, match=r"different numbers of channels: 7 in 0.tif and 2 more, 5 in odd.tif\. One"):
        ask(tmp_path, "multispectral")


def test_bands_at_other_wavelengths_are_refused_naming_both(tmp_path: Path) -> None:
    pixels = np.ones((3, 8, 8), np.uint16)
    write_cube(tmp_path / "a.hdr", pixels, wavelength=[400, 500, 600])
    write_cube(tmp_path / "b.hdr", pixels, wavelength=[400, 510, 600])
    assert ask(tmp_path, "hyperspectral").wavelengths == (400, 500, 600)
    write_cube(tmp_path / "c.hdr", pixels, wavelength=[500, 600, 700])
    with pytest.raises(UserError, match=r"c.hdr has band 0 at 500 nm, where 400 nm is expected \(in a.hdr\)"):
        ask(tmp_path, "hyperspectral")


def test_files_that_name_their_channels_in_another_order_are_refused_naming_both(tmp_path: Path) -> None:
    for name, order in (("a.tif", ["red", "green", "blue", "uv"]), ("b.tif", ["uv", "red", "green", "blue"])):
        metadata = {"axes": "CYX", "Channel": {"Name": order}}
        tifffile.imwrite(
            tmp_path / name, uniform(9, "uint8")[[0, 1, 0, 1]], photometric="minisblack", ome=True, metadata=metadata
        )
    with pytest.raises(UserError, match="b.tif has uv, red, green, blue and a.tif has red, green, blue, uv"):
        ask(tmp_path, "multispectral")
    named = ask(tmp_path, "multispectral", channel_names=("p", "q", "r2", "s"))
    assert named.channels.names == ("p", "q", "r2", "s")


def test_unreadable_files_are_left_to_whoever_reads_them(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 2, np.zeros((7, 8, 8), np.uint16))
    (tmp_path / "bad.tif").write_text("no image")
    assert ask(tmp_path, "multispectral").of == 7


def test_a_mask_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 1, np.ones((7, 8, 8), np.uint16))
    assert ask(tmp_path, "multispectral").mask is None
    assert ask(tmp_path, "multispectral", use_mask=True).mask == 6
    write_tiffs(tmp_path, 1, np.ones((6, 8, 8), np.uint16))
    with pytest.raises(UserError, match="none of the 6 channels of .*0.tif is a mask; name it mask by channel_names"):
        ask(tmp_path, "multispectral", use_mask=True)


def test_what_is_asked_for_and_not_there_is_told_with_a_file(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 1, np.ones((3, 8, 8), np.uint16))
    with pytest.raises(UserError, match=r"channels: uv_only: .* \(as in .*0.tif\)"):
        ask(tmp_path, "multispectral", channels="uv_only")


def uniform(most: float, dtype: str) -> np.ndarray:
    return (RNG.random((2, 64, 64)) * most).astype(dtype)


@pytest.mark.parametrize(
    ("most", "dtype", "fills"),
    [
        (65535, "uint16", True),
        (20000, "uint16", True),
        (10000, "uint16", False),
        (255, "uint8", True),
        (1, "float32", True),
        (1.15, "float32", True),
        (100, "float32", False),
        (0.1, "float32", False),
    ],
)
def test_auto_takes_the_bit_depth_where_values_fill_it(tmp_path: Path, most: float, dtype: str, fills: bool) -> None:
    write_tiffs(tmp_path, 3, uniform(most, dtype))
    notices: list[str] = []
    found = ask(tmp_path, "multispectral", notices).value_range
    if fills:
        assert found is None
        assert notices == []
    else:
        assert found == pytest.approx((0.005 * most, 0.995 * most), rel=0.05, abs=0.004 * most)
        assert "value_scaling: auto" in notices[0]


def test_percentiles_are_of_the_training_part_and_of_the_specimen(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 4, uniform(1000, "uint16"))
    write_tiff(tmp_path / "bright.tif", uniform(60000, "uint16"))
    train = tuple(f"{number}.tif" for number in range(4))
    _, high = ask(tmp_path, "multispectral", value_scaling="percentile", scaled_by=train).value_range or (0, 0)
    assert high == pytest.approx(995, rel=0.02)
    masked = uniform(1000, "uint16")
    masked[0, 32:], masked[1] = 60000, 0
    masked[1, :32] = 1
    write_tiff(tmp_path / "masked.tif", masked)
    only = {"use_mask": True, "channel_names": ("red", "mask"), "scaled_by": ("masked.tif",)}
    _, high = ask(tmp_path, "multispectral", value_scaling="percentile", **only).value_range or (0, 0)
    assert high == pytest.approx(995, rel=0.03)


def test_a_range_and_the_bit_depth_are_taken_as_they_are_written(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 1, uniform(100, "uint16"))
    assert ask(tmp_path, "multispectral", value_scaling="bit_depth").value_range is None
    assert ask(tmp_path, "multispectral", value_scaling=(5.0, 10000.0)).value_range == (5, 10000)


def test_files_of_different_types_have_no_common_percentile(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", uniform(255, "uint8"))
    write_tiff(tmp_path / "b.tif", uniform(65535, "uint16"))
    assert ask(tmp_path, "multispectral").value_range is None
    with pytest.raises(UserError, match="different full scales .255, 65535.*bit_depth"):
        ask(tmp_path, "multispectral", value_scaling="percentile")


def test_images_of_one_value_have_no_percentiles(tmp_path: Path) -> None:
    write_tiffs(tmp_path, 1, np.full((2, 8, 8), 7, np.uint16))
    assert ask(tmp_path, "multispectral").value_range is None
    with pytest.raises(UserError, match="nearly all values of .* are 7; write the range"):
        ask(tmp_path, "multispectral", value_scaling="percentile")


def test_squares_are_of_the_size_asked_for_as_far_as_images_have_it(tmp_path: Path) -> None:
    for number, size in enumerate(((30, 20), (17, 25), (3, 3))):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    specimens = find_specimens(tmp_path)
    for asked, given in ((16, 16), (30, 30), (146, 30), (2, 8)):
        assert answer(specimens, Request(Square(asked, "pad", (0, 0, 0))), 2).square.size == given
    assert answer(specimens.keep([3]), Request(Square(146, "pad", (0, 0, 0))), 2).square.size == 146


def test_one_large_picture_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number}.png")
    looked_into: list[str] = []
    monkeypatch.setattr(survey, "HEADERS_AT_ONCE", 2)
    monkeypatch.setattr(survey, "image_size", lambda path: looked_into.append(path.name) or pictures.image_size(path))
    answer(find_specimens(tmp_path), Request(Square(16, "pad", (0, 0, 0))), 2)
    assert sorted(looked_into) == ["0.png", "1.png"]


def test_cubes_are_not_enlarged_either(tmp_path: Path) -> None:
    write_cube(tmp_path / "a.hdr", np.ones((3, 9, 10), np.uint16), wavelength=[400, 500, 600])
    assert ask(tmp_path, "hyperspectral").square.size == 10
