"""What is measured of each image file before training: one pass over the folder, a few hundred bytes kept an image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.data.cubes import read_bands, square_of
from phenoscape_tune.data.decoding import map_ahead
from phenoscape_tune.data.false_colour import false_colour
from phenoscape_tune.data.layout import UnreadableImage
from phenoscape_tune.data.listing import files_of
from phenoscape_tune.data.pictures import image_size, read_image
from phenoscape_tune.data.readers import reader_of
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.specimens import Specimens

THUMBNAIL = 16  # px: what near-duplicates are compared by
THUMBNAIL_CHANNELS = 8
SATURATED = 0.5  # share of a channel's pixels
SMALLEST_SHOWN = 8  # px


@dataclass(frozen=True)
class ImageMeasures:
    """What is known of one image."""

    size: tuple[int, int]
    """Width and height in pixels."""
    file_digest: bytes
    """16 bytes that tell its file."""
    pixel_digest: bytes
    """16 bytes that tell its size and pixels, whatever the file's format."""
    sharpness: float
    """Variance of the Laplacian; see ``laplacian_variance``."""
    spread: float
    """Largest standard deviation of a channel, in levels of 0..255."""
    moments: np.ndarray
    """float64 (4, C): mean, mean square, smallest and largest value of each channel, 0..1."""
    thumbnail: np.ndarray
    """uint8 (16, 16, T): each pixel the mean of a 16th of the width and height; of many channels means of runs."""
    specimen: np.ndarray
    """float64 (C,): mean of each channel, 0..1, without the background that the recipe's `fill` stands for."""
    saturated: tuple[int, ...] = ()
    """Channels of which more than half of the specimen's pixels have the largest value of a sensor."""


@dataclass(frozen=True)
class Measurements:
    """What is known of N readable images, in the order of their names."""

    specimens: Specimens
    """The N readable ones."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of each file that is no image that can be read."""
    sizes: np.ndarray
    """int32 (N, 2): width and height in pixels."""
    file_digests: tuple[bytes, ...]
    pixel_digests: tuple[bytes, ...]
    sharpness: np.ndarray
    """float32 (N,), NaN for images below 3 pixels a side."""
    spread: np.ndarray
    """float32 (N,), levels of 0..255."""
    thumbnails: np.ndarray
    """uint8 (N, 16, 16, T)."""
    moments: np.ndarray
    """float64 (4, C): mean, standard deviation, smallest, largest value of each channel, 0..1; images count alike."""
    recipe: Recipe
    """How the files become images; C are its channels."""
    means: np.ndarray
    """float64 (N, C): mean of each channel of each image, 0..1, without the background that is hidden."""
    saturated: tuple[tuple[int, ...], ...]
    """N: channels that are saturated in each image."""

    @property
    def spectra(self) -> ClassSpectra | None:
        """The mean spectrum of each class; None for RGB pictures."""
        if self.recipe.modality == "rgb":
            return None
        labels, names = self.specimens.labels, self.specimens.classes
        if labels is None:
            labels, names = np.zeros(len(self.means), np.int64), ("all images",)
        return ClassSpectra.of_images(self.means, labels, names, self.recipe.channels)


