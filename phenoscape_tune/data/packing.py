"""Builds a packed folder: decodes every image once, under a lock, aside, and renames what is whole."""

import errno
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from phenoscape_tune.data.readers import UnreadableImage, fit, read_image
from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.errors import UserError

FORMAT_VERSION = 1
CHANNELS = 3
LISTED_NAMES = 10

Progress = Callable[[int, int], None]
Notice = Callable[[str], None]


@dataclass(frozen=True)
class PackSettings:
    """How each image is brought onto its square; see ``readers.fit``."""

    size: int
    """Side of the square in pixels."""
    resize: str
    """One of pad, crop and squash."""
    background: tuple[int, int, int]
    """Red, green, blue (0..255) under transparent pixels and beside padded images."""


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a whole packed folder; None where it is missing, or its array is not of the length it should be."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        with (folder / "images.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            length = file.tell() + int(np.prod(shape))
            whole = os.fstat(file.fileno()).st_size == length and shape[0] == len(index["names"])
        return index if whole and index["version"] == FORMAT_VERSION else None
    except (OSError, ValueError, KeyError):
        return None


def build_packed(
    specimens: Specimens,
    settings: PackSettings,
    folder: Path,
    num_workers: int,
    progress: Progress | None,
    notice: Notice | None,
) -> dict[str, Any]:
    """Build ``folder`` unless another process does so first; its index, as ``read_index`` returns it.

    Raises UserError where no image is readable, the disk has too little space or the cache folder cannot be written.
    """
    cache_dir = folder.parent
    building: Path | None = None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _hold_lock(folder, notice):
            index = read_index(folder)
            if index is not None:
                return index
            _remove_leftovers(folder)
            _check_space(specimens, settings, cache_dir)
            building = cache_dir / f".building-{folder.name}-{os.getpid()}"
            building.mkdir()
            index = _build(specimens, settings, building, num_workers, progress)
            os.replace(building, folder)
            _sync(cache_dir)
            return index
    except OSError as fault:
        what = "has no space left" if fault.errno == errno.ENOSPC else f"cannot be written ({fault.strerror or fault})"
        raise UserError(
            f"cache_dir: {cache_dir} {what}. Set cache_dir (or $PHENOSCAPE_CACHE) to a folder on a disk with room."
        ) from fault
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def _build(
    specimens: Specimens, settings: PackSettings, building: Path, num_workers: int, progress: Progress | None
) -> dict[str, Any]:
    """Decode every image into ``building``; its index, also written there."""
    names: list[str] = []
    unreadable: list[tuple[str, str]] = []
    # Written in sequence and not through a memory map, where a full disk would kill the process instead of raising.
    with (building / "images.npy").open("wb") as file:
        start = _write_header(file, len(specimens.names), settings.size)
        for done, (name, image) in enumerate(_decode(specimens, settings, num_workers), start=1):
            if isinstance(image, UnreadableImage):
                unreadable.append((name, str(image)))
            else:
                names.append(name)
                file.write(image.tobytes())
            if progress is not None:
                progress(done, len(specimens.names))
        if not names:
            raise UserError(
                f"data_dir: none of the {len(specimens.names)} images in {specimens.root} can be read: "
                f"{list_reasons(unreadable)}."
            )
        file.seek(0)
        # NumPy pads the header for a first axis that grows or shrinks, so the pixels stay where they are.
        if _write_header(file, len(names), settings.size) != start:
            raise RuntimeError("the header of images.npy changed its length")
        _flush(file)
    index = {
        "version": FORMAT_VERSION,
        "root": str(specimens.root.resolve()),
        "settings": asdict(settings),
        "unreadable": unreadable,
        "names": names,
    }
    with (building / "index.json.part").open("w", encoding="utf-8") as text:
        json.dump(index, text)
        _flush(text)
    os.replace(building / "index.json.part", building / "index.json")
    _sync(building)
    return index


def _decode(
    specimens: Specimens, settings: PackSettings, num_workers: int
) -> Iterator[tuple[str, np.ndarray | UnreadableImage]]:
    """Each name with its square uint8 (3, size, size) or why it has none, in order."""

    def decode(name: str) -> np.ndarray | UnreadableImage:
        try:
            # Twice the size keeps the reduced JPEG indistinguishable after the final, antialiased step.
            image = read_image(specimens.root / name, settings.background, shortest_side=2 * settings.size)
        except UnreadableImage as fault:
            return fault
        return fit(image, settings.size, settings.resize, settings.background)

    waiting: deque[tuple[str, Future[np.ndarray | UnreadableImage]]] = deque()
    names = iter(specimens.names)
    pool = ThreadPoolExecutor(num_workers)
    try:
        # A short queue, so that memory holds a few images however many there are.
        for name in itertools.islice(names, 4 * num_workers):
            waiting.append((name, pool.submit(decode, name)))
        while waiting:
            name, result = waiting.popleft()
            yield name, result.result()
            for following in itertools.islice(names, 1):
                waiting.append((following, pool.submit(decode, following)))
    finally:
        pool.shutdown(cancel_futures=True)


def list_reasons(unreadable: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    listed = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:LISTED_NAMES])
    return listed + (f"; and {len(unreadable) - LISTED_NAMES} more" if len(unreadable) > LISTED_NAMES else "")


def _check_space(specimens: Specimens, settings: PackSettings, cache_dir: Path) -> None:
    needed = len(specimens.names) * CHANNELS * settings.size**2
    free = shutil.disk_usage(cache_dir).free
    if needed > free:
        raise UserError(
            f"cache_dir: {cache_dir} has {free:,} bytes free; {len(specimens.names)} images of {settings.size} px "
            f"need {needed:,}. Set cache_dir (or $PHENOSCAPE_CACHE) to a folder on a larger disk."
        )


def _hold_lock(folder: Path, notice: Notice | None) -> AbstractContextManager[Any]:
    try:
        return _lock(folder).acquire(timeout=0)
    except Timeout:
        if notice is not None:
            notice(f"another process packs the same images into {folder}; waiting for it")
        return _lock(folder).acquire()


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.parent / f"{folder.name}.lock")


def _remove_leftovers(folder: Path) -> None:
    """Remove what builds that died have left: of this folder (whose lock is held), and of others that nobody builds."""
    shutil.rmtree(folder, ignore_errors=True)
    for leftover in folder.parent.glob(".building-packed-*"):
        owner = folder.parent / leftover.name.removeprefix(".building-").rsplit("-", 1)[0]
        if owner == folder:
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        with suppress(Timeout), _lock(owner).acquire(timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_header(file: IO[bytes], count: int, size: int) -> int:
    """Write the array's header for ``count`` images; the position of the first pixel."""
    description = {"descr": "|u1", "fortran_order": False, "shape": (count, CHANNELS, size, size)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.tell()


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
