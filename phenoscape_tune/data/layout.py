"""What a file of an image holds, by its header alone: the part of a reader's contract that is data."""

import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK_BYTES = 1 << 20
"""How much of a file is turned around at once: it stays in a core's cache."""


def printable(text: str) -> str:
    """A file's name as it can be shown: what is no character to print, a broken encoding included, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class UnreadableImage(Exception):
    """A file that cannot be read as an image; the message is a short reason without the file's name.

    The reason is one line that can be shown, whatever stands in the file.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason))


class OtherChannels(UnreadableImage):
    """A whole image whose channels are not those that are read."""


@dataclass(frozen=True)
class Layout:
    """The channels of one file."""

    channels: int
    height: int
    """Pixels, as the image is meant to be seen."""
    width: int
    full_scale: tuple[float, ...]
    """(channels,): the value of each channel that its type, bit depth or header makes full reflectance; 1 for float."""
    names: tuple[str, ...] | None = None
    """(channels,), where the file names them."""
    wavelengths: tuple[float, ...] | None = None
    """(channels,): nanometres, where the file tells them."""
    bad: tuple[int, ...] = ()
    """Channels that the file itself marks as bad (ENVI's ``bbl``), by index; they are read like the others."""
    no_data: float | None = None
    """The value that stands for a pixel without data; one that the type of the values can hold."""


def check_file(path: Path) -> int:
    """The size in bytes of a file of data. Raises UnreadableImage for anything else, without waiting for it."""
    try:
        status = path.stat()
    except OSError as fault:
        raise UnreadableImage(reason_of(fault)) from fault
    # A pipe that a link leads to would be waited for, and a device never ends.
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage("not a file of data")
    if not status.st_size:
        raise UnreadableImage("empty file (0 bytes)")
    return status.st_size


def check_size(height: int, width: int) -> None:
    """Raise UnreadableImage where a channel is larger than ``PIL.Image.MAX_IMAGE_PIXELS``."""
    # Compared here because Pillow only warns up to twice its limit, and filters for warnings are not safe in threads.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise UnreadableImage(f"{width} × {height} pixels; at most {limit:,} pixels are read")


def check_channels(channels: Sequence[int] | None, count: int) -> list[int]:
    """The channels asked for, or all; raises UnreadableImage where the file's ``count`` are fewer."""
    asked = list(range(count)) if channels is None else [int(channel) for channel in channels]
    for channel in asked:
        if not 0 <= channel < count:
            raise UnreadableImage(f"channel {channel} is asked for, of {count} that are counted from 0")
    return asked


def held_by(value: float | None, dtype: np.dtype) -> float | None:
    """A value for no data, or None where values of that type never have it (such as -9999 of unsigned integers)."""
    if value is None:
        return None
    if dtype.kind == "f":
        # Written with fewer digits, the largest value of a type is a little beyond it, and is rounded to it again.
        with np.errstate(over="ignore"):
            return value if np.isfinite(dtype.type(value)) or not np.isfinite(value) else None
    limits = np.iinfo(dtype)
    return value if limits.min <= value <= limits.max and value == int(value) else None


@contextmanager
def faults_told(of_format: str = "") -> Iterator[None]:
    """Whatever a damaged file makes the libraries raise becomes UnreadableImage with its first line.

    What is no fault of the system's is put after ``of_format``, which says what kind of file is damaged.
    """
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as fault:  # a damaged file makes the decoders raise nearly anything
        told = reason_of(fault)
        raise UnreadableImage(told if isinstance(fault, (OSError, MemoryError)) else of_format + told) from fault


def reason_of(fault: Exception) -> str:
    """One short line for a fault: what the system says, or the first line of the library's message."""
    if isinstance(fault, MemoryError):
        return "too large for the memory of this machine"
    if isinstance(fault, Image.UnidentifiedImageError):
        return "not an image of a known kind"
    if isinstance(fault, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large: more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    return brief(str(fault)) or type(fault).__name__


def brief(message: str) -> str:
    """The first line of a library's message, without the objects it names in angle brackets."""
    lines = re.sub(r"<[^<>\n]*>\s*", "", message).strip().splitlines()
    return lines[0][:160].strip() if lines else ""


def copy_channels(pixels: np.ndarray, channels: Sequence[int], out: np.ndarray) -> None:
    """Channels of (H, W, C) pixels, such as a memory map's, into (n, H, W), some rows at a time.

    What is held in memory beside ``out`` is one block of rows.
    """
    pixels = np.asarray(pixels)  # slicing numpy's class for maps costs more than copying the slices
    height, width, count = pixels.shape
    rows = max(1, BLOCK_BYTES // max(1, width * count * pixels.itemsize))
    for top in range(0, height, rows):
        block = pixels[top : top + rows]
        for place, channel in enumerate(channels):
            out[place, top : top + rows] = block[:, :, channel]
