"""One file of many channels → its square: values scaled, the background removed, in a bounded piece of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from phenoscape_tune.data.channels import BAND_TOLERANCE
from phenoscape_tune.data.layout import Layout, OtherChannels, UnreadableImage
from phenoscape_tune.data.readers import reader_of
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.squares import Square, fit_channels

# Bytes of float32 values that one file is read in at a time. With the values as they stand in the file and a copy or
# two of them in NumPy's hands, a thread works in about four times as much.
CHUNK_BYTES = 32 * 2**20
LISTED_CHANNELS = 3
SENSOR_TOPS = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # of 8, 10, 12, 14 and 16 bits
MARGIN = 0.03  # around the specimen that a mask shows, as a share of its longer side


@dataclass(frozen=True)
class Bands:
    """Some channels of one file, at the file's own size or that of the specimen in it."""

    start: int
    """Place of the first of them in the recipe's channels."""
    values: np.ndarray
    """float32 (n, H, W), 0..1; the background, pixels without data included, has the recipe's `fill`."""
    saturated: np.ndarray
    """float64 (n,): share of the pixels, without the background, that have the largest value of a sensor."""
    raw: np.ndarray
    """(n, H, W) as they stand in the file."""


def read_square(path: Path, recipe: Recipe) -> np.ndarray:
    """One file as its square: uint16 (C, S, S), where 0..65535 stand for 0..1. Raises UnreadableImage."""
    square, fill = np.empty(recipe.shape, np.uint16), np.array(recipe.fill, np.float32)
    for bands in read_bands(path, recipe):
        rows = slice(bands.start, bands.start + len(bands.values))
        square[rows] = square_of(bands.values, recipe.square, fill[rows])
    return square


def square_of(values: np.ndarray, square: Square, fill: np.ndarray) -> np.ndarray:
    """Channels float32 (n, H, W) in 0..1 on a square, uint16 (n, S, S); ``fill`` (n,) is the background of each."""
    fitted = fit_channels(values, square.size, square.resize, fill)
    return np.rint(fitted.clip(0, 1) * 65535).astype(np.uint16)


def read_bands(path: Path, recipe: Recipe, fill: Sequence[float] | None = None, clip: bool = True) -> Iterator[Bands]:
    """The recipe's channels of one file, a few at a time.

    A pixel that is finite in none of them, or has the header's value for no data in all, is background, and so is what
    the mask hides: it has the value of ``fill`` (C,), by default the recipe's. Unless ``clip``, values may lie outside
    of 0..1.

    Raises UnreadableImage for a file that has not the channels that the recipe says, an empty mask, and values that are
    not finite in some channels only.
    """
    reader = reader_of(recipe.modality)
    layout = reader.read_layout(path)
    check_layout(layout, recipe.of, recipe.wavelengths)
    inside = None if recipe.mask is None else _read_mask(path, recipe)
    rows, columns = _box(inside) if inside is not None and recipe.crop_to_mask else (slice(None), slice(None))
    hidden = None if inside is None else ~inside[rows, columns]
    background = np.array(recipe.fill if fill is None else fill, np.float32)[:, None, None]
    blank = _find_blank(path, recipe, layout)
    blank = None if blank is None else blank[rows, columns]
    finite = _Finite(hidden)
    for start, taken in _chunks(recipe.taken, layout):
        raw = reader.read_channels(path, taken)[:, rows, columns]
        full = np.array([layout.full_scale[channel] for channel in taken], np.float32)[:, None, None]
        low, high = (np.float32(0), full) if recipe.value_range is None else map(np.float32, recipe.value_range)
        values = (raw.astype(np.float32) - low) / (high - low)
        missing = ~np.isfinite(values)
        finite.see(missing)
        if blank is not None:
            missing |= blank
        if hidden is not None:
            missing |= hidden
        saturated = _saturated_share(raw, full, ~missing)
        np.copyto(values, background[start : start + len(taken)], where=missing)
        yield Bands(start, values.clip(0, 1, out=values) if clip else values, saturated, raw)
    finite.check(recipe.channels.names)


def _find_blank(path: Path, recipe: Recipe, layout: Layout) -> np.ndarray | None:
    """bool (H, W): pixels that have the header's value for no data in all channels that are taken.

    A dark pixel has it in one band, and is no background for that.
    """
    if layout.no_data is None or not np.isfinite(layout.no_data):
        return None
    blank = np.ones((layout.height, layout.width), bool)
    for _, taken in _chunks(recipe.taken, layout):
        raw = reader_of(recipe.modality).read_channels(path, taken)
        blank &= (raw == raw.dtype.type(layout.no_data)).all(axis=0)
    return blank


