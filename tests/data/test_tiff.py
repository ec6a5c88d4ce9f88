"""TIFFs of any number of channels as tifffile, GDAL, ImageMagick and Pillow write them; and those that are refused."""

from __future__ import annotations

import shutil
import subprocess
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


def test_thumbnails_and_pyramids_are_no_channels(tmp_path: Path) -> None:
    pixels = values(3, 32, 32)
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(values(1, 8, 8, "u1")[0], subfiletype=1, metadata=None)
        for page in pixels:
            file.write(page, subifds=1, metadata=None)
            file.write(page[::2, ::2], subfiletype=1, metadata=None)
    same(tmp_path / "x.tif", pixels)


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