def measure_images(
    specimens: Specimens,
    input_size: int,
    recipe: Recipe,
    num_workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Measurements:
    """Read every file once, in `num_workers` threads, and keep about a kilobyte an image.

    Pictures are read by `read_image` at twice `input_size`, as packing reads them: large JPEG files are decoded at a
    half, a quarter or an eighth. Of other images all of the recipe's channels are read. `progress` gets (done, total).
    A file that cannot be read is listed, never raised.
    """
    found: list[tuple[int, ImageMeasures]] = []
    unreadable: list[tuple[str, str]] = []

    def measure(name: str) -> ImageMeasures | UnreadableImage:
        try:
            return measure_image(specimens.root / name, input_size, recipe)
        except UnreadableImage as fault:
            return fault

    workers = max(1, num_workers)
    with ThreadPoolExecutor(workers) as pool:
        for index, measured in enumerate(map_ahead(pool, measure, specimens.names, 64 * workers)):
            if isinstance(measured, UnreadableImage):
                unreadable.append((specimens.names[index], str(measured)))
            else:
                found.append((index, measured))
            if progress is not None:
                progress(index + 1, len(specimens.names))
    return _gather(specimens, found, unreadable, recipe)


def measure_image(path: Path, input_size: int, recipe: Recipe) -> ImageMeasures:
    """The measures of one file. Raises UnreadableImage where it is no image that training could read."""
    return (_measure_picture if recipe.modality == "rgb" else _measure_channels)(path, input_size, recipe)


def _digest_files(paths: Sequence[Path]) -> bytes:
    """16 bytes that tell the files' bytes."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path in paths:
            with path.open("rb") as file:
                while piece := file.read(2**20):
                    digest.update(piece)
    except OSError as fault:  # gone since it was decoded
        raise UnreadableImage(fault.strerror or str(fault)) from fault
    return digest.digest()


def _measure_channels(path: Path, input_size: int, recipe: Recipe) -> ImageMeasures:
    """Of an image of any number of channels, a few of which are in memory at a time."""
    layout = reader_of(recipe.modality).read_layout(path)
    told = hashlib.blake2b(repr((layout.width, layout.height, recipe.of)).encode(), digest_size=16)
    moments, deviations, saturated, planes, specimen = [], [], [], [], []
    fill = np.array(recipe.fill, np.float32)[:, None, None]
    colours = false_colour(recipe.channels)
    seen: dict[int, np.ndarray] = {}  # the channels that people are shown
    for bands in read_bands(path, recipe):
        told.update(np.ascontiguousarray(bands.raw).tobytes())
        values = bands.values.reshape(len(bands.values), -1).astype(np.float64)
        mean, square = values.mean(axis=1), np.square(values).mean(axis=1)
        moments.append(np.stack([mean, square, values.min(axis=1), values.max(axis=1)]))
        deviations.append(np.sqrt(np.maximum(square - mean**2, 0)))
        hidden = (bands.values == fill[bands.start : bands.start + len(bands.values)]).all(axis=0)  # (H, W)
        specimen.append(mean if hidden.all() else bands.values[:, ~hidden].mean(axis=1, dtype=np.float64))
        saturated += [bands.start + int(place) for place in np.flatnonzero(bands.saturated > SATURATED)]
        own = range(bands.start, bands.start + len(bands.values))
        seen |= {index: bands.values[index - bands.start].copy() for index in colours.indices if index in own}
        planes += [
            np.asarray(Image.fromarray(plane).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
            for plane in bands.values
        ]
    # A run's mean for each of a few channels: near-duplicates are alike in all of them.
    runs = np.array_split(np.stack(planes), min(len(planes), THUMBNAIL_CHANNELS))
    thumbnail = np.stack([run.mean(axis=0) for run in runs], axis=-1)
    shown = recipe.at(max(SMALLEST_SHOWN, min(max(layout.height, layout.width), 2 * input_size))).square
    three = np.stack([seen[index] for index in colours.indices])
    picture = Image.fromarray(colours.paint(square_of(three, shown, fill[list(colours.indices), 0, 0])))
    return ImageMeasures(
        size=(layout.width, layout.height),
        file_digest=_digest_files(files_of(path, recipe.modality)),
        pixel_digest=told.digest(),
        sharpness=laplacian_variance(picture, input_size),
        spread=255 * float(np.concatenate(deviations).max()),
        moments=np.concatenate(moments, axis=1),
        thumbnail=np.rint(255 * thumbnail).astype(np.uint8),
        specimen=np.concatenate(specimen),
        saturated=tuple(saturated),
    )


def _measure_picture(path: Path, input_size: int, recipe: Recipe) -> ImageMeasures:
    size = image_size(path)
    pixels = read_image(path, recipe.square.background, shortest_side=2 * input_size)  # (C, H, W)
    file_digest = _digest_files([path])
    # A reduced JPEG of another size may have the same pixels.
    told = hashlib.blake2b(repr((size, pixels.shape)).encode(), digest_size=16)
    told.update(pixels.tobytes())
    values = pixels.reshape(len(pixels), -1)
    mean = values.mean(axis=1)
    square = np.array([np.square(channel, dtype=np.float32).mean(dtype=np.float64) for channel in values])
    picture = Image.fromarray(pixels.transpose(1, 2, 0))
    return ImageMeasures(
        size=size,
        file_digest=file_digest,
        pixel_digest=told.digest(),
        sharpness=laplacian_variance(picture, input_size),
        spread=float(np.sqrt(np.maximum(square - mean**2, 0)).max()),
        moments=np.stack([mean / 255, square / 255**2, values.min(axis=1) / 255, values.max(axis=1) / 255]),
        thumbnail=np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)),
        specimen=mean / 255,
    )


def laplacian_variance(picture: Image.Image, input_size: int) -> float:
    """Variance of the 4-neighbour Laplacian of an image's grey levels (0..255), at the size that the encoder sees.

    A longer side above `input_size` is scaled down to it: blur that is lost there is of no account. NaN below 3 pixels.
    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000), section 3.
    """
    grey = picture.convert("L")
    longer = max(grey.size)
    if longer > input_size:
        width, height = (max(1, round(side * input_size / longer)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if min(grey.size) < 3:
        return float("nan")
    g = np.asarray(grey, dtype=np.float32)  # (H, W)
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    return float(laplacian.var())


def _gather(
    specimens: Specimens, found: list[tuple[int, ImageMeasures]], unreadable: list[tuple[str, str]], recipe: Recipe
) -> Measurements:
    measures = [measured for _, measured in found]
    n, channels = len(measures), len(recipe.channels)
    depth = measures[0].thumbnail.shape[2] if measures else channels
    moments = np.array([m.moments for m in measures]).reshape(n, 4, channels)
    overall = np.full((4, channels), np.nan)
    if n:
        mean, square = moments[:, 0].mean(axis=0), moments[:, 1].mean(axis=0)
        spread = np.sqrt(np.maximum(square - mean**2, 0))
        overall = np.stack([mean, spread, moments[:, 2].min(axis=0), moments[:, 3].max(axis=0)])
    return Measurements(
        specimens=specimens.keep(index for index, _ in found),
        unreadable=tuple(unreadable),
        sizes=np.array([m.size for m in measures], dtype=np.int32).reshape(n, 2),
        file_digests=tuple(m.file_digest for m in measures),
        pixel_digests=tuple(m.pixel_digest for m in measures),
        sharpness=np.array([m.sharpness for m in measures], dtype=np.float32),
        spread=np.array([m.spread for m in measures], dtype=np.float32),
        thumbnails=np.array([m.thumbnail for m in measures], dtype=np.uint8).reshape(n, THUMBNAIL, THUMBNAIL, depth),
        moments=overall,
        recipe=recipe,
        means=np.array([m.specimen for m in measures]).reshape(n, channels),
        saturated=tuple(m.saturated for m in measures),
    )
