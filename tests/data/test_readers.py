"""What every reader keeps to, by one contract; and the files that other software wrote."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tifffile
from PIL import Image
from spectral.io import envi as spectral_envi

from phenoscape_tune.data.layout import Layout, UnreadableImage
from phenoscape_tune.data.readers import Modality, Reader, reader_of

FILES = Path(__file__).parent / "files"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 13, 17), "u1")


def write_picture(folder: Path) -> Path:
    Image.fromarray(PIXELS.transpose(1, 2, 0)).save(folder / "x.png")
    return folder / "x.png"


def write_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "x.tif", PIXELS, photometric="minisblack", compression="lzw")
    return folder / "x.tif"


def write_cube(folder: Path) -> Path:
    spectral_envi.save_image(str(folder / "x.hdr"), PIXELS.transpose(1, 2, 0), interleave="bil", ext=".bil")
    return folder / "x.hdr"


WRITERS: dict[str, Callable[[Path], Path]] = {
    "rgb": write_picture,
    "multispectral": write_tiff,
    "hyperspectral": write_cube,
}


@pytest.fixture(params=get_args(Modality))
def modality(request: pytest.FixtureRequest) -> Modality:
    return request.param


@pytest.fixture
def reader(modality: Modality) -> Reader:
    return reader_of(modality)


@pytest.fixture
def path(modality: Modality, tmp_path: Path) -> Path:
    return WRITERS[modality](tmp_path)


def test_the_layout_is_that_of_the_pixels(reader: Reader, path: Path) -> None:
    layout, pixels = reader.read_layout(path), reader.read_channels(path)
    assert isinstance(layout, Layout)
    assert pixels.shape == (layout.channels, layout.height, layout.width) == PIXELS.shape
    assert len(layout.full_scale) == layout.channels and layout.full_scale == (255.0,) * 3
    for told in (layout.names, layout.wavelengths):
        assert told is None or len(told) == layout.channels


def test_the_values_are_those_of_the_file(reader: Reader, path: Path) -> None:
    pixels = reader.read_channels(path)
    assert pixels.dtype == "u1" and pixels.dtype.isnative and pixels.flags.c_contiguous and pixels.flags.writeable
    assert pixels.tobytes() == PIXELS.tobytes()


@pytest.mark.parametrize("asked", [[0], [2, 0], [1, 1], [2, 1, 0], []])
def test_channels_come_in_the_order_asked(reader: Reader, path: Path, asked: list[int]) -> None:
    pixels = reader.read_channels(path, asked)
    assert pixels.shape == (len(asked), 13, 17) and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, PIXELS[asked])


def test_any_sequence_of_indices_asks(reader: Reader, path: Path) -> None:
    for asked in (range(1, 3), (1, 2), np.array([1, 2])):
        np.testing.assert_array_equal(reader.read_channels(path, asked), PIXELS[1:])  # type: ignore[arg-type]


def test_threads_read_the_same_at_once(reader: Reader, path: Path) -> None:
    def read(number: int) -> tuple[Layout, bytes]:
        return reader.read_layout(path), reader.read_channels(path, [number % 3]).tobytes()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(60)))
    layout = reader.read_layout(path)
    assert found == [(layout, PIXELS[number % 3].tobytes()) for number in range(60)]


def test_what_is_read_is_the_readers_own(reader: Reader, path: Path) -> None:
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    reader.read_channels(path)[:] = 7
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    np.testing.assert_array_equal(reader.read_channels(path), PIXELS)


@contextmanager
def refused_by(reader: Reader, path: Path) -> Iterator[list[str]]:
    """Both functions refuse the file, with one line that leads nowhere into the program."""
    told: list[str] = []
    for read in (reader.read_layout, reader.read_channels):
        with pytest.raises(UnreadableImage) as caught:
            read(path)
        told.append(str(caught.value))
        assert told[-1] and "\n" not in told[-1] and len(told[-1]) < 300
        assert "Traceback" not in told[-1] and str(path.parent) not in told[-1]
    yield told


def replace_by_nothing(path: Path) -> None:
    path.unlink()


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def replace_by_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("a letter, not an image\n")


def begin_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6])


BREAKS = [
    replace_by_nothing,
    replace_by_folder,
    replace_by_pipe,
    replace_by_device,
    replace_by_loop,
    empty,
    replace_by_text,
    begin_only,
]


@pytest.mark.parametrize("break_it", BREAKS)
@pytest.mark.timeout(30)
def test_what_is_no_image_is_refused_with_a_reason(
    reader: Reader, path: Path, break_it: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    break_it(path)
    with refused_by(reader, path):
        assert capfd.readouterr() == ("", "")


def test_no_reader_takes_the_files_of_another_for_other_pixels(reader: Reader, tmp_path: Path) -> None:
    for write in WRITERS.values():
        other = write(tmp_path)
        try:
            found = reader.read_channels(other)
        except UnreadableImage:
            continue
        np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("name", ["ünïcödé 蝶 x", "a\nb", "x;y {z} %20", os.fsdecode(b"\xff\xfe")])
def test_any_name_of_a_file_is_read_and_told(reader: Reader, path: Path, name: str) -> None:
    for file in list(path.parent.iterdir()):
        file.rename(file.with_name(name + file.suffix))
    renamed = path.with_name(name + path.suffix)
    np.testing.assert_array_equal(reader.read_channels(renamed), PIXELS)
    for file in path.parent.iterdir():
        file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UnreadableImage) as caught:
        reader.read_channels(renamed)
    str(caught.value).encode("utf-8")
    assert str(caught.value).isprintable()


def test_files_that_cannot_be_opened_are_refused(reader: Reader, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    monkeypatch.setattr(Path, "read_bytes", deny)
    with refused_by(reader, path) as told:
        assert told == ["Permission denied"] * 2


def test_every_reader_is_loaded_without_its_library() -> None:
    for modality in get_args(Modality):
        module = inspect.getmodule(reader_of(modality).read_layout)
        assert module is not None
        assert not {"tifffile", "spectral", "imagecodecs"} & set(vars(module))


CHANNEL, ROW, COLUMN = np.indices((7, 10, 12))
VALUE = (500 * CHANNEL + 20 * ROW + COLUMN).astype("u2")
MASK = (ROW[:1] > 2).astype("u1")
NAMES = ("uv 365", "uv 385", "uv 405", "blue", "green", "red", "near infrared")
WAVELENGTHS = (365.0, 385.0, 405.0, 450.0, 550.0, 650.0, 850.0)
U2 = (65_535.0,) * 7
GDAL_NAMES = tuple(f"{name} ({nm:.0f} Nanometers)" for name, nm in zip(NAMES, WAVELENGTHS, strict=True))

# See files/README.md: by which commands, and what they were given.
WRITTEN_BY_OTHERS: list[tuple[str, np.ndarray, Layout]] = [
    ("spectral_bil.hdr", VALUE, Layout(7, 10, 12, U2, NAMES, WAVELENGTHS)),
    ("spectral_bsq.hdr", VALUE.astype("f4"), Layout(7, 10, 12, (1.0,) * 7, NAMES, WAVELENGTHS)),
    ("gdal_envi.hdr", VALUE, Layout(7, 10, 12, U2, GDAL_NAMES)),
    ("gdal_tiles.tif", VALUE, Layout(7, 10, 12, U2, NAMES, WAVELENGTHS)),
    ("gdal_planes.tif", VALUE, Layout(7, 10, 12, U2, NAMES, WAVELENGTHS, no_data=65_535.0)),
    ("gdal_float.tif", VALUE.astype("f4"), Layout(7, 10, 12, (1.0,) * 7, NAMES, WAVELENGTHS)),
    ("gdal_12_bits.tif", VALUE, Layout(7, 10, 12, (4095.0,) * 7, NAMES, WAVELENGTHS)),
    ("gdal_overviews.tif", VALUE, Layout(7, 10, 12, U2, NAMES, WAVELENGTHS)),
    ("gdal_mask.tif", np.concatenate([VALUE, np.ones_like(VALUE[:1])]), Layout(8, 10, 12, (*U2, 1.0))),
    ("magick_pages.tif", VALUE, Layout(7, 10, 12, U2)),
    ("magick_mask.tif", np.concatenate([VALUE[:2], MASK * np.uint16(65_535)]), Layout(3, 10, 12, U2[:3])),
    ("magick_rgb.tif", VALUE[:3].astype("u1"), Layout(3, 10, 12, (255.0,) * 3)),
    ("magick_bilevel.tif", MASK, Layout(1, 10, 12, (1.0,))),
]


@pytest.mark.parametrize(
    ("name", "pixels", "layout"), WRITTEN_BY_OTHERS, ids=[name for name, _, _ in WRITTEN_BY_OTHERS]
)
def test_files_that_others_wrote_have_the_pixels_that_they_were_given(
    name: str, pixels: np.ndarray, layout: Layout
) -> None:
    reader = reader_of("hyperspectral" if name.endswith(".hdr") else "multispectral")
    found = reader.read_channels(FILES / name)
    assert found.dtype == pixels.dtype and found.tobytes() == np.ascontiguousarray(pixels).tobytes()
    assert reader.read_layout(FILES / name) == layout
    last = len(pixels) - 1
    np.testing.assert_array_equal(reader.read_channels(FILES / name, [last, 0]), pixels[[last, 0]])


def test_a_file_that_gdal_left_without_data_is_refused() -> None:
    with refused_by(reader_of("multispectral"), FILES / "gdal_sparse.tif") as told:
        assert told[0] == "1 of 1 strips or tiles have no data"


def test_every_file_that_others_wrote_is_read() -> None:
    known = {name for name, _, _ in WRITTEN_BY_OTHERS} | {"gdal_sparse.tif"}
    assert {file.name for file in FILES.iterdir() if file.suffix in (".tif", ".hdr")} == known
