"""One image file → uint8 (3, height, width).

Whatever Pillow would clip, wrap or drop without a word (16-bit grey, float, channels beyond alpha) is scaled or refused
here.
"""

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from phenoscape_tune.data.layout import Layout, OtherChannels, UnreadableImage
from phenoscape_tune.data.squares import Colour

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
ORIENTATION = 0x0112
WIDTH, HEIGHT, PHOTOMETRIC, BITS, SAMPLES, EXTRA, SAMPLE_FORMAT = 256, 257, 262, 258, 277, 338, 339
MOST_PAGES = 4096
WHITE_IS_ZERO, PALETTE, CMYK = 0, 3, 5
COLOUR_CHANNELS = {WHITE_IS_ZERO: 1, 1: 1, 2: 3, PALETTE: 1, CMYK: 4, 6: 3, 8: 3}
ALPHA = ((1,), (2,))


def read_image(path: Path, background: Colour, shortest_side: int = 0) -> np.ndarray:
    """The first picture in a file as it is meant to be seen: uint8 (3, H, W), red, green, blue.

    ``background`` (red, green, blue, 0..255) lies under transparent pixels. EXIF orientation is applied. 16-bit grey is
    scaled from 0..65535 (12-bit from 0..4095); float grey from 0..1, 0..255 or 0..65535, the narrowest that holds all
    values. A JPEG may come out at a half, a quarter or an eighth, which is several times as fast, as long as both sides
    keep at least ``shortest_side`` pixels (0: full size).

    Raises UnreadableImage for anything that is no whole image of one to four known channels, or is larger than
    ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    try:
        tags = _check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_pixel_count(image)
            if shortest_side:
                image.draft(None, (shortest_side, shortest_side))
            pixels = _convert(ImageOps.exif_transpose(image), background, tags)
    except UnreadableImage:
        raise
    except Exception as fault:  # a damaged file makes the decoders raise nearly anything
        raise UnreadableImage(_reason(fault)) from fault
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_layout(path: Path) -> Layout:
    """The layout of a picture: always red, green and blue. Raises UnreadableImage as `image_size` does."""
    width, height = image_size(path)
    return Layout(3, height, width, (255.0,) * 3, ("red", "green", "blue"))


def read_channels(path: Path, channels: Sequence[int] | None = None) -> np.ndarray:
    """uint8 (n, H, W) of a picture as `read_image` reads it, on grey. Raises UnreadableImage."""
    pixels = read_image(path, (128, 128, 128))
    return pixels if channels is None else pixels[list(channels)]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as ``read_image`` would return them, from the header alone.

    Raises UnreadableImage where the header is that of no known image.
    """
    try:
        _check_file(path)
        with Image.open(path, formats=FORMATS) as image:
            _check_pixel_count(image)
            width, height = image.size
            # Pillow turns a TIFF's size by itself; and a PNG without EXIF in front would be decoded to look for it.
            if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
                return width, height
            turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    except UnreadableImage:
        raise
    except Exception as fault:  # as in read_image
        raise UnreadableImage(_reason(fault)) from fault
    return (height, width) if turned else (width, height)


def _check_file(path: Path) -> dict[int, tuple[int, ...]]:
    """The TIFF tags that say what the channels are (empty for other formats); refuses what Pillow would drop."""
    # A pipe that a link leads to would be waited for, and a device never ends.
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnreadableImage("not a file of data")
    with path.open("rb") as file:
        head = file.read(8)
        if not head:
            raise UnreadableImage("empty file (0 bytes)")
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return {}
        if b"+" in head[:4]:
            head += file.read(8)
        directory = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(directory.next)
        directory.load(file)
        tags = {}
        for tag in (WIDTH, HEIGHT, PHOTOMETRIC, BITS, SAMPLES, EXTRA, SAMPLE_FORMAT):
            value = directory.get(tag, ())
            tags[tag] = value if isinstance(value, tuple) else (value,)
        pages = _count_pages(file, directory)
    # Compressed JPEG inside TIFF may leave the number of channels to the JPEG itself.
    samples = tags[SAMPLES][0] if tags[SAMPLES] else max(1, len(tags[BITS]))
    photometric = tags[PHOTOMETRIC][0] if tags[PHOTOMETRIC] else 1
    colours = COLOUR_CHANNELS.get(photometric, 3)
    if samples > 4 or (samples > colours and tags[EXTRA] not in ALPHA):
        raise OtherChannels(f"TIFF of {samples} channels that are not RGB with alpha; only RGB and grey are read")
    if pages > 1:
        told = f"TIFF of {pages} pages of one size, {samples * pages} channels"
        raise OtherChannels(f"{told}; only RGB and grey are read")
    if 2 in tags[SAMPLE_FORMAT] and tags[BITS][:1] == (8,):
        raise UnreadableImage("TIFF of signed 8-bit values")
    return tags


def _count_pages(file: IO[bytes], directory: TiffImagePlugin.ImageFileDirectory_v2) -> int:
    """Pages of the first one's size, which are channels; others are thumbnails."""
    size = (directory.get(WIDTH), directory.get(HEIGHT))
    pages = 1
    seen: set[int] = set()
    while directory.next and directory.next not in seen and len(seen) < MOST_PAGES:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        pages += (directory.get(WIDTH), directory.get(HEIGHT)) == size
    return pages


def _check_pixel_count(image: Image.Image) -> None:
    # Compared here because Pillow only warns up to twice its limit, and filters for warnings are not safe in threads.
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        raise UnreadableImage(f"{image.width} × {image.height} pixels; at most {limit:,} pixels are read")


def _convert(image: Image.Image, background: Colour, tags: dict[int, tuple[int, ...]]) -> np.ndarray:
    """uint8 (H, W, 3) of a decoded image of any mode."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _scale_float(values) if image.mode == "F" else _scale_integer(values, tags.get(BITS) == (12,))
        # Pillow inverts 8-bit TIFFs of this kind, not these.
        if tags.get(PHOTOMETRIC) == (WHITE_IS_ZERO,):
            grey = 255 - grey
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            pixels[values == transparent] = background
        return pixels
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return np.array(converted)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return np.array(Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))


def _scale_integer(values: np.ndarray, twelve_bits: bool) -> np.ndarray:
    """Grey of 12 or 16 bits, any integer type (H, W) → uint8."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UnreadableImage(f"integer grey values from {low} to {high}; only 0 to 65535 are read")
    return np.rint(values.astype(np.float32) * (255 / (4095 if twelve_bits else 65535))).astype(np.uint8)


def _scale_float(values: np.ndarray) -> np.ndarray:
    """Float grey (H, W) → uint8, by the narrowest of the ranges 0..1, 0..255 and 0..65535 that holds all values."""
    if not np.isfinite(values).all():
        raise UnreadableImage("float values that are not finite (NaN or infinite)")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise UnreadableImage(f"float values from {low:g} to {high:g}; only 0..1, 0..255 or 0..65535 are read")
    factor = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
    return np.rint(values * factor).astype(np.uint8)


def _reason(fault: Exception) -> str:
    if isinstance(fault, Image.UnidentifiedImageError):
        return "not an image of a known kind"
    if isinstance(fault, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large: more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return str(fault).strip() or type(fault).__name__
