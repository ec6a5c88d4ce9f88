"""ENVI cubes as the spectral package, GDAL and hands wrote them; and those that are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.data.envi import DATA_SUFFIXES, data_files, is_envi_header, read_channels, read_layout
from phenoscape_tune.data.layout import UnreadableImage

TYPES = {"1": "u1", "2": "i2", "3": "i4", "4": "f4", "5": "f8", "12": "u2", "13": "u4", "14": "i8", "15": "u8"}
AXES = {"bsq": (2, 0, 1), "bil": (0, 2, 1), "bip": (0, 1, 2)}


def ramp(lines: int = 5, samples: int = 7, bands: int = 4, dtype: str = "u2") -> np.ndarray:
    """(lines, samples, bands), every value another."""
    return np.arange(lines * samples * bands).reshape(lines, samples, bands).astype(dtype)


def header_text(cube: np.ndarray, interleave: str = "bip", order: int = 0, /, **fields: object) -> str:
    code = next(code for code, name in TYPES.items() if np.dtype(name) == cube.dtype.newbyteorder("="))
    values: dict[str, object] = {
        "samples": cube.shape[1],
        "lines": cube.shape[0],
        "bands": cube.shape[2],
        "header offset": 0,
        "data type": code,
        "interleave": interleave,
        "byte order": order,
    }
    values |= {key.replace("_", " "): value for key, value in fields.items()}
    return "ENVI\n" + "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None)


def write(
    folder: Path, cube: np.ndarray, interleave: str = "bip", order: int = 0, /, suffix: str = ".dat", **fields: object
) -> Path:
    """A cube (lines, samples, bands) and its header, by hand."""
    folder.mkdir(exist_ok=True)
    data = cube.transpose(AXES[interleave]).astype(cube.dtype.newbyteorder("<>"[order])).tobytes()
    (folder / f"x{suffix}").write_bytes(b"#" * int(str(fields.get("header_offset") or 0)) + data)
    (folder / "x.hdr").write_text(header_text(cube, interleave, order, **fields), encoding="utf-8")
    return folder / "x.hdr"


def refusal(path: Path, channels: Sequence[int] | None = None) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_channels(path, channels)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("interleave", sorted(AXES))
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("code", sorted(TYPES))
def test_what_the_spectral_package_writes_comes_back(tmp_path: Path, interleave: str, order: int, code: str) -> None:
    from spectral.io import envi

    cube = ramp(dtype=TYPES[code])
    path = tmp_path / "x.hdr"
    envi.save_image(str(path), cube, interleave=interleave, byteorder=order, dtype=cube.dtype, ext=interleave)
    layout = read_layout(path)
    assert (layout.channels, layout.height, layout.width) == (4, 5, 7)
    pixels = read_channels(path)
    assert pixels.dtype == cube.dtype and pixels.dtype.isnative and pixels.flags.c_contiguous
    assert pixels.tobytes() == np.ascontiguousarray(cube.transpose(2, 0, 1)).tobytes()
    np.testing.assert_array_equal(read_channels(path, [3, 1]), cube.transpose(2, 0, 1)[[3, 1]])


GDAL = shutil.which("gdal_translate")


@pytest.mark.skipif(GDAL is None, reason="gdal_translate is not installed")
@pytest.mark.parametrize("interleave", sorted(AXES))
def test_what_gdal_writes_comes_back(tmp_path: Path, interleave: str) -> None:
    import tifffile

    cube = ramp(dtype="f4")
    tifffile.imwrite(tmp_path / "x.tif", cube, photometric="minisblack", planarconfig="contig")
    assert GDAL is not None
    command = [GDAL, "-q", "-of", "ENVI", "-co", f"INTERLEAVE={interleave.upper()}", "x.tif", "cube"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "cube").exists()  # GDAL gives the data no suffix of its own
    assert read_channels(tmp_path / "cube.hdr").tobytes() == np.ascontiguousarray(cube.transpose(2, 0, 1)).tobytes()
    assert read_layout(tmp_path / "cube.hdr").names == ("Band 1", "Band 2", "Band 3", "Band 4")


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    code=st.sampled_from(sorted(TYPES)),
    interleave=st.sampled_from(sorted(AXES)),
    order=st.sampled_from([0, 1]),
    offset=st.integers(0, 9),
    data=st.data(),
)
def test_any_layout_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    code: str,
    interleave: str,
    order: int,
    offset: int,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    cube = rng.integers(0, 100, shape).astype(TYPES[code])
    path = write(tmp_path_factory.mktemp("any"), cube, interleave, order, header_offset=offset)
    asked = data.draw(st.lists(st.integers(0, shape[2] - 1), max_size=5))
    pixels = read_channels(path, asked)
    assert pixels.shape == (len(asked), *shape[:2]) and pixels.dtype == cube.dtype
    np.testing.assert_array_equal(pixels, cube.transpose(2, 0, 1)[asked])


@pytest.mark.parametrize("suffix", [*DATA_SUFFIXES, *(s.upper() for s in DATA_SUFFIXES if s), ".Img"])
def test_the_data_file_has_any_of_the_suffixes(tmp_path: Path, suffix: str) -> None:
    cube = ramp()
    path = write(tmp_path, cube, suffix=suffix)
    np.testing.assert_array_equal(read_channels(path), cube.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_channels(tmp_path / f"x{suffix}"), cube.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".bil", ".Img", ".RAW", ""])
def test_the_files_that_may_be_a_headers_data_are_listed_as_they_are_read(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, ramp(), suffix=suffix)
    assert data_files(path) == [tmp_path / f"x{suffix}"]
    (tmp_path / "lone.hdr").symlink_to(tmp_path / "gone.hdr")
    assert data_files(tmp_path / "lone.hdr") == []


def test_the_header_may_keep_the_suffix_of_the_data(tmp_path: Path) -> None:
    path = write(tmp_path, ramp(), suffix=".img")
    path.rename(tmp_path / "x.img.hdr")
    assert read_layout(tmp_path / "x.img.hdr").channels == 4
    assert read_layout(tmp_path / "x.img").channels == 4


def test_no_data_file_or_two_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, ramp(), suffix=".raw")
    shutil.copy(tmp_path / "x.raw", tmp_path / "x.bil")
    assert refusal(path) == "several data files beside it: x.bil and x.raw; keep one"
    (tmp_path / "x.bil").unlink()
    (tmp_path / "x.raw").unlink()
    assert refusal(path).startswith("no data file beside it: x with .bil .bsq")


def test_a_data_file_without_its_header_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ramp(), suffix=".bil").unlink()
    assert refusal(tmp_path / "x.bil") == "no header x.hdr beside it"
    assert refusal(tmp_path / "x.hdr") == "No such file or directory"


@pytest.mark.parametrize("change", [-1, 1, -280])
def test_a_data_file_of_another_size_is_refused_naming_both(tmp_path: Path, change: int) -> None:
    path = write(tmp_path, ramp(), header_offset=3)
    data = (tmp_path / "x.dat").read_bytes()
    (tmp_path / "x.dat").write_bytes((data + b"\0")[: len(data) + change])
    told = refusal(path)
    assert "asks for 283 bytes (5 lines × 7 samples × 4 bands × 2 bytes, offset 3)" in told
    assert told.endswith(f"x.dat has {283 + change}")
    with pytest.raises(UnreadableImage):
        read_layout(path)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, ramp())
    (tmp_path / "x.dat").unlink()
    os.mkfifo(tmp_path / "x.dat")
    assert "no data file" in refusal(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert refusal(path) == "not a file of data"
    assert not is_envi_header(path)


def smooth(seed: int, dtype: str, scale: float, lines: int = 40, samples: int = 40, bands: int = 6) -> np.ndarray:
    """What a scene is like: shapes of light, with one per cent of noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:lines, :samples] / lines
    waves = [np.sin(5 * y * rng.normal() + 7 * x * rng.normal() + rng.normal()) for _ in range(bands)]
    return ((np.stack(waves, -1) * 0.45 + 0.5 + rng.normal(size=(lines, samples, bands)) * 0.01) * scale).astype(dtype)


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", [0, 1])
def test_the_wrong_byte_order_is_told(tmp_path: Path, dtype: str, order: int) -> None:
    cube = smooth(1, dtype, 1.0 if dtype[0] == "f" else 10_000)
    path = write(tmp_path, cube, "bil", order)
    read_channels(path)
    path.write_text(header_text(cube, "bil", 1 - order))
    assert refusal(path) == f"the values look byte-swapped; write byte order = {order} in x.hdr"
    assert "byte-swapped" in refusal(path, [2])
    path.write_text(header_text(cube, "bil", order, **{"byte order": None}))
    if order == 0:
        np.testing.assert_array_equal(read_channels(path), cube.transpose(2, 0, 1))
    else:
        assert "byte order = 1" in refusal(path)


MEMORY = """
import resource, sys, threading
from pathlib import Path
from phenoscape_tune.data.envi import read_channels
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
path = Path(sys.argv[1])
read_channels(path, [0])
before, most, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.001):
        most[0] = max(most[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
pixels = read_channels(path, range(100, 108))
done.set()
watcher.join()
print(max(most[0], anonymous()) - before, pixels.nbytes >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells what memory is anonymous")
@pytest.mark.parametrize("interleave", ["bip", "bil"])
def test_a_few_bands_of_a_large_cube_do_not_fill_the_memory(tmp_path: Path, interleave: str) -> None:
    lines, samples, bands = 512, 256, 200  # 50 MiB
    path = write(tmp_path, np.zeros((1, samples, bands), "u2"), interleave, lines=lines)
    with (tmp_path / "x.dat").open("r+b") as file:
        file.truncate(lines * samples * bands * 2)
    told = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    grown, result = map(int, told.stdout.split())
    assert result == 2048 and grown < result + 6144, "KiB"


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = write(tmp_path, ramp())
    read_channels(path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    kept = [read_channels(path) for _ in range(20)]
    assert len(kept) == 20
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before
