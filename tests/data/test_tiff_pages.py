"""TIFFs that are refused: with the reason, never with pixels filled in, and never with anything else raised."""

from __future__ import annotations

import logging
import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.data.layout import UnreadableImage
from phenoscape_tune.data.tiff import read_channels, read_layout
from tests.data.test_tiff import refusal, same, values, write


def test_types_that_none_holds_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for dtype in ("u8", "i2"):
            file.write(np.ones((4, 5), dtype), photometric="minisblack", metadata=None)
    assert refusal(tmp_path / "x.tif") == "pages of types that no type holds: int16 and uint64"


def test_pages_of_two_sizes_are_refused_naming_both(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(values(1, 8, 9)[0], metadata=None)
        file.write(values(1, 9, 8)[0], metadata=None)
    told = "pages of two sizes: 9 × 8 and 8 × 9 pixels (page 2); one image has one size"
    assert refusal(tmp_path / "x.tif") == told


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
