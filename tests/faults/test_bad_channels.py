"""Images of many channels that are damaged or do not go together: told by name, through the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spectral.io.envi as envi_writer
import tifffile
from test_bad_input import SPACE, TINY, refused

from phenoscape_tune.cli import check_data, train, tune

NAMES = ("red", "green", "blue", "uv1", "uv2", "uv3", "mask")
Refuse = Callable[..., str]


def smooth(channels: int, seed: int = 0) -> np.ndarray:
    """uint16 (C, 20, 20), smooth as a photograph is, so that its byte order can be told."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:20j, 0:1:20j]
    planes = [30000 + 9000 * np.sin(3 * x + rng.uniform(0, 6)) * np.cos(4 * y + c / 9) for c in range(channels)]
    return (np.stack(planes) + rng.normal(0, 200, (channels, 20, 20))).astype(np.uint16)


def write_cube(path: Path, pixels: np.ndarray, byteorder: int = 0, **metadata: Any) -> None:
    envi_writer.save_image(
        str(path), pixels.transpose(1, 2, 0), ext=".bil", interleave="bil", byteorder=byteorder, metadata=metadata
    )


@pytest.fixture
def cubes(tmp_path: Path) -> Path:
    """Forty sound cubes of 12 bands at 400 to 730 nm."""
    folder = tmp_path / "cubes"
    folder.mkdir()
    for number in range(40):
        write_cube(folder / f"{number:02d}.hdr", smooth(12, number), wavelength=list(range(400, 731, 30)))
    return folder


@pytest.fixture
def tiffs(tmp_path: Path) -> Path:
    """Forty sound TIFF files of 7 channels."""
    folder = tmp_path / "tiffs"
    folder.mkdir()
    for number in range(40):
        pixels = smooth(7, number)
        pixels[6] = 0
        pixels[6, 5:15, 5:15] = 1
        write_tiff(folder / f"{number:02d}.tif", pixels)
    return folder


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate", metadata=None)


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """What a run and a search say of a folder that they both refuse, and of which nothing is left."""
    space = tmp_path / "space.yaml"
    space.write_text(SPACE)

    def run(folder: Path, *keys: str) -> str:
        own = [f"data_dir={folder}", *TINY, *keys]
        told = refused(capsys, train.main, f"out_dir={tmp_path / 'run'}", *own)
        again = refused(capsys, tune.main, "--space", space, "--out", tmp_path / "search", *own)
        fault = told[told.index("error: ") :]
        assert fault == again[again.index("error: ") :]
        assert not (tmp_path / "run").exists() and not (tmp_path / "search").exists()
        return fault

    return run


def spoil_cubes(folder: Path) -> dict[str, str]:
    """One file of each bad kind; the reason that is told of it, by name."""
    nan = smooth(12).astype(np.float32) / 65535
    nan[3, :4] = np.nan
    write_cube(folder / "nan.hdr", nan, wavelength=list(range(400, 731, 30)))
    short = folder / "00.bil"
    short.write_bytes(short.read_bytes()[:-2])
    (folder / "01.hdr").unlink()
    (folder / "02.bil").unlink()
    order = folder / "03.hdr"
    order.write_text(order.read_text().replace("byte order = 0", "byte order = 1"))
    (folder / "04.hdr").write_text("ENVI\nsamples = 20\n")
    return {
        "00.hdr": "the header asks for 9,600 bytes",
        "01.bil": "no header 01.hdr beside it",
        "02.hdr": "no data file beside it",
        "03.hdr": "look byte-swapped; write byte order = 0 in 03.hdr",
        "04.hdr": "",
        "nan.hdr": "not finite (NaN or infinite) in 490 nm (80 pixels)",
    }


def test_bad_cubes_above_the_share_are_refused_by_name(cubes: Path, refuse: Refuse) -> None:
    bad = spoil_cubes(cubes)
    told = refuse(cubes, "value_scaling=bit_depth")
    assert "6 of 41 images" in told and "raise max_unreadable" in told
    for name, reason in bad.items():
        assert f"{name}: " in told and reason in told, name


