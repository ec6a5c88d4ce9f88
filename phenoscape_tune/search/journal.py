"""The file of a search's journal: appended to by one search at a time, whole lines only.

What stands in it is Optuna's; here is what a full disk, a power cut or a kill may do to it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend

from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.files import naming_full_disk

log = logging.getLogger(__name__)


class JournalLock:
    """Lock of the journal that the system gives back when its holder dies.

    Optuna's own is a link that a killed process leaves behind, and which holds up the next one for 30 s.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


class Journal(JournalFileBackend):
    """The journal's file; a write that a full disk cuts off is taken back, for the next would fuse with it."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=JournalLock(path))  # type: ignore[arg-type]
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        whole = self._path.stat().st_size
        try:
            with naming_full_disk(self._path.parent):
                super().append_logs(logs)
        except NoSpaceLeft:
            os.truncate(self._path, whole)  # a search is its journal's only writer
            raise


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end (full disk, power cut): the next would fuse with it."""
    if not path.exists():
        return
    with FileLock(f"{path}.lock"), path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        # Optuna passes over a last line that is no JSON, and no longer once another follows it.
        while whole and not _is_json(content[content.rfind(b"\n", 0, whole - 1) + 1 : whole]):
            whole = content.rfind(b"\n", 0, whole - 1) + 1
        if whole < len(content):
            log.warning("%s: dropped a torn last line of %d bytes", path, len(content) - whole)
            file.truncate(whole)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