def _saturated_share(raw: np.ndarray, full: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """float64 (n,): share of the shown pixels at the largest value of a sensor; a sensor's may be below the type's."""
    share = np.zeros(len(raw))
    for channel, (values, seen) in enumerate(zip(raw, shown, strict=True)):
        known = values[seen]
        if not known.size:
            continue
        top = known.max()
        if known.dtype.kind == "f" or float(top) in SENSOR_TOPS or top >= full[channel, 0, 0]:
            share[channel] = np.count_nonzero(known == top) / known.size
    return share


class _Finite:
    """Tells pixels that are not finite in any channel, the background, from values that are damaged."""

    def __init__(self, hidden: np.ndarray | None) -> None:
        self._hidden = hidden
        self._of_pixel: np.ndarray | int = 0  # (H, W): channels in which it is not finite
        self._of_channel: list[int] = []

    def see(self, missing: np.ndarray) -> None:
        """The next channels' values that are not finite, bool (n, H, W)."""
        seen = missing if self._hidden is None else missing & ~self._hidden
        self._of_pixel = self._of_pixel + seen.sum(axis=0, dtype=np.int32)
        self._of_channel += seen.sum(axis=(1, 2)).tolist()

    def check(self, names: Sequence[str]) -> None:
        """Raise UnreadableImage, naming channels, where some values are not finite beside others that are."""
        if not any(self._of_channel):
            return
        background = int((np.asarray(self._of_pixel) == len(names)).sum())
        shown = np.size(self._of_pixel) if self._hidden is None else int((~self._hidden).sum())
        if background == shown:
            raise UnreadableImage("no value is finite (NaN or infinite)")
        bad = [(name, count - background) for name, count in zip(names, self._of_channel, strict=True)]
        bad = [(name, count) for name, count in bad if count]
        if bad:
            told = ", ".join(f"{name} ({count} pixels)" for name, count in bad[:LISTED_CHANNELS])
            more = f" and {len(bad) - LISTED_CHANNELS} more channels" if len(bad) > LISTED_CHANNELS else ""
            raise UnreadableImage(f"values that are not finite (NaN or infinite) in {told}{more}")


def check_layout(layout: Layout, channels: int, known: Sequence[float] | None) -> None:
    """Raise OtherChannels where a file has not that many channels, or they do not lie at the known wavelengths (nm)."""
    if layout.channels != channels:
        raise OtherChannels(f"{layout.channels} channels, where {channels} are expected")
    found = layout.wavelengths
    if known is None or found is None or len(known) < 2:
        return
    expected = np.array(known)
    apart = np.abs(np.array(found) - expected)
    spacing = float(np.abs(np.diff(expected)).mean())
    band = int(apart.argmax())
    if apart[band] > BAND_TOLERANCE * spacing:
        raise OtherChannels(f"band {band} at {found[band]:g} nm, where {expected[band]:g} nm is expected")


def _read_mask(path: Path, recipe: Recipe) -> np.ndarray:
    """bool (H, W): where the specimen is."""
    assert recipe.mask is not None
    mask = reader_of(recipe.modality).read_channels(path, [recipe.mask])[0]
    inside = np.isfinite(mask) & (mask > 0) if mask.dtype.kind == "f" else mask > 0
    if not inside.any():
        raise UnreadableImage("its mask is empty: no pixel above 0")
    return inside


def _box(inside: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the specimen, with a margin."""
    sides = [np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0)]
    spans = [(int(side[0]), int(side[-1]) + 1) for side in sides]
    margin = max(1, round(MARGIN * max(stop - start for start, stop in spans)))
    rows, columns = (
        slice(max(0, start - margin), min(length, stop + margin))
        for (start, stop), length in zip(spans, inside.shape, strict=True)
    )
    return rows, columns


def _chunks(taken: tuple[int, ...], layout: Layout) -> Iterator[tuple[int, list[int]]]:
    """The taken channels in runs that fit the memory: the place of a run's first, and where they stand in the file."""
    most = max(1, CHUNK_BYTES // (4 * layout.height * layout.width))
    for start in range(0, len(taken), most):
        yield start, list(taken[start : start + most])
