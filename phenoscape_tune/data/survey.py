"""Looks at a folder's files, and answers what a configuration asks of them with one recipe for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from phenoscape_tune.data.cubes import check_layout, read_bands
from phenoscape_tune.data.decoding import Notice
from phenoscape_tune.data.layout import Layout, OtherChannels, UnreadableImage, printable
from phenoscape_tune.data.pictures import image_size
from phenoscape_tune.data.readers import reader_of
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.selection import choose_channels, name_channels
from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.data.squares import Square
from phenoscape_tune.errors import UserError

PERCENTILES = (0.5, 99.5)
SAMPLED_IMAGES, SAMPLED_PIXELS = 64, 1024
# Values of which the 99.5 percentile lies within this share of the full scale fill their type: what is added to them in
# the augmentation is then of their own size.
FILLED = (0.25, 1.2)
SMALLEST_SIZE = 8  # pixels
HEADER_READERS, HEADERS_AT_ONCE = 8, 256


def answer(specimens: Specimens, request: Request, num_workers: int, notice: Notice | None = None) -> Recipe:
    """The recipe for a folder's files, from all their headers and, for percentiles, some of their values.

    Its squares are of the size that is asked for where an image has that many pixels on its longest side, else of the
    longest side of all (small images are not enlarged), but never below 8; of pictures, headers are read only until one
    is large enough.

    Files whose header cannot be read are passed over: whoever reads them says so. Raises UserError where the others
    have different channels, naming two of them, or where they have not those that are asked for.
    """
    if request.modality == "rgb":
        return Recipe(_fit_size(request.square, _longest_side(specimens, request.square.size)))
    layouts = _read_layouts(specimens, num_workers)
    if not layouts:
        return Recipe(request.square, modality=request.modality, of=0)  # decoding each of them tells why
    first, layout = _agree(specimens, layouts)
    try:
        channels, taken, mask = choose_channels(request, layout)
    except UserError as fault:
        raise UserError(f"{fault} (as in {specimens.root / printable(first)})") from None
    if request.modality == "multispectral":
        _agree_on_names(specimens, layouts, request, first)
    if request.use_mask and mask is None:
        raise UserError(
            f"use_segmentation_mask: true: none of the {layout.channels} channels of "
            f"{specimens.root / printable(first)} is a mask; name it mask by channel_names (in ENVI headers by "
            "`band names`), or write use_segmentation_mask=false"
        )
    recipe = Recipe(
        square=_fit_size(request.square, max(max(layout.height, layout.width) for layout in layouts.values())),
        channels=channels,
        modality=request.modality,
        of=layout.channels,
        taken=taken,
        mask=mask if request.use_mask else None,
        crop_to_mask=request.crop_to_mask,
        wavelengths=layout.wavelengths,
    )
    return replace(recipe, value_range=_choose_range(specimens, request, recipe, layouts, num_workers, notice))


def _fit_size(square: Square, longest: int) -> Square:
    """The square that images are put on whose longest side is so many pixels (0: unknown)."""
    return replace(square, size=max(SMALLEST_SIZE, min(square.size, longest or square.size)))


def _longest_side(specimens: Specimens, enough: int) -> int:
    """The longest side of all pictures in pixels, or of some where one has enough; unreadable ones are passed over."""
    longest = 0
    with ThreadPoolExecutor(HEADER_READERS) as pool:
        for start in range(0, len(specimens.names), HEADERS_AT_ONCE):
            sides = pool.map(
                lambda name: _side(specimens.root / name), specimens.names[start : start + HEADERS_AT_ONCE]
            )
            longest = max(longest, *sides)
            if longest >= enough:
                break
    return longest


def _side(path: Path) -> int:
    try:
        return max(image_size(path))
    except UnreadableImage:
        return 0


def _read_layouts(specimens: Specimens, num_workers: int) -> dict[str, Layout]:
    reader = reader_of(specimens.modality)

    def look(name: str) -> Layout | None:
        try:
            return reader.read_layout(specimens.root / name)
        except UnreadableImage:
            return None

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        found = zip(specimens.names, pool.map(look, specimens.names), strict=True)
        return {name: layout for name, layout in found if layout is not None}


def _agree(specimens: Specimens, layouts: dict[str, Layout]) -> tuple[str, Layout]:
    """The first file of the most frequent number of channels. Raises UserError where another one differs from it."""
    counts = Counter(layout.channels for layout in layouts.values()).most_common()
    examples = {layout.channels: name for name, layout in reversed(list(layouts.items()))}
    if len(counts) > 1:
        told = ", ".join(
            f"{channels} in {printable(examples[channels])}" + (f" and {count - 1:,} more" if count > 1 else "")
            for channels, count in counts
        )
        raise UserError(
            f"data_dir: {specimens.root}: the images have different numbers of channels: {told}. One search compares "
            "images of the same channels: move one kind to another folder"
        )
    first = examples[counts[0][0]]
    for name, layout in layouts.items():
        try:
            check_layout(layout, layouts[first].channels, layouts[first].wavelengths)
        except OtherChannels as fault:
            raise UserError(
                f"data_dir: {specimens.root}: the images have different channels: {printable(name)} has {fault} "
                f"(in {printable(first)}). One search compares images of the same channels: move one kind to another "
                "folder"
            ) from None
    return first, layouts[first]


def _agree_on_names(specimens: Specimens, layouts: dict[str, Layout], request: Request, first: str) -> None:
    """Raise UserError where a file names its channels otherwise than the first: they may stand in another order."""
    known = name_channels(request.channel_names, layouts[first])
    for name, layout in layouts.items():
        if (own := name_channels(request.channel_names, layout)) != known:
            raise UserError(
                f"data_dir: {specimens.root}: the images have different channels: {printable(name)} has "
                f"{', '.join(own)} and {printable(first)} has {', '.join(known)}. Write them in the same order, or "
                "name the channels of all of them by channel_names"
            )


def _choose_range(
    specimens: Specimens,
    request: Request,
    recipe: Recipe,
    layouts: dict[str, Layout],
    num_workers: int,
    notice: Notice | None,
) -> tuple[float, float] | None:
    """What becomes 0 and 1, in the files' units; None: 0 and the full scale of each channel."""
    asked = request.value_scaling
    if not isinstance(asked, str):
        low, high = asked
        return low, high
    if asked == "bit_depth":
        return None
    scales = {layout.full_scale[channel] for layout in layouts.values() for channel in recipe.taken}
    if len(scales) > 1:
        if asked == "percentile":
            raise UserError(
                f"value_scaling: percentile: the channels of {specimens.root} have different full scales "
                f"({', '.join(f'{scale:g}' for scale in sorted(scales)[:5])}), which no common range fits; write "
                "value_scaling=bit_depth"
            )
        return None
    full = scales.pop()
    names = [name for name in request.scaled_by if name in layouts] or list(layouts)
    values = _sample_values(specimens.root, recipe, names, num_workers)
    if not values.size:
        return None
    low, high = (float(f"{value:.6g}") for value in np.percentile(values, PERCENTILES))
    if asked == "auto" and (FILLED[0] <= high / full <= FILLED[1] or high <= low):
        return None
    if high <= low:
        raise UserError(
            f"value_scaling: percentile: nearly all values of {specimens.root} are {low:g}; write the range that is to "
            "become 0 to 1, such as value_scaling=[0, 10000]"
        )
    if asked == "auto" and notice is not None:
        notice(
            f"value_scaling: auto: values reach {high:g} of {full:g}: {low:g} to {high:g} become 0 to 1 "
            f"({PERCENTILES[0]} and {PERCENTILES[1]} percentile of the training part)"
        )
    return low, high


def _sample_values(root: Path, recipe: Recipe, names: Sequence[str], num_workers: int) -> np.ndarray:
    """float32: the same number of pixels of each of some images, all channels; the background is left out."""
    own_units = replace(recipe, value_range=(0.0, 1.0))
    nowhere = (np.nan,) * len(recipe.channels)

    def sample(name: str) -> np.ndarray:
        rng, found = np.random.default_rng(0), []
        try:
            for bands in read_bands(root / name, own_units, fill=nowhere, clip=False):
                flat = bands.values.reshape(len(bands.values), -1)
                found.append(flat[:, rng.integers(0, flat.shape[1], SAMPLED_PIXELS)].ravel())
        except UnreadableImage:
            return np.empty(0, np.float32)
        values = np.concatenate(found)
        return values[np.isfinite(values)]

    step = max(1, len(names) // SAMPLED_IMAGES)
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        sampled = list(pool.map(sample, names[::step][:SAMPLED_IMAGES]))
    return np.concatenate(sampled) if sampled else np.empty(0, np.float32)
