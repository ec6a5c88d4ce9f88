"""Images that are there twice: the same file, the same pixels, or nearly the same picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of the distance that two images of the folder usually have. Drawn specimens of one pose on one background came no
# nearer to each other than 0.12 of it; re-saved at JPEG quality 40, halved, brightened or with more contrast they
# stayed below 0.06 (a crop of 3 % or a mirror image is another picture). All 25 pairs found among 18,000 images of
# CIFAR-10 are copies. A pHash of 63 bits took 943 of 28,680 pairs of the drawn specimens for copies, at up to 10 bits.
NEAR = 0.05
CERTAIN = 0.001  # correlation above 0.999: re-saved, however alike the images of a folder are
LEAST_CONTRAST = 2.0  # levels of 0..255 that a thumbnail must vary by to be compared
FREQUENCIES = 5
SAMPLED_PAIRS = 20_000
ROWS, COLUMNS, CHECKED = 1024, 4096, 4096


def group_equal(keys: Sequence[bytes]) -> list[list[int]]:
    """Indices of equal keys, for every key that is there more than once; in the order of their first."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        places[key].append(index)
    return [indices for indices in places.values() if len(indices) > 1]


def group_near(thumbnails: np.ndarray, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
    """Groups of nearly equal images by their thumbnails, uint8 (N, n, n, C); an image stands in one group at most.

    Each channel's mean and linear gradient are taken out, so that neither brightness nor a tint nor a plain sky makes
    images alike. Two are near where 1 − the correlation of what is left is at most NEAR times the median of random
    pairs of the folder, or at most CERTAIN. Images that a chain of near pairs joins are one group. Thumbnails without
    contrast are in none.

    The low frequencies of a cosine transform (a perceptual hash before it is cut to bits) are compared first, block by
    block as matrix products: their distance is never above the thumbnails', so no pair is missed. 100,000 images took
    two minutes on two busy cores, within 600 MB.
    """
    kept, vectors = _normalise(thumbnails)
    if len(kept) < 2:
        return []
    largest = _largest_distance(vectors)
    signatures = _low_frequencies(vectors, thumbnails.shape[1:])
    halves = 0.5 * np.einsum("ij,ij->i", signatures, signatures)  # (n,)
    groups = np.arange(len(kept))
    for top in range(0, len(kept), ROWS):
        rows = slice(top, top + ROWS)
        for left in range(top, len(kept), COLUMNS):
            columns = slice(left, left + COLUMNS)
            # |a − b|² = |a|² + |b|² − 2 a·b ≤ 2·largest, as for unit vectors |u − v|² = 2 (1 − correlation)
            bound = halves[rows, None] + halves[None, columns] - (largest + 1e-5)
            i, j = np.nonzero(signatures[rows] @ signatures[columns].T >= bound)
            i, j = i + top, j + left
            groups = _join(vectors, i[i < j], j[i < j], largest, groups)
        if progress is not None:
            progress(min(top + ROWS, len(kept)), len(kept))
    together: dict[int, list[int]] = defaultdict(list)
    for place, group in zip(kept.tolist(), groups.tolist(), strict=True):
        together[group].append(place)
    return [places for places in together.values() if len(places) > 1]


def _normalise(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,) of the thumbnails with contrast, and these as float32 (n, D) without plane and of length 1."""
    N, rows, columns, channels = thumbnails.shape
    down, across = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    planes = np.stack([np.ones((rows, columns)), down + 0 * across, 0 * down + across]).reshape(3, -1)
    planes = (planes / np.linalg.norm(planes, axis=1, keepdims=True)).astype(np.float32)  # (3, pixels), orthonormal
    vectors, kept = np.empty((N, rows * columns * channels), dtype=np.float32), [np.empty(0, dtype=np.int64)]
    n = 0
    for start in range(0, N, COLUMNS):
        pixels = thumbnails[start : start + COLUMNS].reshape(-1, rows * columns, channels).astype(np.float32)
        block = (pixels - planes.T @ (planes @ pixels)).reshape(len(pixels), -1)  # (b, D)
        lengths = np.linalg.norm(block, axis=1)
        chosen = np.flatnonzero(lengths >= LEAST_CONTRAST * np.sqrt(block.shape[1]))
        vectors[n : n + len(chosen)] = block[chosen] / lengths[chosen, None]
        kept.append(start + chosen)
        n += len(chosen)
    return np.concatenate(kept), vectors[:n]


def _largest_distance(vectors: np.ndarray) -> float:
    """The largest 1 − correlation that counts as near in this folder."""
    rng = np.random.default_rng(0)
    i, j = rng.integers(len(vectors), size=(2, SAMPLED_PAIRS))
    i, j = i[i != j], j[i != j]
    return max(CERTAIN, NEAR * float(np.median(1 - np.einsum("ij,ij->i", vectors[i], vectors[j]))))


def _low_frequencies(vectors: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 (n, d): the lowest frequencies of each thumbnail's channels; an orthonormal projection."""
    parts = []
    for start in range(0, len(vectors), COLUMNS):
        block = vectors[start : start + COLUMNS]
        waves = dctn(block.reshape(-1, *shape), axes=(1, 2), norm="ortho")
        parts.append(waves[:, :FREQUENCIES, :FREQUENCIES].reshape(len(block), -1))
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)


def _join(vectors: np.ndarray, i: np.ndarray, j: np.ndarray, largest: float, groups: np.ndarray) -> np.ndarray:
    """The groups (n,) after joining those of the candidate pairs (i, j) whose thumbnails are near."""
    for start in range(0, len(i), CHECKED):
        a, b = i[start : start + CHECKED], j[start : start + CHECKED]
        # Already together: in a folder of copies nearly all pairs are, and need not be compared.
        apart = groups[a] != groups[b]
        a, b = a[apart], b[apart]
        near = 1 - np.einsum("ij,ij->i", vectors[a], vectors[b]) <= largest
        if near.any():
            edges = coo_array((near[near], (groups[a[near]], groups[b[near]])), shape=(len(groups), len(groups)))
            groups = connected_components(edges, directed=False)[1][groups]
    return groups
