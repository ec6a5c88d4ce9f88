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

from phenoscape_tune.data.envi import DATA_SUFFIXES, is_envi_header, read_channels, read_layout
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


BAD_FIELDS = [
    ({"bands": 0}, "bands = 0; at least 1"),
    ({"lines": -5}, "lines = -5; at least 1"),
    ({"samples": None}, "no 'samples'"),
    ({"samples": "seven"}, "samples = 'seven'; a whole number"),
    ({"samples": "7.5"}, "a whole number is needed"),
    ({"lines": 2**31, "samples": 2**31}, "pixels; at most"),
    ({"lines": 10**17}, "pixels; at most"),
    ({"lines": "9" * 5000}, "a whole number is needed"),
    ({"bands": 10**17}, "the header asks for 7,000,000,000,000,000,000 bytes"),
    ({"data type": "6"}, "data type = 6, complex numbers"),
    ({"data type": "9"}, "data type = 9, complex numbers"),
    ({"data type": "7"}, "data type = '7'; known are 1, 2, 3, 4, 5, 12, 13, 14, 15"),
    ({"data type": None}, "data type = ''; known"),
    ({"interleave": "bsx"}, "interleave = 'bsx'; only bil, bip, bsq"),
    ({"interleave": None}, "interleave = ''; only"),
    ({"byte order": 2}, "byte order = 2; write 0"),
    ({"header offset": -1}, "header offset = -1"),
    ({"file compression": 1}, "file compression = 1; write the data without"),
    ({"file type": "ENVI Spectral Library"}, "spectral library, which is no image"),
    ({"major frame offsets": "{4, 0}"}, "major frame offsets other than 0"),
    ({"wavelength": "{400, 500, 600}"}, "3 wavelengths for 4 bands"),
    ({"wavelength": "{400, 500, 600, 700, 800}"}, "5 wavelengths for 4 bands"),
    ({"wavelength": "{400, blue, 600, 700}"}, "wavelength holds 'blue', which is no number"),
    ({"wavelength": "{400, nan, 600, 700}"}, "a wavelength of nan"),
    ({"wavelength": "{400, 500, 0, 700}"}, "a wavelength of 0"),
    ({"wavelength": "{1,2,3,4}", "wavelength units": "parsecs"}, "wavelength units = 'parsecs'; write Nanometers"),
    ({"wavelength": "{400, 500"}, "the brace after 'wavelength' is never closed"),
    ({"bbl": "{1, 0}"}, "2 values in bbl for 4 bands"),
    ({"data ignore value": "none"}, "data ignore value holds 'none'"),
    ({"reflectance scale factor": 0}, "reflectance scale factor = 0"),
    ({"Samples ": 8}, "'samples' stands twice"),
]


@pytest.mark.parametrize(("fields", "told"), BAD_FIELDS, ids=[told for _, told in BAD_FIELDS])
def test_a_header_that_makes_no_sense_is_refused_by_its_field(
    tmp_path: Path, fields: dict[str, object], told: str
) -> None:
    path = write(tmp_path, ramp(), **fields)
    assert told in refusal(path)
    with pytest.raises(UnreadableImage):
        read_layout(path)


UNITS = [
    ("Nanometers", "{400, 500.5}", (400.0, 500.5)),
    ("Micrometers", "{0.29, 0.57}", (290.0, 570.0)),
    ("um", "{0.4, 0.5}", (400.0, 500.0)),
    ("Millimeters", "{0.0004, 0.0005}", (400.0, 500.0)),
    ("Angstroms", "{4000, 5000}", (400.0, 500.0)),
    ("Wavenumber", "{25000, 20000}", (400.0, 500.0)),
    ("cm-1", "{25000, 20000}", (400.0, 500.0)),
    ("GHz", "{299792.458, 599584.916}", (1000.0, 500.0)),
    ("Unknown", "{0.4, 2.5}", (400.0, 2500.0)),
    ("Unknown", "{400, 2500}", (400.0, 2500.0)),
    (None, "{0.4, 2.5}", (400.0, 2500.0)),
    (None, "{99, 100}", (99.0, 100.0)),
    ("Index", "{1, 2}", None),
]


@pytest.mark.parametrize(("unit", "values", "expected"), UNITS)
def test_wavelengths_are_nanometres_in_any_unit(
    tmp_path: Path, unit: str | None, values: str, expected: tuple[float, ...] | None
) -> None:
    path = write(tmp_path, ramp(bands=2), wavelength=values, **({"wavelength units": unit} if unit else {}))
    assert read_layout(path).wavelengths == expected


