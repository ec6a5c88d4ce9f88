import contextlib
import os
import resource
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from phenoscape_tune.data.layout import OtherChannels, UnreadableImage
from phenoscape_tune.data.pictures import image_size, marks_transparency, read_image
from phenoscape_tune.data.squares import fit

GREY = (100, 110, 120)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def write_tiff(path: Path, pixels: np.ndarray, photometric: int, extra: tuple[int, ...] | None) -> Path:
    """A little-endian, uncompressed, chunky TIFF of pixels uint8 or uint16 (H, W, samples), tag by tag."""
    height, width, samples = pixels.shape
    bits = pixels.dtype.itemsize * 8
    values = {
        256: [width],
        257: [height],
        258: [bits] * samples,
        259: [1],
        262: [photometric],
        273: [0],
        277: [samples],
    }
    values |= {278: [height], 279: [pixels.nbytes]} | ({338: list(extra)} if extra is not None else {})
    start = 8 + 2 + 12 * len(values) + 4
    entries, tail = b"", b""
    pixels_at = start + sum(2 * len(value) for value in values.values() if len(value) > 2)
    for tag, value in sorted(values.items()):
        if tag in (273, 279):
            entries += struct.pack("<HHII", tag, 4, 1, pixels_at if tag == 273 else value[0])
            continue
        data = struct.pack(f"<{len(value)}H", *value)
        if len(data) > 4:
            entries += struct.pack("<HHII", tag, 3, len(value), start + len(tail))
            tail += data
        else:
            entries += struct.pack("<HHI", tag, 3, len(value)) + data.ljust(4, b"\0")
    directory = struct.pack("<H", len(values)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + tail + pixels.tobytes())
    return path


