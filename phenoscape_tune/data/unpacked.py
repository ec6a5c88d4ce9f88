"""Images that are decoded whenever they are asked for: where they are not to be packed, or do not fit on the disk.

The pixels are those of packed images. Threads and not processes decode: Pillow gives the interpreter free while it
works, a thread starts at once and shares memory with the run, and a rank of several devices may not start processes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from phenoscape_tune.data.decoding import (
    Notice,
    Progress,
    Unreadable,
    decode,
    decode_all,
    judge_unreadable,
    map_ahead,
    refuse_unreadable,
)
from phenoscape_tune.data.images import Images
from phenoscape_tune.data.layout import UnreadableImage, printable
from phenoscape_tune.data.packing import FORMAT_VERSION, key_of
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.data.survey import answer
from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.files import write_whole

BATCHES_AHEAD = 2


def open_unpacked(
    specimens: Specimens,
    request: Request,
    cache_dir: Path,
    *,
    num_workers: int,
    keep_workers: bool,
    max_unreadable: float,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Images:
    """The specimens' images, each decoded when it is asked for, by ``num_workers`` threads.

    Which of them cannot be read is found by decoding all of them once, before training; the answer is kept below
    ``cache_dir`` for as long as the files do not change. See ``packed.pack`` for the other arguments.

    Raises UserError where more than ``max_unreadable`` of them, or all, cannot be read.
    """
    record = cache_dir.expanduser() / f"readable-{key_of(specimens, request)}.json"
    found = _recorded(record)
    if found is None:
        recipe = answer(specimens, request, max(1, num_workers), notice)
        unreadable = _find_unreadable(specimens, recipe, max(1, num_workers), progress)
        told = {"version": FORMAT_VERSION, "unreadable": unreadable, "recipe": recipe.to_mapping()}
        with suppress(OSError, NoSpaceLeft):  # no room for a few bytes: found anew the next time
            cache_dir.expanduser().mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps(told))
    else:
        unreadable, recipe = found
    line = judge_unreadable(unreadable, specimens, max_unreadable)
    if line and notice is not None:
        notice(line)
    readable = specimens.readable(unreadable)
    pixels = UnpackedPixels(readable, recipe, num_workers, keep_workers)
    return Images(pixels, readable, unreadable, folder=None, recipe=recipe)


def _recorded(record: Path) -> tuple[Unreadable, Recipe] | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        unreadable = tuple((str(name), str(reason)) for name, reason in found["unreadable"])
        return unreadable, Recipe.from_mapping(found["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find_unreadable(specimens: Specimens, recipe: Recipe, workers: int, progress: Progress | None) -> Unreadable:
    unreadable: list[tuple[str, str]] = []
    for done, (name, image) in enumerate(decode_all(specimens, recipe, workers), start=1):
        if isinstance(image, UnreadableImage):
            unreadable.append((name, str(image)))
        if progress is not None:
            progress(done, len(specimens.names))
    if len(unreadable) == len(specimens.names):
        raise refuse_unreadable(tuple(unreadable), specimens)
    return tuple(unreadable)


class UnpackedPixels:
    """The squares of N readable images: (N, C, S, S) of the recipe's type, read by an index or an array of indices.

    Args:
        num_workers: threads that decode; 0: the caller's own, and nothing is read ahead.
        keep_workers: whether the threads stay from one pass to the next.

    Raises UserError where an image that could be read is gone or damaged since.
    """

    def __init__(self, specimens: Specimens, recipe: Recipe, num_workers: int, keep_workers: bool = True) -> None:
        self._specimens, self._recipe = specimens, recipe
        self._num_workers, self._keep_workers = num_workers, keep_workers
        self._pool: ThreadPoolExecutor | None = None
        self.shape = (len(specimens.names), *recipe.shape)
        self.dtype = np.dtype(recipe.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | np.integer | np.ndarray) -> np.ndarray:
        """(C, S, S) of one image, (n, C, S, S) of n."""
        if isinstance(index, np.ndarray):
            return next(self.in_batches([index]))
        return self._decode(int(index))

    def in_batches(self, order: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """(n, C, S, S) for each (n,) of `order`; the next two batches are decoded while one is in use."""
        batches = list(order)
        if not self._num_workers:
            for indices in batches:
                yield self._stack(map(self._decode, indices), len(indices))
            return
        pool = self._pool or ThreadPoolExecutor(self._num_workers, thread_name_prefix="decode")
        if self._keep_workers:
            self._pool = pool
        longest = max(map(len, batches), default=0)
        single = (int(index) for indices in batches for index in indices)
        images = map_ahead(pool, self._decode, single, (1 + BATCHES_AHEAD) * longest)
        try:
            for indices in batches:
                yield self._stack(images, len(indices))
        finally:
            images.close()
            if pool is not self._pool:
                pool.shutdown(wait=False)

    def _decode(self, index: int) -> np.ndarray:
        name = self._specimens.names[index]
        try:
            return decode(self._specimens.root / name, self._recipe)
        except UnreadableImage as fault:
            raise UserError(
                f"data_dir: {self._specimens.root / printable(name)}: {fault}; it could be read when the run began. "
                "Put it back and go on with --resume."
            ) from fault

    def _stack(self, images: Iterable[np.ndarray], count: int) -> np.ndarray:
        stacked = np.empty((count, *self.shape[1:]), self.dtype)
        for place, image in enumerate(islice(images, count)):
            stacked[place] = image
        return stacked