def test_the_header_tells_names_scale_and_what_is_no_data(tmp_path: Path) -> None:
    fields = {"band names": "{uv, blue , green,\n  red}", "bbl": "{1, 0, 1, 0}", "data ignore value": "-9999"}
    path = write(tmp_path, ramp(dtype="i2"), **fields, **{"reflectance scale factor": "10000.0"})
    layout = read_layout(path)
    assert layout.names == ("uv", "blue", "green", "red")
    assert layout.bad == (1, 3) and layout.no_data == -9999 and layout.full_scale == (10000.0,) * 4
    plain = read_layout(write(tmp_path, ramp(dtype="i2"), **{"band names": "{a, b, c, d, e}"}))
    assert plain.names is None and plain.no_data is None and plain.bad == () and plain.full_scale == (32767.0,) * 4
    assert read_layout(write(tmp_path, ramp(dtype="f4"))).full_scale == (1.0,) * 4


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("u2", "-9999", None),
        ("u2", "65535", 65535),
        ("u2", "65536", None),
        ("u2", "0.5", None),
        ("i2", "-9999", -9999),
        ("u1", "inf", None),
        ("i2", "nan", None),
        ("f4", "-3.40282346638529e+38", -3.40282346638529e38),
        ("f4", "1e39", None),
        ("f8", "-1e39", -1e39),
    ],
)
def test_what_is_no_data_can_be_a_value(tmp_path: Path, dtype: str, value: str, expected: float | None) -> None:
    assert read_layout(write(tmp_path, ramp(dtype=dtype), **{"data ignore value": value})).no_data == expected


def test_not_a_number_may_be_no_data(tmp_path: Path) -> None:
    no_data = read_layout(write(tmp_path, ramp(dtype="f4"), **{"data ignore value": "NaN"})).no_data
    assert no_data is not None and np.isnan(no_data)


LOOKS = {
    "crlf": lambda text: text.replace("\n", "\r\n").encode(),
    "capitals": lambda text: text.replace("samples", "Samples").replace("data type", "DATA  TYPE").encode(),
    "mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "latin-1": lambda text: (text + "description = {\n Fl\xfcgel, 5 \xb5m = fein }\n").encode("latin-1"),
    "comments": lambda text: text.replace("samples", "; samples = 3\nsamples").encode(),
    "spaces": lambda text: text.replace(" = ", "=  ").encode(),
    "no last newline": lambda text: text.rstrip().encode(),
}


@pytest.mark.parametrize("look", sorted(LOOKS))
def test_headers_of_all_looks_are_read(tmp_path: Path, look: str, capfd: pytest.CaptureFixture[str]) -> None:
    cube = ramp()
    path = write(tmp_path, cube, wavelength="{400,\n 500, 600 ,\n700,\n}")
    path.write_bytes(LOOKS[look](path.read_text()))
    np.testing.assert_array_equal(read_channels(path), cube.transpose(2, 0, 1))
    assert read_layout(path).wavelengths == (400, 500, 600, 700)
    assert capfd.readouterr() == ("", "")


def test_our_parser_agrees_with_the_spectral_packages(tmp_path: Path) -> None:
    from spectral.io import envi

    from phenoscape_tune.data.envi_header import _split_fields

    metadata = {
        "wavelength": [400.5, 500, 600, 700],
        "band names": list("abcd"),
        "description": "one\ntwo",
        "bbl": [1] * 4,
    }
    envi.save_image(str(tmp_path / "x.hdr"), ramp(), metadata=metadata)
    assert _split_fields((tmp_path / "x.hdr").read_text()) == envi.read_envi_header(str(tmp_path / "x.hdr"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty file"),
        (b"#?RADIANCE\n", "not an ENVI header"),
        (b"\x5c\x01\0\0" + bytes(344), "not an ENVI header"),
        ("ENVI\nsamples = 3".encode("utf-16"), "not an ENVI header"),
        (b"ENVI", "no 'lines'"),
        (b"ENVI\n\0\0=\0{\xff", "no 'lines'"),
        (b"ENVI\nx={\xff", "the brace after 'x' is never closed"),
    ],
)
def test_what_is_no_header_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.hdr").write_bytes(content)
    assert told in refusal(tmp_path / "x.hdr")
    assert is_envi_header(tmp_path / "x.hdr") == content.startswith(b"ENVI")
    assert not is_envi_header(tmp_path) and not is_envi_header(tmp_path / "absent")


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


WHOLE = header_text(ramp(), wavelength="{400, 500, 600, 700}", bbl="{1,1,1,1}", **{"band names": "{a,b,c,d}"}).encode()


@settings(max_examples=150, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3)), min_size=1, max_size=4),
    length=st.integers(0, len(WHOLE)),
)
def test_a_damaged_header_is_an_image_or_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]], length: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = write(folder, ramp())
    content = bytearray(WHOLE)
    for place, new in edits:
        content[place : place + len(new)] = new
    for version in (bytes(content), bytes(content[:length])):
        path.write_bytes(version)
        try:
            layout, pixels = read_layout(path), read_channels(path)
        except UnreadableImage:
            continue
        assert pixels.shape == (layout.channels, layout.height, layout.width)
        assert pixels.nbytes <= 280
