"""The text header of an ENVI file → what it says of the data file beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phenoscape_tune.data.layout import UnreadableImage, check_file, check_size, faults_told, held_by, printable

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LARGEST_HEADER = 1 << 24
INTERLEAVES = ("bil", "bip", "bsq")
LIBRARY = "envi spectral library"

NANOMETRES = {
    "nanometers": 1.0,
    "nanometer": 1.0,
    "nanometres": 1.0,
    "nm": 1.0,
    "micrometers": 1e3,
    "micrometer": 1e3,
    "micrometres": 1e3,
    "microns": 1e3,
    "um": 1e3,
    "µm": 1e3,  # the micro sign
    "μm": 1e3,  # the Greek letter
    "millimeters": 1e6,
    "mm": 1e6,
    "centimeters": 1e7,
    "cm": 1e7,
    "meters": 1e9,
    "m": 1e9,
    "angstroms": 0.1,
    "angstrom": 0.1,
}
# n per centimetre is 1e7 / n nanometres; a frequency f has the wavelength c / f.
RECIPROCALS = {
    "wavenumber": 1e7,
    "cm-1": 1e7,
    "1/cm": 1e7,
    "ghz": 299792458.0,
    "mhz": 299792458e3,
}
Fields = dict[str, str | list[str]]

UNTOLD = ("", "unknown")
NO_WAVELENGTHS = ("index",)


@dataclass(frozen=True)
class Header:
    """What a header says, checked."""

    lines: int
    samples: int
    bands: int
    offset: int
    """Bytes before the first value."""
    dtype: np.dtype
    """Of the values, in the byte order of the file."""
    interleave: str
    """One of bil, bip and bsq."""
    full_scale: float
    """The reflectance scale factor, or the largest value of an integer type, or 1."""
    wavelengths: tuple[float, ...] | None
    """(bands,) nanometres."""
    names: tuple[str, ...] | None
    """(bands,)"""
    no_data: float | None
    """As `Layout.no_data`."""
    bad: tuple[int, ...]
    """The bands that ``bbl`` marks with 0, by index."""

    @property
    def size(self) -> int:
        """Bytes that the data file must have."""
        return self.offset + self.lines * self.samples * self.bands * self.dtype.itemsize


def is_envi_header(path: Path) -> bool:
    """Whether a file begins as an ENVI header does; False for what is no file of data."""
    try:
        check_file(path)
        with path.open("rb") as file:
            return file.read(16).removeprefix(BYTE_ORDER_MARK).startswith(b"ENVI")
    except (OSError, UnreadableImage):
        return False


def read_header(path: Path) -> Header:
    """The header of one ENVI image of real numbers, uncompressed. Raises UnreadableImage for anything else."""
    with faults_told():
        if check_file(path) > LARGEST_HEADER:
            raise UnreadableImage(f"a header of more than {LARGEST_HEADER >> 20} MiB")
        content = path.read_bytes()
        if not content.removeprefix(BYTE_ORDER_MARK).startswith(b"ENVI"):
            raise UnreadableImage("not an ENVI header: its first line is not ENVI")
        return _understand(_split_fields(_to_text(content)))


def _to_text(content: bytes) -> str:
    # Old software writes a description in the letters of its own country; every byte is a letter in Latin-1.
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _split_fields(text: str) -> Fields:
    """``key = value`` and ``key = {a, b}``, over several lines or not; keys in small letters, comments left out.

    The spectral package's own parser reads only the encoding of the machine, warns of capitals on standard error, and
    says of any fault only that there is one.
    """
    fields: Fields = {}
    lines = iter(text.splitlines()[1:])
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals or line.startswith(";"):
            continue
        key, value = " ".join(key.split()).lower(), _without_comment(value)
        if value.startswith("{"):
            parts = [value]
            while not parts[-1].endswith("}"):
                following = next(lines, None)
                if following is None:
                    raise UnreadableImage(f"header: the brace after {key[:40]!r} is never closed")
                if not following.startswith(";"):
                    parts.append(_without_comment(following))
            inside = "\n".join(parts)[1:-1]
            found: str | list[str] = inside.strip() if key == "description" else _split_list(inside)
        else:
            found = value
        if key in fields and fields[key] != found:
            raise UnreadableImage(f"header: {key[:40]!r} stands twice, with two values")
        fields[key] = found
    return fields


def _without_comment(line: str) -> str:
    return re.sub(r"\}\s*;.*$", "}", line).strip()


def _split_list(inside: str) -> list[str]:
    items = [" ".join(item.split()) for item in inside.split(",")]
    return items[:-1] if not items[-1] else items


def _understand(fields: Fields) -> Header:
    lines, samples, bands = (_count(fields, key) for key in ("lines", "samples", "bands"))
    check_size(lines, samples)
    offset = _whole(fields, "header offset", 0)
    if offset < 0:
        raise UnreadableImage(f"header: header offset = {offset}; it counts bytes, from 0")
    kind = _text(fields, "file type").lower()
    if kind == LIBRARY:
        raise UnreadableImage("an ENVI spectral library, which is no image")
    if _whole(fields, "file compression", 0) != 0:
        raise UnreadableImage("header: file compression = 1; write the data without compression")
    for key in ("major frame offsets", "minor frame offsets"):
        if any(value not in ("", "0") for value in _items(fields, key)):
            raise UnreadableImage(f"header: {key} other than 0 are not read")
    interleave = _text(fields, "interleave").lower()
    if interleave not in INTERLEAVES:
        raise UnreadableImage(f"header: interleave = {interleave[:40]!r}; only {', '.join(INTERLEAVES)} are read")
    dtype = _dtype(fields)
    return Header(
        lines=lines,
        samples=samples,
        bands=bands,
        offset=offset,
        dtype=dtype,
        interleave=interleave,
        full_scale=_full_scale(fields, dtype),
        wavelengths=_wavelengths(fields, bands),
        names=_names(fields, bands),
        no_data=held_by(_number(fields, "data ignore value"), dtype),
        bad=_bad_bands(fields, bands),
    )


def _dtype(fields: Fields) -> np.dtype:
    from spectral.io import envi

    types = {code: np.dtype(kind) for code, kind in envi.dtype_map}
    code = _text(fields, "data type")
    if code not in types:
        known = ", ".join(code for code, kind in types.items() if kind.kind != "c")
        raise UnreadableImage(f"header: data type = {code[:40]!r}; known are {known}")
    if types[code].kind == "c":
        raise UnreadableImage(f"header: data type = {code}, complex numbers, which are no reflectance")
    # Without one, as other software takes it: the order of the machines that are left. The values are looked at too.
    order = _whole(fields, "byte order", 0)
    if order not in (0, 1):
        raise UnreadableImage(f"header: byte order = {order}; write 0 (little-endian) or 1 (big-endian)")
    return types[code].newbyteorder("<>"[order])


def _full_scale(fields: Fields, dtype: np.dtype) -> float:
    factor = _number(fields, "reflectance scale factor")
    if factor is None:
        return 1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)
    if not (math.isfinite(factor) and factor > 0):
        raise UnreadableImage(f"header: reflectance scale factor = {factor:g}; it must be above 0")
    return factor


def _wavelengths(fields: Fields, bands: int) -> tuple[float, ...] | None:
    items = _items(fields, "wavelength")
    if items and len(items) != bands:
        raise UnreadableImage(f"header: {len(items)} wavelengths for {bands} bands")
    return to_nanometres(items, _text(fields, "wavelength units")) if items else None


def to_nanometres(items: Sequence[str], unit: str) -> tuple[float, ...] | None:
    """Wavelengths as they are written → nanometres; None where the unit says that they are none.

    Without a unit that says something, numbers that are all below 100 are taken for micrometres, others for nanometres.
    Raises UnreadableImage for what is no wavelength, and for an unknown unit.
    """
    unit = unit.strip().lower()
    if unit in NO_WAVELENGTHS:
        return None
    values = [_to_number(item, "wavelength") for item in items]
    wrong = next((value for value in values if not (math.isfinite(value) and value > 0)), None)
    if wrong is not None:
        raise UnreadableImage(f"header: a wavelength of {wrong:g}; it must be above 0")
    if unit in UNTOLD:
        unit = "micrometers" if max(values) < 100 else "nanometers"
    # Rounded to a millionth: 0.57 micrometres are 570 nanometres, so that a range may end there.
    if unit in NANOMETRES:
        return tuple(round(value * NANOMETRES[unit], 6) for value in values)
    if unit in RECIPROCALS:
        return tuple(round(RECIPROCALS[unit] / value, 6) for value in values)
    raise UnreadableImage(f"header: wavelength units = {unit[:40]!r}; write Nanometers or Micrometers")


def _names(fields: Fields, bands: int) -> tuple[str, ...] | None:
    # A name with a comma in it makes the list longer, which is no reason to refuse the pixels.
    items = _items(fields, "band names")
    return tuple(map(printable, items)) if len(items) == bands else None


def _bad_bands(fields: Fields, bands: int) -> tuple[int, ...]:
    items = _items(fields, "bbl")
    if items and len(items) != bands:
        raise UnreadableImage(f"header: {len(items)} values in bbl for {bands} bands")
    return tuple(band for band, item in enumerate(items) if _to_number(item, "bbl") == 0)


def _count(fields: Fields, key: str) -> int:
    if key not in fields:
        raise UnreadableImage(f"header: no {key!r}")
    value = _whole(fields, key, 0)
    if value < 1:
        raise UnreadableImage(f"header: {key} = {value}; at least 1 is needed")
    return value


def _whole(fields: Fields, key: str, default: int) -> int:
    text = _text(fields, key)
    if not text:
        return default
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise UnreadableImage(f"header: {key} = {text[:40]!r}; a whole number is needed")
    return int(text)


def _number(fields: Fields, key: str) -> float | None:
    text = _text(fields, key)
    return _to_number(text, key) if text else None


def _to_number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UnreadableImage(f"header: {key} holds {text[:40]!r}, which is no number") from None


def _text(fields: Fields, key: str) -> str:
    value = fields.get(key, "")
    return value if isinstance(value, str) else ", ".join(value)


def _items(fields: Fields, key: str) -> list[str]:
    value = fields.get(key, [])
    return value if isinstance(value, list) else [value] if value else []
