"""Decode once: a memory-mapped array of small images, shared by every trial of a node.

A packed folder is either whole or not there: it is built aside under a lock and renamed, its index written last.
"""

import getpass
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from phenoscape_tune.data.decoding import Notice, Progress, judge_unreadable
from phenoscape_tune.data.images import Images
from phenoscape_tune.data.packing import build_packed, key_of, read_index
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.specimens import Specimens


def pack(
    specimens: Specimens,
    request: Request,
    cache_dir: Path,
    *,
    num_workers: int,
    max_unreadable: float,
    progress: Progress | None = None,
    notice: Notice | None = None,
) -> Images:
    """The specimens' images as one memory-mapped array below ``cache_dir``; decoded only where it is not there yet.

    What is packed depends on the folder, each file's name, size and time, and what is requested; labels and groups are
    the caller's and cost no rebuild, but where percentiles are taken of the training part, which follows from them.
    Processes that ask at the same time build once. ``num_workers`` threads decode (at least one); ``progress`` gets
    (done, total); ``notice`` gets one line for the user at a time. ``max_unreadable`` is the share (0..1) of unreadable
    images up to which they are left out; it is judged anew at each call.

    Raises NoRoom where the disk has too little space, UserError where more are unreadable, none is readable or
    ``cache_dir`` cannot be written.
    """
    key = key_of(specimens, request)
    folder = Path(cache_dir).expanduser() / f"packed-{key}"
    index = read_index(folder)
    if index is None:
        index = build_packed(specimens, request, folder, max(1, num_workers), progress, notice)
    unreadable = tuple((str(name), str(reason)) for name, reason in index["unreadable"])
    told = judge_unreadable(unreadable, specimens, max_unreadable)
    if told and notice is not None:
        notice(told)
    pixels = np.load(folder / "images.npy", mmap_mode="r")
    return Images(pixels, specimens.readable(unreadable), unreadable, folder, Recipe.from_mapping(index["recipe"]))


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
