"""TIFFs of any number of channels as tifffile, GDAL, ImageMagick and Pillow write them; and those that are refused."""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import subprocess
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from phenoscape_tune.data import envi
from phenoscape_tune.data.layout import UnreadableImage
from phenoscape_tune.data.tiff import read_channels, read_layout

TYPES = ["u1", "u2", "u4", "i2", "i4", "f2", "f4", "f8"]
FULL = {"u1": 255, "u2": 65_535, "u4": 2**32 - 1, "i2": 32_767, "i4": 2**31 - 1, "f2": 1, "f4": 1, "f8": 1}


def values(channels: int = 7, height: int = 19, width: int = 23, dtype: str = "u2", seed: int = 0) -> np.ndarray:
    """(channels, height, width), every bit of which is drawn; floats are finite."""
    rng = np.random.default_rng(seed)
    if dtype[0] == "f":
        return rng.normal(size=(channels, height, width)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (channels, height, width), dtype, endpoint=True)


def write(path: Path, pixels: np.ndarray, arranged: str = "pages", **options: Any) -> Path:
    """Pixels (C, H, W) as pages, planes or interleaved samples."""
    options = {"photometric": "minisblack", "metadata": None, **options}
    if arranged == "pages":
        with tifffile.TiffWriter(
            path, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", None)
        ) as file:
            for page in pixels:
                file.write(page, contiguous=False, **options)
    else:
        kind = "contig" if arranged == "samples" else "separate"
        tifffile.imwrite(path, pixels.transpose(1, 2, 0) if kind == "contig" else pixels, planarconfig=kind, **options)
    return path


def same(path: Path, pixels: np.ndarray) -> None:
    """Byte for byte, and what the layout says."""
    found = read_channels(path)
    layout = read_layout(path)
    assert (layout.channels, layout.height, layout.width) == pixels.shape == found.shape
    assert found.dtype == pixels.dtype and found.dtype.isnative and found.flags.c_contiguous
    assert found.tobytes() == np.ascontiguousarray(pixels).tobytes()


def refusal(path: Path, channels: Sequence[int] | None = None) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_channels(path, channels)
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("arranged", ["pages", "planes", "samples"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits"])
@pytest.mark.parametrize("tile", [None, (16, 32)], ids=["strips", "tiles"])
def test_what_tifffile_writes_comes_back(
    tmp_path: Path, arranged: str, compression: str | None, tile: tuple[int, int] | None
) -> None:
    for number, dtype in enumerate(TYPES):
        pixels = values(dtype=dtype)
        order, rows = "<>"[number % 2], None if tile else [None, 5, 19][number % 3]
        path = write(
            tmp_path / "x.tif",
            pixels,
            arranged,
            byteorder=order,
            compression=compression,
            tile=tile,
            rowsperstrip=rows,
            bigtiff=number % 4 == 1,
        )
        same(path, pixels)
        np.testing.assert_array_equal(read_channels(path, [5, 0, 5]), pixels[[5, 0, 5]])
        assert read_layout(path).full_scale == (FULL[dtype],) * 7


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd"])
def test_predictors_are_undone(tmp_path: Path, dtype: str, compression: str | None) -> None:
    for arranged in ("pages", "samples", "planes"):
        pixels = values(dtype=dtype)
        same(
            write(tmp_path / "x.tif", pixels, arranged, predictor=True, compression=compression, rowsperstrip=4), pixels
        )


@pytest.mark.parametrize("compression", ["jpegxl", "jpeg2000", "png", "lerc", "lzma"])
def test_lossless_image_formats_inside_are_decoded(tmp_path: Path, compression: str) -> None:
    pixels = values(3, dtype="u1" if compression == "png" else "u2")
    options: dict[str, Any] = {"compressionargs": {"level": 0}} if compression == "jpeg2000" else {}
    if compression == "jpegxl":
        options["compressionargs"] = {"lossless": True}
    same(write(tmp_path / "x.tif", pixels, compression=compression, tile=(16, 16), **options), pixels)


def test_jpeg_inside_is_red_green_and_blue_whatever_it_is_stored_as(tmp_path: Path) -> None:
    picture = np.broadcast_to(np.array([200, 100, 30], "u1"), (32, 48, 3))
    tifffile.imwrite(tmp_path / "x.tif", picture, photometric="rgb", compression="jpeg", rowsperstrip=16)
    assert np.abs(read_channels(tmp_path / "x.tif").mean((1, 2)) - [200, 100, 30]).max() < 2


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14, 24])
def test_odd_bit_depths_are_unpacked_and_known(tmp_path: Path, bits: int) -> None:
    dtype = "u1" if bits <= 8 else "u2" if bits <= 16 else "u4"
    pixels = (values(3, dtype="u4") >> (32 - bits)).astype(dtype)
    written = pixels.astype(bool) if bits == 1 else pixels
    options: dict[str, Any] = {"compression": "packbits"} if bits == 1 else {"bitspersample": bits}
    same(write(tmp_path / "x.tif", written, **options), pixels)
    assert read_layout(tmp_path / "x.tif").full_scale == (2**bits - 1,) * 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 408])
