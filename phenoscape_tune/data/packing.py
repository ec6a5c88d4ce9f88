"""Builds a packed folder: decodes every image once, under a lock, aside, and renames what is whole."""

import errno
import hashlib
import json
import os
import shutil
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from phenoscape_tune.data.decoding import Notice, Progress, decode_all, refuse_unreadable
from phenoscape_tune.data.layout import UnreadableImage
from phenoscape_tune.data.listing import files_of
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.data.survey import answer
from phenoscape_tune.errors import UserError

FORMAT_VERSION = 2
ALL_MAY_READ = 0o444
_quoted = json.encoder.encode_basestring_ascii  # of a JSON text, several times as fast as json.dumps


class NoRoom(UserError):
    """The packed images do not fit on the disk of the cache folder."""


def key_of(specimens: Specimens, request: Request) -> str:
    """16 hexadecimal digits that change whenever the packed pixels could."""
    header = [FORMAT_VERSION, str(specimens.root.resolve()), asdict(request)]
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    root, several = os.path.join(specimens.root, ""), specimens.modality == "hyperspectral"
    for name in specimens.names:
        # Of a million pictures every microsecond counts: paths are made only where there may be several files.
        for file in map(str, files_of(Path(root + name), "hyperspectral")) if several else (root + name,):
            digest.update(_state_of(file, name))
    return digest.hexdigest()[:16]


def _state_of(file: str, name: str) -> bytes:
    """A JSON list: name of the image, the file's own, its size, time and whether it can be read."""
    try:
        status = os.stat(file)
        # A file whose permissions were mended has the same time, and is to be tried again.
        readable = status.st_mode & ALL_MAY_READ == ALL_MAY_READ or os.access(file, os.R_OK)
        state = f"{status.st_size}, {status.st_mtime_ns}, {'true' if readable else 'false'}"
    except OSError:
        state = "-1, -1, false"
    return f"[{_quoted(name)}, {_quoted(file.rpartition('/')[2])}, {state}]".encode()


def read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a whole packed folder; None where it is missing, or its array is not of the length it should be."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        with (folder / "images.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            length = file.tell() + int(np.prod(shape)) * dtype.itemsize
            whole = os.fstat(file.fileno()).st_size == length and shape[0] == len(index["names"])
        return index if whole and index["version"] == FORMAT_VERSION else None
    except (OSError, ValueError, KeyError):
        return None


def build_packed(
    specimens: Specimens,
    request: Request,
    folder: Path,
    num_workers: int,
    progress: Progress | None,
    notice: Notice | None,
) -> dict[str, Any]:
    """Build ``folder`` unless another process does so first; its index, as ``read_index`` returns it.

    Raises NoRoom where the disk has too little space, UserError where no image is readable or the cache folder cannot
    be written.
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
            recipe = answer(specimens, request, num_workers, notice)
            _check_space(specimens, recipe, cache_dir)
            building = cache_dir / f".building-{folder.name}-{os.getpid()}"
            building.mkdir()
            index = _build(specimens, recipe, building, num_workers, progress)
            os.replace(building, folder)
            _sync(cache_dir)
            return index
    except OSError as fault:
        full = fault.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "has no space left" if full else f"cannot be written ({fault.strerror or fault})"
        raise (NoRoom if full else UserError)(
            f"cache_dir: {cache_dir} {what}. Set cache_dir (or $PHENOSCAPE_CACHE) to a folder on a disk with room."
        ) from fault
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


def _build(
    specimens: Specimens, recipe: Recipe, building: Path, num_workers: int, progress: Progress | None
) -> dict[str, Any]:
    """Decode every image into ``building``; its index, also written there."""
    names: list[str] = []
    unreadable: list[tuple[str, str]] = []
    # Written in sequence and not through a memory map, where a full disk would kill the process instead of raising.
    with (building / "images.npy").open("wb") as file:
        start = _write_header(file, len(specimens.names), recipe)
        for done, (name, image) in enumerate(decode_all(specimens, recipe, num_workers), start=1):
            if isinstance(image, UnreadableImage):
                unreadable.append((name, str(image)))
            else:
                names.append(name)
                file.write(image.tobytes())
            if progress is not None:
                progress(done, len(specimens.names))
        if not names:
            raise refuse_unreadable(tuple(unreadable), specimens)
        file.seek(0)
        # NumPy pads the header for a first axis that grows or shrinks, so the pixels stay where they are.
        if _write_header(file, len(names), recipe) != start:
            raise RuntimeError("the header of images.npy changed its length")
        _flush(file)
    index = {
        "version": FORMAT_VERSION,
        "root": str(specimens.root.resolve()),
        "recipe": recipe.to_mapping(),
        "unreadable": unreadable,
        "names": names,
    }
    with (building / "index.json.part").open("w", encoding="utf-8") as text:
        json.dump(index, text)
        _flush(text)
    os.replace(building / "index.json.part", building / "index.json")
    _sync(building)
    return index


def _check_space(specimens: Specimens, recipe: Recipe, cache_dir: Path) -> None:
    needed = len(specimens.names) * recipe.nbytes
    free = shutil.disk_usage(cache_dir).free
    if needed > free:
        raise NoRoom(
            f"cache_dir: {cache_dir} has {free:,} bytes free; {len(specimens.names)} images of "
            f"{len(recipe.channels)} channels at {recipe.square.size} px need {needed:,}. "
            "Set cache_dir (or $PHENOSCAPE_CACHE) to a folder on a larger disk."
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


def _write_header(file: IO[bytes], count: int, recipe: Recipe) -> int:
    """Write the array's header for ``count`` images; the position of the first pixel."""
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(recipe.dtype)),
        "fortran_order": False,
        "shape": (count, *recipe.shape),
    }
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
