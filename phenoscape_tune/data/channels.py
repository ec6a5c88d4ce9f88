"""The channels that training reads: their names, their wavelengths, and which of them are colours."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

COLOUR_NM = (650.0, 550.0, 450.0)
"""Where red, green and blue lie."""
FARTHEST_NM = 50.0
"""How far from there a band may lie that stands for one of them."""
VISIBLE_NM = 400.0
"""Shorter waves are ultraviolet."""
BAND_TOLERANCE = 0.5
"""How far apart two files may say that the same band lies, as a share of the distance between neighbouring bands."""


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

    def difference(self, other: Channels) -> str | None:
        """How others that came in the place of these differ, in a few words for a message; None where they do not.

        Bands may lie as far from where they were as `BAND_TOLERANCE` says; without wavelengths the names count.
        """
        if len(self) != len(other):
            return f"{len(self)} channels there, {len(other)} here"
        if self.wavelengths is not None and other.wavelengths is not None and len(self) > 1:
            spacing = sum(abs(b - a) for a, b in pairwise(self.wavelengths)) / (len(self) - 1)
            for place, (before, now) in enumerate(zip(self.wavelengths, other.wavelengths, strict=True)):
                if abs(before - now) > BAND_TOLERANCE * spacing:
                    return f"channel {place} is at {before:g} nm there, at {now:g} nm here"
            return None
        for place, (there, here) in enumerate(zip(self.names, other.names, strict=True)):
            if there != here:
                return f"channel {place} is '{there}' there, '{here}' here"
        return None


RGB = Channels(("red", "green", "blue"), rgb=(0, 1, 2))