@pytest.mark.parametrize("arranged", ["planes", "samples"])
def test_the_number_of_channels_is_never_changed(tmp_path: Path, count: int, arranged: str) -> None:
    pixels = values(count, 6, 5, "u1")
    if count == 1:
        arranged = "pages"
    options = {"photometric": "rgb"} if count in (3, 4) else {}
    same(write(tmp_path / "x.tif", pixels, arranged, **options), pixels)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from(TYPES),
    arranged=st.sampled_from(["pages", "planes", "samples"]),
    compression=st.sampled_from([None, "lzw", "deflate", "zstd", "packbits"]),
    tile=st.sampled_from([None, (16, 16), (32, 16)]),
    rows=st.integers(1, 40),
    order=st.sampled_from("<>"),
    bigtiff=st.booleans(),
    data=st.data(),
)
def test_any_layout_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dtype: str,
    arranged: str,
    compression: str | None,
    tile: tuple[int, int] | None,
    rows: int,
    order: str,
    bigtiff: bool,
    data: st.DataObject,
) -> None:
    if shape[0] == 1:
        arranged = "pages"
    pixels = values(*shape, dtype, data.draw(st.integers(0, 9)))
    path = write(
        tmp_path_factory.mktemp("any") / "x.tif",
        pixels,
        arranged,
        compression=compression,
        tile=tile,
        rowsperstrip=None if tile else rows,
        byteorder=order,
        bigtiff=bigtiff,
    )
    same(path, pixels)
    asked = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=4))
    np.testing.assert_array_equal(read_channels(path, asked), pixels[asked])


def test_pages_of_several_samples_and_types_stand_one_after_another(tmp_path: Path) -> None:
    colours, uv, mask = values(3, 8, 9, "u1"), values(3, 8, 9, "u2", 1), values(1, 8, 9, "u1", 2) > 127
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(colours.transpose(1, 2, 0), photometric="rgb", metadata=None)
        for page in uv:
            file.write(page, compression="zstd", metadata=None)
        file.write(mask[0], metadata=None)
    same(tmp_path / "x.tif", np.concatenate([colours.astype("u2"), uv, mask.astype("u2")]))
    assert read_layout(tmp_path / "x.tif").full_scale == (255.0,) * 3 + (65_535.0,) * 3 + (1.0,)
    assert read_channels(tmp_path / "x.tif", [6]).dtype == "u2"  # as with all the others


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [("u2", "f4", "f4"), ("u4", "f4", "f8"), ("i2", "u2", "i4"), ("u1", "f2", "f2"), ("i4", "u1", "i4")],
)
def test_types_are_joined_in_one_that_holds_both(tmp_path: Path, one: str, other: str, common: str) -> None:
    pages = [values(1, dtype=one)[0], values(1, dtype=other)[0]]
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for page in pages:
            file.write(page, metadata=None)
    found = read_channels(tmp_path / "x.tif")
    assert found.dtype == common
    for page, channel in zip(pages, found, strict=True):
        assert channel.astype(page.dtype).tobytes() == page.tobytes()


def test_types_that_none_holds_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for dtype in ("u8", "i2"):
            file.write(np.ones((4, 5), dtype), photometric="minisblack", metadata=None)
    assert refusal(tmp_path / "x.tif") == "pages of types that no type holds: int16 and uint64"


