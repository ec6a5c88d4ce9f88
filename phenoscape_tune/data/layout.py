"""What a file of an image holds, by its header alone: the part of a reader's contract that is data."""

from dataclasses import dataclass


class UnreadableImage(Exception):
    """A file that cannot be read as an image; the message is a short reason without the file's name."""


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
    """Channels that the file itself marks as bad."""
    no_data: float | None = None
    """The value that stands for a pixel without data."""
