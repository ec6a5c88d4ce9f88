"""What the headers of ENVI files say, in all their looks; and headers that make no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.data.envi import is_envi_header, read_channels, read_layout
from phenoscape_tune.data.layout import UnreadableImage
from tests.data.test_envi import header_text, ramp, refusal, write

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
