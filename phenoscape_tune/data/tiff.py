"""TIFF files of any number of channels: samples of a pixel, planes, pages, or all of them one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from phenoscape_tune.data.layout import Layout, UnreadableImage, check_channels, held_by
from phenoscape_tune.data.tiff_names import channel_names, channel_wavelengths, no_data_value
from phenoscape_tune.data.tiff_pages import Page, open_pages, read_samples


def read_layout(path: Path) -> Layout:
    """The layout of a TIFF, from its tags alone.

    The channels are the samples of all pages, in their order, but for pages that the file itself calls reduced.

    Raises UnreadableImage; see `read_channels`.
    """
    with open_pages(path) as (file, pages):
        count = sum(page.samples for page in pages)
        full_scale = tuple(page.full_scale for page in pages for _ in range(page.samples))
        no_data = held_by(no_data_value(pages), pages[0].dtype)
        if no_data is not None and pages[0].turned:
            no_data = pages[0].full_scale - no_data  # as its pixels are turned
        return Layout(
            channels=count,
            height=pages[0].height,
            width=pages[0].width,
            full_scale=full_scale,
            names=channel_names(file, pages, count),
            wavelengths=channel_wavelengths(pages, count),
            no_data=no_data,
        )


def read_channels(path: Path, channels: Sequence[int] | None = None) -> np.ndarray:
    """(n, H, W) of the channels asked for, in the type of the file, as the image is meant to be seen.

    Pages of different types come in the smallest type that holds the values of all. Where the file says that white is
    0 they are inverted, so that the largest value is the brightest. Pages and planes that are not asked for are not
    decoded, and uncompressed ones are mapped.

    Raises UnreadableImage for what is no whole TIFF of real numbers of one size, including one whose strips or tiles
    are partly missing.
    """
    with open_pages(path) as (_, pages):
        dtype = _common_type(pages)
        owner = [(page, sample) for page in pages for sample in range(page.samples)]
        asked = check_channels(channels, len(owner))
        out = np.empty((len(asked), pages[0].height, pages[0].width), dtype)
        for page in pages:
            places = [place for place, channel in enumerate(asked) if owner[channel][0] is page]
            if places:
                out[places] = read_samples(path, page, [owner[asked[place]][1] for place in places])
        return out


def _common_type(pages: Sequence[Page]) -> np.dtype:
    types = {page.dtype for page in pages}
    common = np.result_type(*types)
    if common.kind == "f" and any(kind.kind != "f" and kind.itemsize == 8 for kind in types):
        raise UnreadableImage(f"pages of types that no type holds: {' and '.join(sorted(map(str, types)))}")
    return common
