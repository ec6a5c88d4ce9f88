"""Which files of a folder are its images, and of which modality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from phenoscape_tune.data import pictures, tiff
from phenoscape_tune.data.listing import files_of, list_images
from phenoscape_tune.data.specimens import find_specimens
from phenoscape_tune.errors import UserError


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def write_tiff(path: Path, channels: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((channels, 4, 4), np.uint16)
    tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate", metadata=None)


def write_cube(path: Path, suffix: str = ".bil") -> None:
    """The two files of a cube, without what they say of each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".hdr").write_text("ENVI\nlines = 1\n")
    path.with_suffix(suffix).write_bytes(b"\0\0")


def test_pictures_are_rgb(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.tif", "b/3.png"):
        write_picture(tmp_path / name)
    found = list_images(tmp_path)
    assert (found.modality, found.names, found.passed_over) == ("rgb", ("a/1.jpg", "a/2.tif", "b/3.png"), 0)


def test_tiffs_of_other_channels_are_multispectral_and_previews_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        write_tiff(tmp_path / f"{number}.tif", 7)
    write_picture(tmp_path / "0.jpg")
    found = list_images(tmp_path)
    assert (found.modality, found.names, found.passed_over) == ("multispectral", ("0.tif", "1.tif", "2.tif"), 1)
    assert find_specimens(tmp_path).modality == "multispectral"


def test_one_such_file_among_photographs_does_not_pass_them_over(tmp_path: Path) -> None:
    write_tiff(tmp_path / "odd.tif", 7)
    for number in range(5):
        write_picture(tmp_path / f"{number}.jpg")
    assert list_images(tmp_path).modality == "rgb"
    assert len(list_images(tmp_path).names) == 6
    assert list_images(tmp_path, "multispectral").names == ("odd.tif",)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [3, 4])
def test_tiffs_that_pillow_does_not_know_are_multispectral(tmp_path: Path, samples: int, planar: str) -> None:
    shape = (8, 8, samples) if planar == "contig" else (samples, 8, 8)
    for number in range(3):
        pixels = np.random.default_rng(number).random(shape, np.float32)
        tifffile.imwrite(tmp_path / f"{number}.tif", pixels, photometric="rgb", planarconfig=planar)
    found = list_images(tmp_path)
    assert (found.modality, len(found.names)) == ("multispectral", 3)
    assert all(tiff.read_layout(tmp_path / name).channels == samples for name in found.names)


def write_four(path: Path, transparent: bool) -> None:
    """RGB and a fourth channel, marked as transparency: a cut-out specimen's, or ultraviolet of any value."""
    pixels = np.random.default_rng(0).integers(1, 200, (8, 8, 4)).astype(np.uint8)
    if transparent:
        pixels[..., 3] = 255 * (np.arange(8) > 3)
    tifffile.imwrite(path, pixels, photometric="rgb")


@pytest.mark.parametrize("transparent", [False, True])
def test_a_fourth_channel_is_transparency_where_its_pixels_are(tmp_path: Path, transparent: bool) -> None:
    for number in range(9):
        write_four(tmp_path / f"{number}.tif", transparent)
    assert list_images(tmp_path).modality == ("rgb" if transparent else "multispectral")


def test_only_a_few_are_decoded_to_tell_transparency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        write_four(tmp_path / f"{number:02}.tif", number >= 30)
    decoded = []

    def read_image(path: Path, *arguments: Any) -> np.ndarray:
        decoded.append(path)
        return own(path, *arguments)

    own = pictures.read_image
    monkeypatch.setattr(pictures, "read_image", read_image)
    assert list_images(tmp_path).modality == "multispectral"
    assert len(decoded) == 4


def test_one_cube_among_photographs_does_not_pass_them_over(tmp_path: Path) -> None:
    write_cube(tmp_path / "odd")
    for number in range(2):
        write_picture(tmp_path / f"{number}.jpg")
    found = list_images(tmp_path)  # two pictures of a cube may be its previews
    assert (found.modality, found.passed_over) == ("hyperspectral", 2)
    write_picture(tmp_path / "2.jpg")
    found = list_images(tmp_path)
    assert (found.modality, found.names, found.passed_over) == ("rgb", ("0.jpg", "1.jpg", "2.jpg"), 1)
    assert list_images(tmp_path, "hyperspectral").names == ("odd.hdr",)


def test_cubes_are_listed_by_their_headers_and_data_without_one_is_not_missed(tmp_path: Path) -> None:
    write_cube(tmp_path / "a/1")
    write_cube(tmp_path / "b/2", ".raw")
    (tmp_path / "b/3.img").write_bytes(b"\0")
    (tmp_path / "b/4.bil").write_bytes(b"\0")
    (tmp_path / "b/4.bil.hdr").write_text("ENVI\n")
    (tmp_path / "b/light.hdr").write_text("#?RADIANCE\n")
    write_picture(tmp_path / "b/preview.png")
    found = list_images(tmp_path)
    assert found.modality == "hyperspectral"
    assert found.names == ("a/1.hdr", "b/2.hdr", "b/3.img", "b/4.bil.hdr")
    assert found.passed_over == 1
    assert list_images(tmp_path, "rgb").names == ("b/preview.png",)


@pytest.mark.parametrize("suffix", [".BIP", ".Img", ".bil"])
def test_a_cube_is_read_from_its_header_and_its_data(tmp_path: Path, suffix: str) -> None:
    write_cube(tmp_path / "1", suffix)
    assert files_of(tmp_path / "1.hdr", "hyperspectral") == [tmp_path / "1.hdr", tmp_path / f"1{suffix}"]
    assert files_of(tmp_path / "1.tif", "multispectral") == [tmp_path / "1.tif"]


def test_labels_may_name_a_cubes_header_or_its_data(tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4"):
        write_cube(tmp_path / name)
    (tmp_path / "labels.csv").write_text("filename,label\n1.hdr,a\n2.bil,a\n3,b\n4.bil,b\n")
    found = find_specimens(tmp_path, tmp_path / "labels.csv")
    assert found.names == ("1.hdr", "2.hdr", "3.hdr", "4.hdr")
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        ("multispectral", r"none a multispectral image \(.jpg ×1\); known: .tif .tiff"),
        ("hyperspectral", r"none a hyperspectral image \(.jpg ×1\); known: ENVI headers .hdr"),
    ],
)
def test_a_folder_without_images_of_the_modality_is_refused(tmp_path: Path, modality: str, message: str) -> None:
    write_picture(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=message):
        list_images(tmp_path, modality)  # type: ignore[arg-type]


def test_what_a_user_may_have_taken_for_images_is_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "MVI_1.MP4", "old.zip", "IMG_1.HEIC", "IMG_2.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path).not_read == ".heic ×2, .mp4 ×1, .zip ×1"
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(
        UserError, match=r"Unpack old\.zip first\. .*MVI_1\.MP4 first\. Save IMG_1\.HEIC and its like as JPEG"
    ):
        list_images(tmp_path)


def test_a_misspelt_folder_is_told_with_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    with pytest.raises(UserError, match=r"brids does not exist; did you mean .*/birds\?"):
        list_images(tmp_path / "brids")
    with pytest.raises(UserError, match=r"x does not exist\. Write"):
        list_images(tmp_path / "x")
    with pytest.raises(UserError, match=r"nowhere/birds does not exist, nor does .*/nowhere\."):
        list_images(tmp_path / "nowhere" / "birds")