def write_png(path: Path, pixels: np.ndarray, colour_type: int) -> Path:
    """A 16-bit PNG of pixels uint16 (H, W, channels), which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def palette_image(transparent: bool) -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    if transparent:
        image.info["transparency"] = 1
    return image


def pair(mode: str, *values: object) -> Callable[[], Image.Image]:
    def build() -> Image.Image:
        image = Image.new(mode, (2, 1))
        for x, value in enumerate(values):
            image.putpixel((x, 0), value)  # type: ignore[arg-type]
        return image

    return build


HALF = (178, 55, 60)  # half-transparent red over GREY

MODES = [
    ("grey.png", pair("L", 0, 77), [(0,) * 3, (77,) * 3]),
    ("grey_alpha.png", pair("LA", (200, 255), (200, 0)), [(200,) * 3, GREY]),
    ("one_bit.png", pair("1", 0, 1), [(0,) * 3, (255,) * 3]),
    ("one_bit.tif", pair("1", 0, 1), [(0,) * 3, (255,) * 3]),
    ("palette.png", lambda: palette_image(False), [RED, GREEN]),
    ("palette_transparent.png", lambda: palette_image(True), [RED, GREY]),
    ("palette.bmp", lambda: palette_image(False), [RED, GREEN]),
    ("rgb.png", pair("RGB", RED, BLUE), [RED, BLUE]),
    ("rgb.bmp", pair("RGB", RED, BLUE), [RED, BLUE]),
    ("rgb.tiff", pair("RGB", RED, BLUE), [RED, BLUE]),
    ("rgba.png", pair("RGBA", (*RED, 128), (*BLUE, 0)), [HALF, GREY]),
    ("rgba.tif", pair("RGBA", (*RED, 128), (*BLUE, 255)), [HALF, BLUE]),
    ("rgba.webp", pair("RGBA", (*RED, 255), (*RED, 0)), [RED, GREY]),
    ("cmyk.tif", pair("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), [RED, (0, 0, 0)]),
    ("lab.tif", pair("LAB", (255, 128, 128), (0, 128, 128)), [(255,) * 3, (0, 0, 0)]),
    ("float_unit.tif", pair("F", 0.0, 1.0), [(0,) * 3, (255,) * 3]),
    ("float_byte.tif", pair("F", 3.0, 254.0), [(3,) * 3, (254,) * 3]),
    ("float_16.tif", pair("F", 0.0, 257.0 * 99), [(0,) * 3, (99,) * 3]),
]


@pytest.mark.parametrize(("name", "build", "expected"), MODES, ids=[name for name, _, _ in MODES])
def test_every_mode_has_its_known_colours(
    tmp_path: Path, name: str, build: Callable[[], Image.Image], expected: list[tuple[int, int, int]]
) -> None:
    image = build()
    extras = {"transparency": 1} if "transparency" in image.info else {"lossless": True} if "webp" in name else {}
    image.save(tmp_path / name, **extras)
    pixels = read_image(tmp_path / name, GREY)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 1, 2)
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels[:, 0].T.astype(int), expected, atol=1)
    assert image_size(tmp_path / name) == (2, 1)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 90, (90,) * 3), ("RGB", RED, (254, 0, 0)), ("YCbCr", (90, 128, 128), (90,) * 3)],
)
def test_jpeg_modes(tmp_path: Path, mode: str, colour: object, expected: tuple[int, ...]) -> None:
    Image.new(mode, (16, 16), colour).save(tmp_path / "x.jpg")  # type: ignore[arg-type]
    np.testing.assert_allclose(read_image(tmp_path / "x.jpg", GREY)[:, 8, 8].astype(int), expected, atol=2)


def test_cmyk_jpeg_of_adobe_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    assert b"Adobe" in (tmp_path / "x.jpg").read_bytes()
    np.testing.assert_allclose(read_image(tmp_path / "x.jpg", GREY)[:, 8, 8].astype(int), RED, atol=3)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_grey_is_scaled_and_neither_clipped_nor_wrapped(tmp_path: Path, name: str) -> None:
    ramp = np.array([[0, 255, 256, 257 * 17, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / name)
    expected = np.rint(ramp[0] / 257)
    for channel in read_image(tmp_path / name, GREY)[:, 0]:
        np.testing.assert_array_equal(channel, expected)


def test_big_endian_and_white_is_zero_16_bit_tiff(tmp_path: Path) -> None:
    Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 0, 257 * 200)).save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif", GREY)[0, 0].tolist() == [0, 200]
    inverted = write_tiff(tmp_path / "w.tif", np.array([[[0], [257 * 200]]], dtype=np.uint16), 0, None)
    assert read_image(inverted, GREY)[0, 0].tolist() == [255, 55]


@pytest.mark.parametrize(("channels", "colour_type"), [(3, 2), (4, 6), (2, 4)])
def test_16_bit_colour_png_keeps_the_upper_bits(tmp_path: Path, channels: int, colour_type: int) -> None:
    pixels = np.full((1, 3, channels), 65535, dtype=np.uint16)
    pixels[0, :, 0] = 0, 30000, 65535
    red = read_image(write_png(tmp_path / "x.png", pixels, colour_type), GREY)[0, 0].astype(int)
    np.testing.assert_allclose(red, [0, 30000 / 257, 255], atol=1)


def test_16_bit_colour_tiff_keeps_the_upper_bits(tmp_path: Path) -> None:
    pixels = np.array([[[0, 30000, 65535]]], dtype=np.uint16)
    colour = read_image(write_tiff(tmp_path / "x.tif", pixels, 2, None), GREY)[:, 0, 0].astype(int)
    np.testing.assert_allclose(colour, [0, 30000 / 257, 255], atol=1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [([-0.5, 1.0], "-0.5 to 1"), ([0.0, 70000.0], "0 to 70000"), ([0.0, float("nan")], "not finite")],
)
def test_float_values_outside_known_ranges_are_refused(tmp_path: Path, values: list[float], reason: str) -> None:
    Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImage, match=reason):
        read_image(tmp_path / "x.tif", GREY)


def test_32_bit_integers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype=np.int32)).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImage, match="0 to 70000"):
        read_image(tmp_path / "x.tif", GREY)


@pytest.mark.parametrize(
    ("samples", "photometric", "extra"),
    [
        (5, 2, (0, 0)),
        (5, 5, (2,)),
        (6, 2, (2, 0, 0)),
        (7, 1, (0,) * 6),
        (4, 2, (0,)),
        (4, 2, None),
        (2, 1, (0,)),
        (8, 2, (0,) * 5),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_with_channels_beyond_alpha_is_refused(
    tmp_path: Path, samples: int, photometric: int, extra: tuple[int, ...] | None, dtype: type
) -> None:
    path = write_tiff(tmp_path / "x.tif", np.full((4, 4, samples), 50, dtype=dtype), photometric, extra)
    with pytest.raises(UnreadableImage, match=f"TIFF of {samples} channels"):
        read_image(path, GREY)
    with pytest.raises(UnreadableImage):
        image_size(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("dark", [False, True], ids=["bright", "dark"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_ultraviolet_marked_as_transparency_is_not_taken_for_it(
    tmp_path: Path, dtype: type, dark: bool, masked: bool
) -> None:
    most = np.iinfo(dtype).max // (300 if dark and dtype == np.uint16 else 2)
    pixels = np.random.default_rng(0).integers(1, most, (16, 16, 4)).astype(dtype)
    if masked:
        pixels[:12] = 0
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb")  # as which tifffile marks it by default
    assert marks_transparency(tmp_path / "x.tif")
    with pytest.raises(OtherChannels, match="4th channel is marked as transparency and is none .*multispectral"):
        read_image(tmp_path / "x.tif", GREY)


def test_transparency_with_soft_edges_is_transparency(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), 200, np.uint8)
    pixels[..., 3] = 0
    pixels[4:12, 4:12, 3] = 90
    pixels[5:11, 5:11, 3] = 255
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb")
    assert marks_transparency(tmp_path / "x.tif")
    read = read_image(tmp_path / "x.tif", GREY)
    assert read[:, 0, 0].tolist() == list(GREY)
    assert read[:, 8, 8].tolist() == [200] * 3
    Image.fromarray(pixels[..., :3]).save(tmp_path / "y.tif")
    Image.fromarray(pixels).save(tmp_path / "y.png")
    assert not marks_transparency(tmp_path / "y.tif") and not marks_transparency(tmp_path / "y.png")


def test_hand_written_tiff_itself_is_valid(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    assert read_image(write_tiff(tmp_path / "x.tif", pixels, 2, (2,)), GREY)[:, 0].T.tolist() == [list(RED), list(GREY)]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = 255
    stored = np.rot90(upright, {1: 0, 3: 2, 6: 1, 8: 3}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    pixels = read_image(path, GREY)
    assert pixels.shape == (3, 16, 32)
    assert image_size(path) == (32, 16)
    corners = pixels[0, [2, 2, 13, 13], [2, 29, 2, 29]].astype(int)
    np.testing.assert_allclose(corners, [255, 0, 0, 0], atol=30)


def test_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for name in ("x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read_image(tmp_path / name, GREY)[:, 2, 2].astype(int), RED, atol=2)


def test_pages_of_a_tiff_are_channels_unless_they_are_thumbnails(tmp_path: Path) -> None:
    page = Image.new("RGB", (8, 6), RED)
    page.save(tmp_path / "thumbnail.tif", save_all=True, append_images=[page.resize((4, 3))])
    assert read_image(tmp_path / "thumbnail.tif", GREY)[:, 2, 2].tolist() == list(RED)
    for mode, channels in (("RGB", 6), ("L", 2)):
        page.convert(mode).save(tmp_path / "x.tif", save_all=True, append_images=[page.convert(mode)])
        for read in (lambda path: read_image(path, GREY), image_size):
            with pytest.raises(OtherChannels, match=f"TIFF of 2 pages of one size, {channels} channels"):
                read(tmp_path / "x.tif")


def jpeg_bytes() -> bytes:
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty file \(0 bytes\)"),
        (b"just words", "not an image"),
        (jpeg_bytes()[: len(jpeg_bytes()) // 2], "truncated"),
        (b"II*\0\xff\xff\xff\xff", None),
        (b"II*\0", None),
    ],
    ids=["empty", "text", "truncated", "tiff without directory", "tiff of four bytes"],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, reason: str | None) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_image(tmp_path / "x.jpg", GREY)
    assert str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(UnreadableImage):
            read_image(path, GREY)


def test_every_truncation_of_a_png_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    for share in (0.01, 0.1, 0.5, 0.9):
        (tmp_path / "x.png").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / "x.png", GREY)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [40, 80])
def test_decompression_bomb_is_refused_from_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", GREY).shape == (3, 10, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for read in (lambda path: read_image(path, GREY), image_size):
        with pytest.raises(UnreadableImage, match=f"{limit} pixels"):
            read(tmp_path / "x.png")


def test_jpeg_is_reduced_only_as_far_as_asked(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)[None, :, None].repeat(300, 0).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "x.jpg", quality=95)
    assert read_image(tmp_path / "x.jpg", GREY).shape == (3, 300, 400)
    reduced = read_image(tmp_path / "x.jpg", GREY, shortest_side=100)
    assert reduced.shape == (3, 150, 200)
    whole = fit(read_image(tmp_path / "x.jpg", GREY), 50, "pad", GREY).astype(int)
    assert np.abs(fit(reduced, 50, "pad", GREY).astype(int) - whole).max() <= 3


# ---- files that mean harm ----


def test_a_link_to_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, target in {"a.png": tmp_path / "pipe", "b.png": Path("/dev/zero"), "c.png": Path("/dev/stdin")}.items():
        (tmp_path / name).symlink_to(target)
        for read in (lambda path: read_image(path, GREY), image_size):
            with pytest.raises(UnreadableImage):
                read(tmp_path / name)


NOISE = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def encoded(format: str, mode: str = "RGB", **options: object) -> bytes:
    """A small image of a kind, with an EXIF orientation where the format has room for it."""
    buffer = BytesIO()
    image = Image.fromarray(NOISE[..., 0].astype(np.float32) / 255) if mode == "F" else Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x112] = 6
    told = {"exif": exif} if format in ("JPEG", "PNG", "WEBP") else {}
    (image if mode == "F" else image.convert(mode)).save(buffer, format, **told, **options)
    return buffer.getvalue()


SOUND = {
    "JPEG": [encoded("JPEG"), encoded("JPEG", progressive=True), encoded("JPEG", "CMYK"), encoded("JPEG", "L")],
    "PNG": [encoded("PNG"), encoded("PNG", "P"), encoded("PNG", "RGBA"), encoded("PNG", "I;16")],
    "WEBP": [encoded("WEBP"), encoded("WEBP", "RGBA", lossless=True)],
    "BMP": [encoded("BMP"), encoded("BMP", "P")],
    "GIF": [encoded("GIF", "P")],
    "TIFF": [
        *(encoded("TIFF", compression=kind) for kind in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        *(encoded("TIFF", "F"), encoded("TIFF", "LAB"), encoded("TIFF", "1", compression="group4")),
    ],
}
NUMBERS = st.sampled_from(
    [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\x20\0", b"\0\x20\0\0"]
)


@st.composite
def mutated(draw: st.DrawFn, format: str) -> bytes:
    """A file of a format with a few bytes changed, lost, repeated or put in, most of them near its beginning."""
    content = bytearray(draw(st.sampled_from(SOUND[format])))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, min(len(content), draw(st.sampled_from([60, 250, len(content)]))) - 1)))
        length = draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["byte", "number", "cut", "lose", "repeat", "put in"]))
        if kind == "byte":
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            content[at : at + 4] = draw(NUMBERS)
        elif kind == "cut":
            del content[at:]
        elif kind == "lose":
            del content[at : at + length]
        else:
            put = content[at : at + length] if kind == "repeat" else draw(st.binary(min_size=1, max_size=40))
            content[at:at] = put
    return bytes(content)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", SOUND)
def test_mutated_files_are_images_or_unreadable(format: str, tmp_path: Path) -> None:
    path = tmp_path / "x.img"
    outcomes: Counter[str] = Counter()

    @settings(max_examples=80, deadline=None, database=None)
    @given(mutated(format))
    def read(content: bytes) -> None:
        path.write_bytes(content)
        begun = time.monotonic()
        try:
            image = read_image(path, GREY)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[0] == 3
            outcomes["image"] += 1
        except UnreadableImage as reason:
            outcomes["unreadable"] += 1
            assert str(reason) and "\n" not in str(reason)  # noqa: PT017
        with contextlib.suppress(UnreadableImage):
            assert min(image_size(path)) > 0
        assert time.monotonic() - begun < 30

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read()
    assert outcomes["unreadable"] and sum(outcomes.values()) >= 80
    # What Pillow's limit of pixels allows: four bytes a pixel, and a copy or two of them.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20
