"""One image file → a picture in red, green and blue.

Whatever Pillow would clip, wrap or drop without a word (16-bit grey, float, channels beyond alpha) is scaled or refused
here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from phenoscape_tune.data.layout import (
    Layout,
    OtherChannels,
    UnreadableImage,
    check_file,
    check_size,
    faults_told,
)
from phenoscape_tune.data.squares import Colour

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
ORIENTATION = 0x0112
WIDTH, HEIGHT, PHOTOMETRIC, BITS, SAMPLES, EXTRA, SAMPLE_FORMAT = 256, 257, 262, 258, 277, 338, 339
MOST_PAGES = 4096
WHITE_IS_ZERO, PALETTE, CMYK = 0, 3, 5
COLOUR_CHANNELS = {WHITE_IS_ZERO: 1, 1: 1, 2: 3, PALETTE: 1, CMYK: 4, 6: 3, 8: 3}
RGB = 2
ALPHA = ((1,), (2,))


def read_picture(path: Path, background: Colour, shortest_side: int = 0) -> Image.Image:
    """The first picture in a file as it is meant to be seen, in Pillow's mode RGB.

    ``background`` (red, green, blue, 0..255) lies under transparent pixels. EXIF orientation is applied. 16-bit grey is
    scaled from 0..65535 (12-bit from 0..4095); float grey from 0..1, 0..255 or 0..65535, the narrowest that holds all
    values. A JPEG may come out at a half, a quarter or an eighth, which is several times as fast, as long as both sides
    keep at least ``shortest_side`` pixels (0: full size).

    Raises UnreadableImage for anything that is no whole image of one to four known channels, or is larger than
    ``PIL.Image.MAX_IMAGE_PIXELS``; OtherChannels for a TIFF whose fourth channel is marked as transparency and is none.
    """
    with faults_told():
        tags = _read_tags(path)
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.height, image.width)
            if shortest_side:
                image.draft(None, (shortest_side, shortest_side))
            image.load()
            # In place, and converted only where it is needed: each copy costs a tenth of reading a small JPEG.
            ImageOps.exif_transpose(image, in_place=True)
            if _marks_transparency(tags):
                _check_transparency(image)
            return _convert(image, background, tags)


def read_image(path: Path, background: Colour, shortest_side: int = 0) -> np.ndarray:
    """uint8 (3, H, W), red, green, blue, of the picture that `read_picture` reads."""
    pixels = np.asarray(read_picture(path, background, shortest_side))
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
    with faults_told():
        _read_tags(path)
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.height, image.width)
            width, height = image.size
            # Pillow turns a TIFF's size by itself; and a PNG without EXIF in front would be decoded to look for it.
            if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
                return width, height
            turned = image.getexif().get(ORIENTATION) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def marks_transparency(path: Path) -> bool:
    """Whether a TIFF says of its fourth channel that it is the transparency of red, green and blue.

    Some software says so of any fourth channel: what it is, only the pixels tell, and `read_image` looks at them.

    Raises UnreadableImage as `image_size` does.
    """
    with faults_told():
        return _marks_transparency(_read_tags(path))


def _marks_transparency(tags: dict[int, tuple[int, ...]]) -> bool:
    return tags.get(SAMPLES) == (4,) and tags[PHOTOMETRIC] == (RGB,) and tags[EXTRA] in ALPHA


def _check_transparency(image: Image.Image) -> None:
    """Raise OtherChannels where what should be transparency is most likely a channel of its own.

    A picture with transparency shows something: it has opaque pixels, and most of those that are not wholly transparent
    are.
    """
    if image.mode != "RGBA":
        return
    counts = image.getchannel("A").histogram()
    if not counts[255] or 2 * counts[255] < sum(counts[1:]):
        raise OtherChannels(
            "TIFF whose 4th channel is marked as transparency and is none (few or none of its pixels are opaque); "
            "modality=multispectral reads it as a channel"
        )


def _read_tags(path: Path) -> dict[int, tuple[int, ...]]:
    """The TIFF tags that say what the channels are (empty for other formats); refuses what Pillow would drop."""
    check_file(path)
    with path.open("rb") as file:
        head = file.read(8)
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


def _convert(image: Image.Image, background: Colour, tags: dict[int, tuple[int, ...]]) -> Image.Image:
    """A decoded image of any mode in mode RGB."""
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
        return Image.fromarray(pixels)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


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
