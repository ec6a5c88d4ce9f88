"""How the files of one folder become images: which channels, in which range of values, on which square."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.data.readers import Modality
from phenoscape_tune.data.squares import Square

LISTED = 8
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Request:
    """What a configuration asks of a folder's images; what is found in the folder answers it with a `Recipe`."""

    square: Square
    modality: Modality = "rgb"
    channels: str | tuple[int | str, ...] = "full"
    channel_names: tuple[str, ...] | None = None
    bands: str | tuple[int | str, ...] = "all"
    value_scaling: str | tuple[float, float] = "auto"
    use_mask: bool = False
    crop_to_mask: bool = False
    scaled_by: tuple[str, ...] = ()
    """Names of the images (of the training part) that percentiles are taken of; empty where none are needed."""


@dataclass(frozen=True)
class Recipe:
    """How each file of a folder becomes a square, the same for all of them."""

    square: Square
    channels: Channels = RGB
    """Of the squares."""
    modality: Modality = "rgb"
    of: int = 3
    """Channels that each file has."""
    taken: tuple[int, ...] = (0, 1, 2)
    """Where the squares' channels stand in the files."""
    value_range: tuple[float, float] | None = None
    """What becomes 0 and 1, in the files' own units; None: 0 and each channel's full scale."""
    mask: int | None = None
    """Where the mask stands in the files, if it is used."""
    crop_to_mask: bool = False
    wavelengths: tuple[float, ...] | None = None
    """Nanometres of all the files' channels."""

    @property
    def dtype(self) -> str:
        """Type of the squares: uint8 for pictures, else uint16, whose 0..65535 stand for 0..1."""
        return "uint8" if self.modality == "rgb" else "uint16"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the squares."""
        return len(self.channels), self.square.size, self.square.size

    @property
    def nbytes(self) -> int:
        """Bytes of one square."""
        C, S, _ = self.shape
        return C * S * S * (1 if self.dtype == "uint8" else 2)

    @property
    def fill(self) -> tuple[float, ...]:
        """What stands for the background in each channel, 0..1: its colour in red, green and blue, else its grey."""
        red, green, blue = (value / 255 for value in self.square.background)
        fill = [LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue] * len(self.channels)
        for place, value in zip(self.channels.rgb or (), (red, green, blue), strict=False):
            fill[place] = value
        return tuple(fill)

    def describe(self) -> str:
        """What is taken of the files, in one line."""
        names = self.channels.names
        few = names if len(names) <= LISTED else (*names[:2], "...", names[-1])
        told = f"{self.modality}, {len(names)} of {self.of} channels ({', '.join(few)})"
        if self.value_range is not None:
            told += f", {self.value_range[0]:g} to {self.value_range[1]:g} become 0 to 1"
        if self.mask is not None:
            told += f", background removed by the mask{', cut to the specimen' if self.crop_to_mask else ''}"
        return told

    def at(self, size: int) -> Recipe:
        """The same on squares of another size."""
        return replace(self, square=replace(self.square, size=size))

    def to_mapping(self) -> dict[str, Any]:
        """Plain values that `from_mapping` reads back to an equal recipe."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Recipe:
        """Raises ValueError for what is no recipe."""
        return TypeAdapter(cls).validate_python(mapping)