@pytest.mark.slow
def test_bad_cubes_below_the_share_are_left_out(
    cubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_cubes(cubes)
    own = [f"data_dir={cubes}", f"out_dir={tmp_path / 'run'}", *TINY, "max_unreadable=0.2", "max_epochs=1"]
    assert train.main([*own, "transforms.band_dropout_strength=0.2"]) == 0
    told = capsys.readouterr()
    assert "6 of 41 images" in told.err and "are left out" in told.err
    assert "hyperspectral, 12 of 12 channels (400 nm, 430 nm, ..., 730 nm)" in told.out + told.err


def test_an_empty_mask_is_told_where_masks_are_used(tiffs: Path, refuse: Refuse) -> None:
    pixels = smooth(7)
    pixels[6] = 0
    for number in range(4):
        write_tiff(tiffs / f"{number:02d}.tif", pixels)
    told = refuse(tiffs, "use_segmentation_mask=true")
    assert "4 of 40 images" in told and "00.tif: its mask is empty: no pixel above 0" in told


def test_images_of_different_channels_are_refused_naming_both(tiffs: Path, cubes: Path, refuse: Refuse) -> None:
    write_tiff(tiffs / "x.tif", smooth(6))
    assert "7 in 00.tif and 39 more, 6 in x.tif" in refuse(tiffs)
    write_cube(cubes / "x.hdr", smooth(12), wavelength=list(range(700, 1031, 30)))
    assert "x.hdr has band 0 at 700 nm, where 400 nm is expected (in 00.hdr)" in refuse(cubes)


def test_wavelengths_that_are_missing_are_told_where_they_are_asked_for(tmp_path: Path, refuse: Refuse) -> None:
    for number in range(40):
        write_cube(tmp_path / f"{number:02d}.hdr", smooth(12, number))
    for bands in ("range:400-700nm", "rgb", "[550nm]"):
        told = refuse(tmp_path, f"bands={bands}", "modality=hyperspectral")
        assert "the headers tell no wavelengths" in told and "00.hdr" in told and "range:0-11" in told


def test_channels_that_the_files_do_not_have_are_refused(tiffs: Path, refuse: Refuse) -> None:
    assert "channels: 9: the files' channels are red, green, blue, uv1, uv2, uv3, mask" in refuse(tiffs, "channels=[9]")
    told = refuse(tiffs, "channel_names=[a, b, c]")
    assert "channel_names: names 3 channels (a, b, c), and the files have 7" in told and "00.tif" in told


def test_augmentations_without_a_meaning_are_refused(tiffs: Path, cubes: Path, refuse: Refuse) -> None:
    told = refuse(cubes, "transforms.cj_prob=0.8", "transforms.random_gray_scale=0.2")
    assert "transforms.cj_prob: 0.8: colour jitter acts on red, green and blue" in told
    assert "transforms.random_gray_scale: 0.2" in told and "set transforms.cj_prob=0" in told
    assert "transforms.shift_prob: 0.5: a shift needs the bands of a spectrum" in refuse(
        tiffs, "transforms.shift_prob=0.5"
    )


def test_saturated_bands_are_told_by_the_examination(
    cubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = smooth(12)
    pixels[7, :15] = 65535
    bad = spoil_cubes(cubes)
    write_cube(cubes / "saturated.hdr", pixels, wavelength=list(range(400, 731, 30)))
    arguments = [str(cubes), "--out", str(tmp_path / "check"), "input_size=32", "batch_size=8", "--strict"]
    assert check_data.main(arguments) == 1
    told = capsys.readouterr().out
    written = (tmp_path / "check" / "check.json").read_text()
    assert "saturated" in told and '"610 nm"' in written
    for name in bad:
        assert name in written