def test_thumbnails_and_pyramids_are_no_channels(tmp_path: Path) -> None:
    pixels = values(3, 32, 32)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(values(1, 8, 8, "u1")[0], subfiletype=1, metadata=None)
        for page in pixels:
            file.write(page, subifds=1, metadata=None)
            file.write(page[::2, ::2], subfiletype=1, metadata=None)
    same(tmp_path / "x.tif", pixels)


def test_pages_of_two_sizes_are_refused_naming_both(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(values(1, 8, 9)[0], metadata=None)
        file.write(values(1, 9, 8)[0], metadata=None)
    told = "pages of two sizes: 9 × 8 and 8 × 9 pixels (page 2); one image has one size"
    assert refusal(tmp_path / "x.tif") == told


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_image_stands_as_it_is_meant_to_be_seen(tmp_path: Path, orientation: int) -> None:
    picture = Image.fromarray(values(3, 6, 9, "u1").transpose(1, 2, 0))
    picture.save(tmp_path / "x.tif", tiffinfo={274: orientation})
    with Image.open(tmp_path / "x.tif") as opened:
        seen = np.asarray(ImageOps.exif_transpose(opened))
    same(tmp_path / "x.tif", seen.transpose(2, 0, 1))


def test_where_white_is_zero_values_are_turned(tmp_path: Path) -> None:
    for pixels, full in ((values(2, dtype="u1"), 255), (values(2, dtype="u2"), 65_535)):
        write(tmp_path / "x.tif", full - pixels, photometric="miniswhite")
        same(tmp_path / "x.tif", pixels)
    write(
        tmp_path / "x.tif", values(2, dtype="u1"), photometric="miniswhite", extratags=[(42113, "s", 0, "255", False)]
    )
    assert read_layout(tmp_path / "x.tif").no_data == 0
    write(tmp_path / "x.tif", values(2, dtype="i2"), photometric="miniswhite")
    assert "whose white is 0" in refusal(tmp_path / "x.tif")


def test_masks_of_bool_are_what_they_were(tmp_path: Path) -> None:
    mask = values(1, dtype="u1")[0] > 127
    tifffile.imwrite(tmp_path / "tifffile.tif", mask)  # says that white is 0, and means it not
    Image.fromarray(mask).save(tmp_path / "pillow.tif")
    Image.fromarray(mask).save(tmp_path / "group4.tif", compression="group4")
    for name in ("tifffile.tif", "pillow.tif", "group4.tif"):
        same(tmp_path / name, mask[None].astype("u1"))


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


REFUSED = [
    ({"dtype": "i1"}, {}, "values of 8 bits in sample format 2 are not read"),
    ({"dtype": "c8"}, {}, "values of 64 bits in sample format 6 are not read"),
    ({"dtype": "c16"}, {}, "values of 128 bits in sample format 6"),
    ({"dtype": "u1"}, {"photometric": "palette", "colormap": np.zeros((3, 256), "u2")}, "a palette"),
    ({"dtype": "u1", "channels": 3}, {"photometric": "cielab", "arranged": "samples"}, "L*a*b* colours"),
    ({"dtype": "u2"}, {"photometric": "cfa"}, "raw mosaic"),
    ({"dtype": "u1"}, {"extratags": [(42113, "s", 0, "none", True)]}, "GDAL_NODATA holds 'none'"),
]


@pytest.mark.parametrize(("drawn", "options", "told"), REFUSED, ids=[told for _, _, told in REFUSED])
def test_what_is_no_intensity_is_refused(tmp_path: Path, drawn: dict, options: dict, told: str) -> None:
    pixels = values(**{**drawn, "dtype": "u1"}).astype(drawn["dtype"])
    path = write(tmp_path / "x.tif", pixels, **options)
    with pytest.raises(UnreadableImage, match=re.escape(told)):
        read_layout(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty file (0 bytes)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a TIFF"),
        (b"II*\0", "damaged TIFF"),
        (b"II*\0\0\0\0\0", "a TIFF without pages"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "no width or height"),
        (b"II*\0\xff\0\0\0", "cut off: page 1 is at byte 255, the file has 8"),
        (b"II+\0" + bytes(12), "damaged TIFF"),
    ],
)
def test_what_is_no_tiff_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    assert told in refusal(tmp_path / "x.tif")


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        link = tmp_path / "x.tif"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert refusal(link) == "not a file of data"
    assert refusal(tmp_path / "absent.tif") == "No such file or directory"


