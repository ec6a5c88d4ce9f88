"""Whether the values of an image were written in the other byte order than its header says."""

import statistics
from collections.abc import Callable, Iterable

import numpy as np

SIDE = 64
BANDS = 5
FEWEST = 64
"""Pixels, or pairs of neighbours, below which nothing can be told."""
LEVELS = 32
"""Different values below which a swap can shuffle them into a smoother order by chance."""
CLEARLY = 0.2
"""How much higher one order's correlation of neighbours must be than the other's: far outside of chance."""
SMOOTH = 0.5
PERIODS = range(1, 6)


def looks_swapped(pixels: np.ndarray) -> bool:
    """Whether (H, W, C) pixels make sense only with their bytes swapped; read from the middle of a few channels.

    Floats: most values are beyond 1e±12 or no numbers as they stand, and hardly any is once swapped. Integers: the
    ranks of neighbouring pixels go together only once swapped. Swapping never makes a real image smoother: what is
    smooth in the lower byte alone is read in the wrong order. Ranks, so that a few outliers do not count.

    Noise, constants, labels, single bytes and images below 8 × 8 never look swapped; nor do 8-bit values in 16 bits,
    which are as smooth in either order.
    """
    height, width, count = pixels.shape
    if pixels.dtype.itemsize == 1 or height * width < FEWEST:
        return False
    top, left = max(0, height - SIDE) // 2, max(0, width - SIDE) // 2
    middle = pixels[top : top + SIDE, left : left + SIDE]
    bands = np.unique(np.linspace(0, count - 1, min(BANDS, count)).round().astype(int))
    swapped = 0
    for band in bands:
        verdict = _judge(np.ascontiguousarray(middle[:, :, band]))
        if verdict < 0:  # what nearly every sound file says with its first band
            return False
        swapped += verdict
    return 2 * swapped >= len(bands)


def _judge(band: np.ndarray) -> int:
    """1: (H, W) makes sense only once swapped; -1: only as it stands; 0: cannot be told."""
    swapped = band.byteswap()
    if band.dtype.kind == "f":
        as_is, other = _sane(band), _sane(swapped)
        return 1 if as_is < 0.5 and other > 0.95 else -1 if other < 0.5 and as_is > 0.95 else 0
    as_is, other = _smoothness(band), _smoothness(swapped)
    if max(as_is, other) < SMOOTH:
        return 0
    if other - as_is > CLEARLY:
        # A mosaic or stripes of the sensor are as smooth as the scene from one of their periods to the next.
        return int(other - _smoothness(band, PERIODS, max) > CLEARLY)
    return -1 if as_is - other > CLEARLY else 0


def _sane(values: np.ndarray) -> float:
    """The share of float values that something measured has; of those that are not zero (1 where all are)."""
    values = values[values != 0]
    with np.errstate(invalid="ignore"):
        size = np.abs(values)
        return float(((size > 1e-12) & (size < 1e12)).mean()) if values.size else 1.0


def _smoothness(
    values: np.ndarray, steps: Iterable[int] = (1,), choose: Callable[[list[float]], float] = statistics.fmean
) -> float:
    """Rank correlation of pixels some steps apart, down and across, -1..1; 0 where there are too few.

    Pixels of the most frequent value are left out: background, saturated or without data, they say nothing of order.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    if counts.size < LEVELS:
        return 0.0
    ranks = (np.cumsum(counts) - counts / 2)[place].reshape(values.shape)
    told = (place != counts.argmax()).reshape(values.shape)
    found = []
    for grid, known in ((ranks, told), (ranks.T, told.T)):
        for step in steps:
            both = known[:-step] & known[step:]
            if both.sum() >= FEWEST:
                found.append(_correlate(grid[:-step][both], grid[step:][both]))
    return choose(found) if found else 0.0


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    spread = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / spread if spread > 0 else 0.0
