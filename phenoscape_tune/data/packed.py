"""Decode once: a memory-mapped array of small images, shared by every trial of a node.

A packed folder is either whole or not there: it is built aside under a lock and renamed, its index written last.
"""

import getpass
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from phenoscape_tune.data.packing import (
    FORMAT_VERSION,
    Notice,
    PackSettings,
    Progress,
    build_packed,
    list_reasons,
    read_index,
)
from phenoscape_tune.data.readers import UnreadableImage, image_size
from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.errors import UserError

__all__ = ["PackSettings", "PackedImages", "choose_size", "default_cache_dir", "pack"]

SMALLEST_SIZE = 8
HEADER_READERS = 8


@dataclass(frozen=True)
class PackedImages:
    """N decoded images and the specimens that they show, in the same order."""

    images: np.ndarray
    """uint8 (N, 3, size, size), memory-mapped, read-only."""
    specimens: Specimens
    """The N readable ones."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of each image that was left out."""
    folder: Path
    """Where the array lies."""


def choose_size(specimens: Specimens, input_size: int) -> int:
    """Side of the packed squares in pixels: 8/7 of ``input_size``, so that a crop has room, as far as images have it.

    Never more than the longest side of all images (small images are not enlarged), never less than 8. Headers are
    read only until one image is large enough; unreadable ones are passed over.
    """
    wanted = round(8 / 7 * input_size)
    longest = 0
    with ThreadPoolExecutor(HEADER_READERS) as pool:
        for chunk in _chunks(specimens.names, 32 * HEADER_READERS):
            longest = max(longest, *pool.map(lambda name: _longest_side(specimens.root / name), chunk))
            if longest >= wanted:
                break
    return max(SMALLEST_SIZE, min(wanted, longest or wanted))


def pack(
    specimens: Specimens,
    settings: PackSettings,
    cache_dir: Path,
    *,
    num_workers: int,
    max_unreadable: float,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> PackedImages:
    """The specimens' images as one memory-mapped array below ``cache_dir``; decoded only where it is not there yet.

    What is packed depends on the folder, each file's name, size and time, and the settings; labels and groups are the
    caller's and cost no rebuild. Processes that ask at the same time build once. ``num_workers`` threads decode (at
    least one); ``progress`` gets (done, total); ``notice`` gets one line for the user at a time. ``max_unreadable`` is
    the share (0..1) of unreadable images up to which they are left out; it is judged anew at each call.

    Raises UserError where more are unreadable, none is readable, the disk has too little space or ``cache_dir`` cannot
    be written.
    """
    key = _key(specimens, settings)
    folder = Path(cache_dir).expanduser() / f"packed-{key}"
    index = read_index(folder)
    if index is None:
        index = build_packed(specimens, settings, folder, max(1, num_workers), progress, notice)
    unreadable = tuple((str(name), str(reason)) for name, reason in index["unreadable"])
    _judge_unreadable(unreadable, specimens, max_unreadable, notice)
    left_out = {name for name, _ in unreadable}
    return PackedImages(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        specimens=specimens.keep(i for i, name in enumerate(specimens.names) if name not in left_out),
        unreadable=unreadable,
        folder=folder,
    )


def default_cache_dir() -> Path:
    """$PHENOSCAPE_CACHE as it stands; else the user's cache folder, or one of their own in the temporary folder.

    The folder need not exist yet. An explicit $PHENOSCAPE_CACHE is never replaced: ``pack`` says where it fails.
    """
    explicit = os.environ.get("PHENOSCAPE_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    with suppress(OSError, RuntimeError):  # no home folder is a RuntimeError
        preferred = (Path(base) if base else Path.home() / ".cache") / "phenoscape_tune"
        preferred.mkdir(parents=True, exist_ok=True)
        if os.access(preferred, os.W_OK | os.X_OK):
            return preferred
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"phenoscape_tune-{user}"


def _key(specimens: Specimens, settings: PackSettings) -> str:
    """16 hexadecimal digits that change whenever the packed pixels could."""
    digest = hashlib.sha256()
    header = [FORMAT_VERSION, str(specimens.root.resolve()), asdict(settings)]
    digest.update(json.dumps(header, sort_keys=True).encode())
    for name in specimens.names:
        path = specimens.root / name
        try:
            status = path.stat()
            # A file whose permissions were mended has the same time, and is to be tried again.
            state = [name, status.st_size, status.st_mtime_ns, os.access(path, os.R_OK)]
        except OSError:
            state = [name, -1, -1, False]
        digest.update(json.dumps(state).encode())
    return digest.hexdigest()[:16]


def _judge_unreadable(
    unreadable: tuple[tuple[str, str], ...], specimens: Specimens, max_unreadable: float, notice: Notice | None
) -> None:
    if not unreadable:
        return
    total = len(specimens.names)
    share = len(unreadable) / total
    counted = f"{len(unreadable)} of {total} images in {specimens.root} cannot be read"
    if share > max_unreadable:
        raise UserError(
            f"data_dir: {counted} ({share:.1%}; max_unreadable: {max_unreadable:g} allows {max_unreadable:.1%}): "
            f"{list_reasons(unreadable)}. Repair or remove them, or raise max_unreadable."
        )
    if notice is not None:
        notice(f"{counted} and are left out: {list_reasons(unreadable)}")


def _longest_side(path: Path) -> int:
    try:
        return max(image_size(path))
    except UnreadableImage:
        return 0


def _chunks(names: tuple[str, ...], length: int) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(names), length):
        yield names[start : start + length]