def patch(path: Path, tag: int, value: int, page: int = 0) -> None:
    """Overwrite the first value of a tag."""
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[page].aspage().tags[tag].overwrite(value)


def test_more_pixels_than_pillow_reads_are_refused_by_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", values(1))
    for tag in (256, 257):
        patch(path, tag, 2**31 - 1)
    before = time.monotonic()
    with pytest.raises(UnreadableImage, match="2147483647 × 2147483647 pixels; at most 89,478,485"):
        read_layout(path)
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("arranged", ["pages", "planes", "samples"])
@pytest.mark.parametrize("compression", [None, "lzw", "packbits"])
def test_missing_strips_are_never_filled_in(tmp_path: Path, arranged: str, compression: str | None) -> None:
    path = write(tmp_path / "x.tif", values(3), arranged, compression=compression, rowsperstrip=19)
    for tag in (273, 279):
        whole = path.read_bytes()
        with tifffile.TiffFile(path, mode="r+") as file:
            page = file.pages[0].aspage()
            page.tags[tag].overwrite([0, *page.tags[tag].value[1:]])
        assert "strips or tiles have no data" in refusal(path)
        path.write_bytes(whole)


@pytest.mark.parametrize("arranged", ["pages", "samples"])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd", "packbits", "jpeg"])
def test_a_file_that_is_cut_off_is_refused_or_whole(tmp_path: Path, arranged: str, compression: str | None) -> None:
    pixels = values(3, 20, 33, "u1")
    options = {"photometric": "rgb"} if arranged == "samples" else {}
    whole = write(tmp_path / "x.tif", pixels, arranged, compression=compression, rowsperstrip=7, **options).read_bytes()
    expected = read_channels(tmp_path / "x.tif")
    refused = 0
    for length in [*range(0, len(whole), 1 + len(whole) // 60), len(whole) - 1]:
        (tmp_path / "cut.tif").write_bytes(whole[:length])
        try:
            np.testing.assert_array_equal(read_channels(tmp_path / "cut.tif"), expected)
        except UnreadableImage:
            refused += 1
    assert refused >= 55


@pytest.mark.parametrize("length", [2, 150])
def test_pages_that_lead_back_into_themselves_are_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.tif", values(length, 2, 3))
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[length // 2].aspage().offset, file.pages[-1].aspage()
        end = last.offset + 2 + 12 * len(last.tags)
    content = bytearray(path.read_bytes())
    assert content[end : end + 4] == bytes(4)
    content[end : end + 4] = struct.pack("<I", first)
    path.write_bytes(content)
    assert refusal(path) == "damaged TIFF: its list of pages leads back into itself"


def test_stacks_that_list_one_page_for_many_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values(7), imagej=True)
    same(tmp_path / "x.tif", values(7))
    content = (tmp_path / "x.tif").read_bytes()
    (tmp_path / "x.tif").write_bytes(content.replace(b"images=7", b"images=9"))
    assert refusal(tmp_path / "x.tif") == "lists 7 of its pages only; write every page into the list"
    tifffile.TiffWriter(tmp_path / "x.tif").write(values(7), photometric="minisblack", truncate=True)
    assert refusal(tmp_path / "x.tif") == "lists 1 of its pages only; write every page into the list"


def test_an_array_written_the_wrong_way_round_is_told(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", values(7, 40, 50).transpose(1, 2, 0), photometric="minisblack")
    told = "40 pages of 7 × 50 pixels look like an array of height × width × 7 channels; write it channels first"
    assert refusal(tmp_path / "x.tif").startswith(told)
    same(write(tmp_path / "x.tif", values(40, 50, 17)), values(40, 50, 17))
    same(write(tmp_path / "x.tif", values(7, 50, 7)), values(7, 50, 7))


WHOLE: dict[tuple[str, str | None], bytes] = {}


@settings(max_examples=200, deadline=None)
@given(
    arranged=st.sampled_from(["pages", "planes", "samples"]),
    compression=st.sampled_from([None, "lzw", "deflate", "zstd", "packbits"]),
    edits=st.lists(st.tuples(st.integers(0, 250), st.booleans(), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_file_is_an_image_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    arranged: str,
    compression: str | None,
    edits: list[tuple[int, bool, int]],
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.tif"
    if (arranged, compression) not in WHOLE:
        write(path, values(3, 10, 11), arranged, compression=compression, rowsperstrip=4)
        WHOLE[arranged, compression] = path.read_bytes()
    content = bytearray(WHOLE[arranged, compression])
    for place, from_end, value in edits:
        content[len(content) - 1 - place if from_end else place] = value
    path.write_bytes(content)
    try:
        layout = read_layout(path)
        pixels = read_channels(path)
    except UnreadableImage:
        return
    assert pixels.shape == (layout.channels, layout.height, layout.width)


def test_what_tifffile_says_of_damage_reaches_no_log_of_the_users(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.tif", values(2))
    with tifffile.TiffFile(path) as file:
        place = file.pages[1].aspage().tags[258].offset
    content = bytearray(path.read_bytes())
    content[place + 2] = 99  # the type of BitsPerSample: tifffile logs it, and takes single bits
    path.write_bytes(content)
    assert refusal(path) == "damaged TIFF: invalid data type 99"
    assert capfd.readouterr() == ("", "") and not caplog.records
    logging.getLogger("tifffile").warning("of another use of tifffile")
    assert len(caplog.records) == 1


def test_a_fault_in_a_tag_that_does_not_matter_is_no_fault_of_the_image(tmp_path: Path) -> None:
    pixels = values(2)
    path = write(tmp_path / "x.tif", pixels, extratags=[(65_000, "s", 0, "a camera's own note", True)])
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].aspage().tags[65_000].offset
    content = bytearray(path.read_bytes())
    content[place + 8 : place + 12] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    same(path, pixels)


def test_pages_and_planes_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    for arranged in ("pages", "planes"):
        pixels = values(3)
        path = write(tmp_path / "x.tif", pixels, arranged, compression="deflate", rowsperstrip=19)
        with tifffile.TiffFile(path) as file:
            page = file.pages[1 if arranged == "pages" else 0].aspage()
            start = page.dataoffsets[-2 if arranged == "planes" else 0]
        content = bytearray(path.read_bytes())
        content[start : start + 8] = b"nonsense"
        path.write_bytes(content)
        np.testing.assert_array_equal(read_channels(path, [2, 0]), pixels[[2, 0]])
        assert refusal(path, [1]).startswith("damaged TIFF: ")


@pytest.mark.parametrize("arranged", ["pages", "planes", "samples"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_some_channels_of_a_large_file_do_not_fill_the_memory(
    tmp_path: Path, arranged: str, compression: str | None
) -> None:
    pixels = np.zeros((64, 256, 256), "u2")  # 8 MiB
    pixels[[9, 3]] = values(2, 256, 256)
    path = write(tmp_path / "x.tif", pixels, arranged, compression=compression, rowsperstrip=16)
    read_channels(path, [0])
    tracemalloc.start()
    found = read_channels(path, [9, 3])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, pixels[[9, 3]])
    assert most < 3.5 * 2**20  # the result is 0.25 MiB, a strip of all samples 0.5, and 64 pages have tags


GDAL = shutil.which("gdal_translate")
MAGICK = next((name for name in ("magick", "convert-im6.q16", "convert-im6") if shutil.which(name)), None)
GDAL_OPTIONS = [
    "-co COMPRESS=LZW -co TILED=YES -co BLOCKXSIZE=16 -co BLOCKYSIZE=16",
    "-co COMPRESS=DEFLATE -co PREDICTOR=2 -co INTERLEAVE=BAND -co BLOCKYSIZE=3",
    "-co COMPRESS=ZSTD -co ENDIANNESS=BIG -co BIGTIFF=YES",
    "-ot Float32 -co COMPRESS=DEFLATE -co PREDICTOR=3",
    "-ot Float64 -co INTERLEAVE=BAND",
    "-ot Int32 -co COMPRESS=PACKBITS",
    "-of COG -co COMPRESS=LZW -co BLOCKSIZE=128 -co OVERVIEW_COUNT=1",
]


@pytest.mark.skipif(GDAL is None, reason="gdal_translate is not installed; the files in files/ are read in any case")
@pytest.mark.parametrize("options", GDAL_OPTIONS)
def test_what_gdal_writes_comes_back(tmp_path: Path, options: str) -> None:
    pixels = values(7, 130, 150)
    write(tmp_path / "in.tif", pixels, "planes")
    assert GDAL is not None
    subprocess.run([GDAL, "-q", *options.split(), "in.tif", "out.tif"], cwd=tmp_path, check=True)
    kind = {"Float32": "f4", "Float64": "f8", "Int32": "i4"}.get(options.split()[1], "u2")
    same(tmp_path / "out.tif", pixels.astype(kind))


GDAL_KINDS = [
    "-co NBITS=12 -co COMPRESS=LZW",
    "-co NBITS=14 -co INTERLEAVE=BAND -co ENDIANNESS=BIG",
    "-ot Float32 -co NBITS=16 -co COMPRESS=DEFLATE -co PREDICTOR=3",
    "-ot Float32 -co NBITS=24",
    "-co COMPRESS=LERC",
    "-b 1 -b 2 -b 3 -co COMPRESS=JPEG -co PHOTOMETRIC=YCBCR -ot Byte",
    "-b 1 -co NBITS=1 -co COMPRESS=CCITTFAX4 -ot Byte",
    "-b 1 -co NBITS=1 -co PHOTOMETRIC=MINISWHITE -ot Byte",
]


@pytest.mark.skipif(GDAL is None, reason="gdal_translate is not installed; the files in files/ are read in any case")
@pytest.mark.parametrize("options", GDAL_KINDS)
def test_what_gdal_writes_is_what_gdal_reads(tmp_path: Path, options: str) -> None:
    write(tmp_path / "in.tif", values(4, 33, 40) >> (14 if "NBITS=1 " in options else 4), "planes")
    assert GDAL is not None
    subprocess.run([GDAL, "-q", *options.split(), "in.tif", "out.tif"], cwd=tmp_path, check=True)
    subprocess.run([GDAL, "-q", "-of", "ENVI", "out.tif", "out.img"], cwd=tmp_path, check=True)
    expected, found = envi.read_channels(tmp_path / "out.hdr"), read_channels(tmp_path / "out.tif")
    assert found.any() and len(np.unique(found)) > 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(MAGICK is None, reason="ImageMagick is not installed; the files in files/ are read in any case")
@pytest.mark.parametrize("options", ["-compress None", "-compress LZW", "-compress Zip -define tiff:endian=msb"])
def test_what_imagemagick_writes_comes_back(tmp_path: Path, options: str) -> None:
    pixels = values(7, 13, 17)
    for channel, page in enumerate(pixels):
        page.astype("<u2").tofile(tmp_path / f"{channel}.gray")
    command = [str(MAGICK), "-size", "17x13", "-depth", "16", "-endian", "LSB", *(f"{c}.gray" for c in range(7))]
    subprocess.run([*command, *options.split(), "out.tif"], cwd=tmp_path, check=True)
    same(tmp_path / "out.tif", pixels)


@pytest.mark.skipif(MAGICK is None, reason="ImageMagick is not installed; the files in files/ are read in any case")
@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ("", "rgba"),
        ("-alpha off -compress JPEG", "rgb"),
        ("-alpha off -colorspace CMYK", "cmyk"),
        ("-alpha off -monochrome -compress Fax", "gray"),
        ("-alpha off -monochrome -compress Group4 -define quantum:polarity=min-is-black", "gray"),
        ("-alpha off -define tiff:fill-order=lsb -compress LZW -define tiff:tile-geometry=16x16", "rgb"),
    ],
)
def test_what_imagemagick_writes_is_what_imagemagick_reads(tmp_path: Path, options: str, kind: str) -> None:
    values(31, 45, 4, "u1").tofile(tmp_path / "in.rgba")
    command = [str(MAGICK), "-size", "45x31", "-depth", "8", "rgba:in.rgba", *options.split(), "out.tif"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([str(MAGICK), "out.tif", "-depth", "8", f"{kind}:out.raw"], cwd=tmp_path, check=True)
    found = read_channels(tmp_path / "out.tif")
    if read_layout(tmp_path / "out.tif").full_scale == (1.0,):
        found = found * 255
    assert len(np.unique(found)) > 1
    assert np.ascontiguousarray(found.transpose(1, 2, 0)).tobytes() == (tmp_path / "out.raw").read_bytes()
