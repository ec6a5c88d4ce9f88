"""Files that are whole or absent, or that tell that they are not; disks that are full."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from phenoscape_tune.errors import NoSpaceLeft

_SEAL = b"phenoscape_tune sha256:"  # then 32 bytes, at a sealed file's end
_SEAL_LENGTH = len(_SEAL) + 32
NO_SEAL = "it has no checksum at its end"
_CHUNK = 2**20


def write_whole(path: Path, text: str) -> None:
    """Write a small text file aside and rename it: a reader, or a kill in the middle, never sees a part.

    Raises NoSpaceLeft where the disk is full; the file is as it was then.
    """
    aside = path.with_name(f".{path.name}.tmp")
    with naming_full_disk(path.parent), removed_on_failure(aside):
        with aside.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)


@contextmanager
def removed_on_failure(*files: Path) -> Iterator[None]:
    """Remove what was begun where it cannot be ended."""
    try:
        yield
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an exception says that a disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Raise NoSpaceLeft that names `folder`, which is written to within, where its disk is full."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise NoSpaceLeft(f"No space left on the disk of {folder}") from error


class SealedWriter:
    """Passes on what is written to a file, and ends it with a checksum of all of it.

    zip's own checksums, in which torch keeps tensors, do not cover its headers: single flipped bits there move a
    tensor's start, and are read without complaint as other values.

    Attributes:
        error: what writing raised. torch hides it behind an error of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self._digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()

    def seal(self) -> None:
        """Write the checksum, and all of the file to the disk."""
        self._file.write(_SEAL + self._digest.digest())
        self._file.flush()
        os.fsync(self._file.fileno())


def seal_fault(file: BinaryIO) -> str | None:
    """What is wrong with a sealed file, open for reading; None where it is whole. Leaves it at its start."""
    length = file.seek(0, os.SEEK_END) - _SEAL_LENGTH
    file.seek(max(0, length))
    seal = file.read()
    file.seek(0)
    if length < 0 or not seal.startswith(_SEAL):
        return NO_SEAL
    digest, left = hashlib.sha256(), length
    while left and (chunk := file.read(min(left, _CHUNK))):
        digest.update(chunk)
        left -= len(chunk)
    file.seek(0)
    return None if digest.digest() == seal[len(_SEAL) :] else "its content does not match its checksum"
