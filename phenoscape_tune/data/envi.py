"""Hyperspectral cubes in ENVI files: a text header (.hdr), whose path is the image's, and a data file beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from phenoscape_tune.data.byte_order import looks_swapped
from phenoscape_tune.data.envi_header import Header, is_envi_header, read_header
from phenoscape_tune.data.layout import (
    Layout,
    UnreadableImage,
    check_channels,
    check_file,
    copy_channels,
    faults_told,
)

__all__ = ["DATA_SUFFIXES", "data_files", "is_envi_header", "read_channels", "read_layout"]

DATA_SUFFIXES = (".bil", ".bsq", ".bip", ".raw", ".dat", ".img", "")
"""Of the data file beside a header."""
SPELLINGS = (str.lower, str.upper, lambda suffix: suffix[:1] + suffix[1:].capitalize())
"""How such a suffix may be written: .img, .IMG or .Img."""


def read_layout(path: Path) -> Layout:
    """The layout of the cube that a header describes; the data file must be there and of the size it asks for.

    Raises UnreadableImage; see `read_channels`.
    """
    header, _ = _open(path)
    count = header.bands
    return Layout(
        channels=count,
        height=header.lines,
        width=header.samples,
        full_scale=(header.full_scale,) * count,
        names=header.names,
        wavelengths=header.wavelengths,
        no_data=header.no_data,
        bad=header.bad,
    )


def read_channels(path: Path, channels: Sequence[int] | None = None) -> np.ndarray:
    """(n, H, W) of the bands asked for, in the type of the file and the byte order of the machine.

    The file is mapped: what is held in memory is the result and a block of rows, whatever the interleave and the
    number of bands, so that a large cube can be read some bands at a time.

    Raises UnreadableImage where there is no header or no single data file beside it, where the two disagree in size,
    for complex numbers and compressed data, and where the values look as if the header named the wrong byte order.
    """
    header, data = _open(path)
    asked = check_channels(channels, header.bands)
    with faults_told():
        cube = _map(header, data)
        if looks_swapped(cube):
            other = 0 if header.dtype.str[0] == ">" else 1
            raise UnreadableImage(
                f"the values look byte-swapped; write byte order = {other} in {_header_of(path).name}"
            )
        out = np.empty((len(asked), header.lines, header.samples), header.dtype.newbyteorder("="))
        copy_channels(cube, asked, out)
    return out


def _open(path: Path) -> tuple[Header, Path]:
    """The header and the path of the data file, whose size is as it must be."""
    header = read_header(_header_of(path))
    data = _data_of(_header_of(path))
    size = check_file(data)
    if size != header.size:
        raise UnreadableImage(
            f"the header asks for {header.size:,} bytes ({header.lines} lines × {header.samples} samples × "
            f"{header.bands} bands × {header.dtype.itemsize} bytes, offset {header.offset}); {data.name} has {size:,}"
        )
    return header, data


def _header_of(path: Path) -> Path:
    """The header that a path means: itself, or the one beside a data file."""
    if path.suffix.lower() == ".hdr" or is_envi_header(path):
        return path
    check_file(path)
    beside = [path.with_suffix(".hdr"), path.with_name(path.name + ".hdr"), path.with_suffix(".HDR")]
    found = next((name for name in beside if is_envi_header(name)), None)
    if found is None:
        raise UnreadableImage(f"no header {beside[0].name} beside it")
    return found


def data_files(header: Path) -> list[Path]:
    """The files beside a header that have its name with a suffix of data, or without .hdr: what may be its data."""
    stem = header.with_suffix("")
    others = [header] if header.exists() else []
    found: list[Path] = []
    for suffix in (spell(suffix) for suffix in DATA_SUFFIXES for spell in SPELLINGS):
        candidate = stem.with_name(stem.name + suffix)
        # Where names are the same in capitals, all spellings are one file.
        if candidate.is_file() and not any(candidate.samefile(other) for other in (*others, *found)):
            found.append(candidate)
    return found


def _data_of(header: Path) -> Path:
    """The one file that may be a header's data. Raises UnreadableImage where there is none, or more."""
    found = data_files(header)
    if not found:
        known = " ".join(DATA_SUFFIXES).strip()
        stem = header.with_suffix("").name
        raise UnreadableImage(f"no data file beside it: {stem} with {known} or without a suffix")
    if len(found) > 1:
        raise UnreadableImage(f"several data files beside it: {' and '.join(name.name for name in found)}; keep one")
    return found[0]


def _map(header: Header, data: Path) -> np.ndarray:
    """(lines, samples, bands) of the data file, mapped, in the byte order of the file."""
    from spectral.io.bilfile import BilFile
    from spectral.io.bipfile import BipFile
    from spectral.io.bsqfile import BsqFile

    params = SimpleNamespace(
        nrows=header.lines,
        ncols=header.samples,
        nbands=header.bands,
        offset=header.offset,
        dtype=header.dtype.str,
        byte_order=int(header.dtype.str[0] == ">"),
        filename=os.path.abspath(data),
    )
    image = {"bil": BilFile, "bip": BipFile, "bsq": BsqFile}[header.interleave](params)
    image.fid.close()  # the map needs it no longer
    cube = image.open_memmap(interleave="bip")
    if cube is None:  # the package says no more than that it could not
        raise UnreadableImage(f"{data.name} cannot be mapped into memory")
    return cube
