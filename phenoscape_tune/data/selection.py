"""Which channels of a folder's files are taken, by what the configuration asks and what the files hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phenoscape_tune.channel_keys import MULTISPECTRAL_NAMES
from phenoscape_tune.data.channels import COLOUR_NM, FARTHEST_NM, VISIBLE_NM, Channels
from phenoscape_tune.data.layout import Layout
from phenoscape_tune.data.recipe import Request
from phenoscape_tune.errors import UserError

MASK, UV = "mask", "uv"
COLOURS = ("red", "green", "blue")
SHORT_NAMES = {"r": "red", "g": "green", "b": "blue"}
# Names by the number of channels, where neither the configuration nor the files give any.
USUAL_NAMES = {
    3: COLOURS,
    4: (*COLOURS, "uv"),
    6: (*COLOURS, "uv1", "uv2", "uv3"),
    7: MULTISPECTRAL_NAMES,
}
LISTED = 12


def choose_channels(request: Request, layout: Layout) -> tuple[Channels, tuple[int, ...], int | None]:
    """The channels that are taken, where they stand in the files, and where the mask does (None: there is none).

    Raises UserError for channels that files of this layout do not have.
    """
    if request.modality == "rgb":
        return Channels(COLOURS, rgb=(0, 1, 2)), (0, 1, 2), None
    if request.modality == "hyperspectral":
        return _choose_bands(request, layout)
    names = name_channels(request.channel_names, layout)
    mask = names.index(MASK) if MASK in names else None
    taken = _choose_named(request.channels, names)
    own = tuple(names[channel] for channel in taken)
    rgb = tuple(own.index(colour) for colour in COLOURS) if set(COLOURS) <= set(own) else None
    uv = tuple(place for place, name in enumerate(own) if name.startswith(UV))
    return Channels(own, rgb, uv), taken, mask  # type: ignore[arg-type]


def name_channels(configured: Sequence[str] | None, layout: Layout) -> tuple[str, ...]:
    """The names of a multispectral file's channels: the configuration's, the file's own, or the usual ones.

    Raises UserError where the configuration names another number of them than there are.
    """
    if configured is not None:
        if len(configured) != layout.channels:
            raise UserError(
                f"channel_names: names {len(configured)} channels ({', '.join(configured)}), and the files have "
                f"{layout.channels}; write a name for each"
            )
        return tuple(_plain(name) for name in configured)
    own = tuple(_plain(name) for name in layout.names or ())
    if any(name in COLOURS or name == MASK or name.startswith(UV) for name in own) and len(set(own)) == len(own):
        return own
    return USUAL_NAMES.get(layout.channels, tuple(f"channel {number}" for number in range(layout.channels)))


def _plain(name: str) -> str:
    name = name.strip().lower()
    return SHORT_NAMES.get(name, name)


def _choose_named(asked: str | Sequence[int | str], names: Sequence[str]) -> tuple[int, ...]:
    has = f"the files' channels are {_listed(names)}"
    if asked == "full":
        taken = tuple(place for place, name in enumerate(names) if name != MASK)
        if not taken:
            raise UserError(f"channels: full: nothing is left without the mask; {has}")
        return taken
    if asked == "rgb_only":
        if not set(COLOURS) <= set(names):
            raise UserError(f"channels: rgb_only: {has}; name red, green and blue by channel_names, or write a list")
        return tuple(names.index(colour) for colour in COLOURS)
    if asked == "uv_only":
        taken = tuple(place for place, name in enumerate(names) if name.startswith(UV))
        if not taken:
            raise UserError(f"channels: uv_only: {has}; name those of the ultraviolet uv1, uv2 ... by channel_names")
        return taken
    found = []
    for channel in asked:
        if isinstance(channel, int):
            if channel >= len(names):
                raise UserError(f"channels: {channel}: {has}; write an index from 0 to {len(names) - 1}")
            found.append(channel)
        elif _plain(channel) in names:
            found.append(names.index(_plain(channel)))
        else:
            raise UserError(f"channels: {channel!r}: {has}; write one of them, or name them by channel_names")
    if len(set(found)) < len(found):
        raise UserError(f"channels: {list(asked)}: names a channel twice; {has}")
    return tuple(found)


def _choose_bands(request: Request, layout: Layout) -> tuple[Channels, tuple[int, ...], int | None]:
    own = [_plain(name) for name in layout.names or ()]
    mask = own.index(MASK) if MASK in own else None
    bands = [band for band in range(layout.channels) if band != mask and band not in layout.bad]
    if not bands:
        raise UserError(f"bands: all {layout.channels} bands are marked as bad by the headers (bbl)")
    asked = request.bands
    taken = _find_bands(asked, bands, layout) if isinstance(asked, str) else _list_bands(asked, layout)
    if len(set(taken)) < len(taken):
        raise UserError(f"bands: {_told(asked)}: two of them are the same band of the files; write others")
    wavelengths = None if layout.wavelengths is None else tuple(layout.wavelengths[band] for band in taken)
    names = tuple(_name_band(band, layout) for band in taken)
    if len(set(names)) < len(names):  # two detectors may share a wavelength, and band names may repeat
        names = tuple(f"{name} ({band})" for name, band in zip(names, taken, strict=True))
    uv = tuple(place for place, nm in enumerate(wavelengths or ()) if nm < VISIBLE_NM)
    return Channels(names, (0, 1, 2) if asked == "rgb" else None, uv, wavelengths), taken, mask


def _name_band(band: int, layout: Layout) -> str:
    if layout.wavelengths is not None:
        return f"{layout.wavelengths[band]:.6g} nm"
    return layout.names[band] if layout.names else f"band {band}"


def _find_bands(asked: str, bands: list[int], layout: Layout) -> tuple[int, ...]:
    """The bands that a word stands for, among those that are usable."""
    word, _, rest = asked.partition(":")
    if word == "all":
        return tuple(bands)
    if word == "every":
        return tuple(bands[:: int(rest)])
    if word == "uniform":
        if int(rest) > len(bands):
            raise UserError(f"bands: {asked}: the files have {len(bands)} usable bands; write at most that many")
        return tuple(bands[place] for place in np.linspace(0, len(bands) - 1, int(rest)).round().astype(int))
    if word == "rgb":
        return tuple(_nearest_band(nm, bands, layout, asked) for nm in COLOUR_NM)
    low, high = (float(bound) for bound in rest.removesuffix("nm").split("-"))
    if rest.endswith("nm"):
        known = _wavelengths(layout, asked)
        found = tuple(band for band in bands if low <= known[band] <= high)
        has = f"the files' are from {min(known):g} to {max(known):g} nm"
    else:
        has = f"the files have {layout.channels} bands, 0 to {layout.channels - 1}; for wavelengths write nm at the end"
        if high >= layout.channels:
            raise UserError(f"bands: {asked}: {has}")
        found = tuple(band for band in bands if low <= band <= high)
    if not found:
        raise UserError(f"bands: {asked}: no band lies there; {has}")
    return found


def _list_bands(asked: Sequence[int | str], layout: Layout) -> tuple[int, ...]:
    found = []
    for band in asked:
        if isinstance(band, str):
            nm = float(band.removesuffix("nm"))
            found.append(_nearest_band(nm, list(range(layout.channels)), layout, band))
        elif band >= layout.channels:
            raise UserError(
                f"bands: {band}: the files have {layout.channels} bands; write an index from 0 to "
                f"{layout.channels - 1}, or a wavelength such as {band}nm"
            )
        else:
            found.append(band)
    return tuple(found)


def _told(asked: str | Sequence[int | str]) -> str:
    return asked if isinstance(asked, str) else str(list(asked))


def _nearest_band(nm: float, bands: Sequence[int], layout: Layout, asked: str) -> int:
    known = _wavelengths(layout, asked)
    band = min(bands, key=lambda band: abs(known[band] - nm))
    if abs(known[band] - nm) > FARTHEST_NM:
        raise UserError(
            f"bands: {asked}: the band nearest to {nm:g} nm lies at {known[band]:g} nm; the files' are from "
            f"{min(known):g} to {max(known):g} nm"
        )
    return band


def _wavelengths(layout: Layout, asked: str) -> tuple[float, ...]:
    if layout.wavelengths is None:
        raise UserError(
            f"bands: {asked}: the headers tell no wavelengths; add `wavelength = {{...}}` to them, or write indices "
            f"such as range:0-{layout.channels - 1}"
        )
    return layout.wavelengths


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
