"""The channels that training reads: their names, their wavelengths, and which of them are colours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Channels:
    """The C channels of packed images, in their order."""

    names: tuple[str, ...]
    """(C,)"""
    rgb: tuple[int, int, int] | None = None
    """Where red, green and blue stand; None where the images have none."""
    uv: tuple[int, ...] = ()
    """Where ultraviolet channels stand."""
    wavelengths: tuple[float, ...] | None = None
    """(C,) nanometres; None where the channels are no bands of a spectrum."""

    def __len__(self) -> int:
        return len(self.names)


RGB = Channels(("red", "green", "blue"), rgb=(0, 1, 2))
