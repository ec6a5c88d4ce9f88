"""The names, the wavelengths and the value for no data that a TIFF gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import tifffile

from phenoscape_tune.data.tiff import read_layout
from tests.data.test_tiff import same, values, write


def test_names_are_those_that_the_file_gives(tmp_path: Path) -> None:
    names, pixels = ("red", "green", "blue", "uv"), values(4)
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path, pixels, photometric="minisblack", ome=True, metadata={"axes": "CYX", "Channel": {"Name": names}}
    )
    assert read_layout(path).names == names
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "CYX", "Labels": list(names)})
    assert read_layout(path).names == names
    with tifffile.TiffWriter(path) as file:
        for name, page in zip(names, pixels, strict=True):
            file.write(page, metadata=None, extratags=[(285, "s", 0, name, True)])
    assert read_layout(path).names == names
    items = "".join(f'<Item name="DESCRIPTION" sample="{i}" role="description">{n}</Item>' for i, n in enumerate(names))
    gdal = [(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    assert read_layout(write(path, pixels, "planes", extratags=gdal)).names == names
    assert read_layout(path).wavelengths is None
    for unit, expected in (("Micrometers", (400.0, 500.0, 600.0, 700.0)), ("Index", None), ("parsecs", None)):
        items = "".join(
            f'<Item name="wavelength" sample="{i}">{0.4 + i / 10:.1f}</Item>'
            f'<Item name="wavelength_units" sample="{i}">{unit}</Item>'
            for i in range(4)
        )
        write(path, pixels, "samples", extratags=[(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)])
        assert read_layout(path).wavelengths == expected
    # Not every channel has one, or the text cannot be understood: no names, but the pixels.
    assert read_layout(write(path, values(5), "planes", extratags=gdal)).names is None
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))
    bomb = f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><x><Item name="DESCRIPTION" sample="0">&l12;</Item></x>'
    for text in ("<GDALMetadata><Item", bomb):
        same(write(path, pixels, "planes", extratags=[(42112, "s", 0, text, True)]), pixels)
        assert read_layout(path).names is None


@pytest.mark.parametrize(
    ("text", "dtype", "expected"), [("-9999", "f4", -9999), ("0", "u2", 0), ("-9999", "u2", None), ("0,5", "f4", 0.5)]
)
def test_the_value_for_no_data_is_gdals(tmp_path: Path, text: str, dtype: str, expected: float | None) -> None:
    write(tmp_path / "x.tif", values(dtype=dtype), "planes", extratags=[(42113, "s", 0, text, True)])
    assert read_layout(tmp_path / "x.tif").no_data == expected
