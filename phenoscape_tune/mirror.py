"""The copy of a run's or a search's files on remote storage, kept up in the background.

The local folder stays the truth while something runs: locks and synced appends, which a search's journal needs, are
a file system's and not an object store's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType

from phenoscape_tune.storage import Storage, first_line

log = logging.getLogger(__name__)

WAITS = (1.0, 4.0)  # seconds before an upload is tried for the second and the third time
PATIENCE = 60.0  # seconds that the end of a run waits for what is still under way; of a search, for each file
SLOWEST = 1e6  # bytes a second: a large file has more time at a search's end
_ALWAYS, _OTHER_SIZE, _OTHER_SEAL = "always", "other size", "other seal"  # when a file is uploaded


class Mirror:
    """Uploads files of a local folder in the background, each as it is when its turn comes; removals come after them.

    A file that changes while an older version of it waits is uploaded once; versions never overtake each other. An
    upload that fails is tried three times, then said once, and is never an error: the local file is what counts.

    Args:
        storage: None: nothing is uploaded.
        folder: the local folder; a file has the same name below it and below the storage's folder.
        say: is told a line when an upload has failed for good, once, and at the end what the storage lacks.
        to_the_end: `close` waits as long as files arrive; else a minute in all.
    """

    def __init__(
        self,
        storage: Storage | None,
        folder: Path,
        say: Callable[[str], None] = log.warning,
        to_the_end: bool = False,
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._say = say
        self._to_the_end = to_the_end
        # In the order of their first mention; of an upload, when it may be left out.
        self._uploads: dict[str, str] = {}
        self._removals: dict[str, None] = {}
        self._current: str | None = None  # the upload that is under way
        self._until = 0.0  # when what is under way has had its time, by the monotonic clock
        self._held: dict[str, int] | None = None  # the storage's files with their sizes, once that was asked
        self._failed: dict[str, str] = {}
        self._said = False
        self._ends = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        if storage is not None:
            self._thread.start()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def put(self, *names: str) -> None:
        """Have files uploaded, as they are from now on."""
        self._ask(names, _ALWAYS)

    def put_folder(self, name: str) -> None:
        """Have all files of a folder uploaded."""
        self.put(*self._files(name))

    def put_lacking(self, *names: str, sealed: bool = False) -> None:
        """Have those files uploaded that the storage does not have in the same size, as all that wrote to them have
        ended; where they are `sealed`, with the same checksum at their end."""
        self._ask(names, _OTHER_SEAL if sealed else _OTHER_SIZE)

    def put_folder_lacking(self, name: str) -> None:
        """As `put_lacking`, of all files of a folder."""
        self.put_lacking(*self._files(name))

    def _files(self, name: str) -> list[str]:
        files = (path for path in sorted((self._folder / name).rglob("*")) if path.is_file())
        return [path.relative_to(self._folder).as_posix() for path in files]

    def _ask(self, names: Iterable[str], when: str) -> None:
        if self._storage is not None:
            with self._changed:
                for name in names:
                    self._uploads[name] = _ALWAYS if self._uploads.get(name) == _ALWAYS else when
                    for folder in PurePosixPath(name).parents:  # what is asked last counts
                        self._removals.pop(str(folder), None)
                self._changed.notify()

    def remove_folder(self, name: str) -> None:
        """Have what was uploaded of a folder removed, after all uploads; it stays where that fails."""
        if self._storage is not None:
            with self._changed:
                for waiting in [each for each in self._uploads if each.startswith(f"{name}/")]:
                    del self._uploads[waiting]
                self._removals[name] = None
                self._changed.notify()

    def close(self) -> None:
        """Wait for what is pending, and say what the storage lacks."""
        if self._storage is None:
            return
        with self._changed:
            self._ends = True
            self._changed.notify()
        until = time.monotonic() + PATIENCE
        while self._thread.is_alive() and time.monotonic() < (max(until, self._until) if self._to_the_end else until):
            self._thread.join(0.1)
        with self._changed:
            under_way = [] if self._current is None else [self._current]
            missing = sorted({*self._failed, *self._uploads, *under_way})
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            self._say(f"{self._storage.url}: lacks {', '.join(missing[:3])}{more}; they are in {self._folder}")

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._uploads and not self._removals and not self._ends:
                    self._changed.wait()
                if self._uploads:
                    name = self._current = next(iter(self._uploads))
                    what, do = "upload", partial(self._upload, name, self._uploads.pop(name))
                elif self._removals:
                    name = next(iter(self._removals))
                    del self._removals[name]
                    what, do = "removal", partial(self._remove, name)
                else:
                    return
            path = self._folder / name
            size = path.stat().st_size if path.is_file() else 0
            self._until = time.monotonic() + PATIENCE + size / SLOWEST
            self._try(what, name, do)
            with self._changed:
                self._current = None

    def _upload(self, name: str, when: str) -> None:
        assert self._storage is not None
        path = self._folder / name
        alike = when != _ALWAYS and self._list().get(name) == path.stat().st_size
        if not alike or (when == _OTHER_SEAL and not self._storage.ends_as(path, name)):
            self._storage.upload(path, name)

    def _remove(self, name: str) -> None:
        assert self._storage is not None
        # A search's end asks for all once more, as a trial that was cut off may have been uploading; one look tells.
        if not self._ends or not (held := self._list()) or any(each.startswith(f"{name}/") for each in held):
            self._storage.remove_folder(name)

    def _list(self) -> dict[str, int]:
        """What the storage has, or had at the first question; nothing where it does not tell."""
        assert self._storage is not None
        if self._held is None:
            try:
                self._held = self._storage.sizes()
            except OSError as error:
                log.info("%s: cannot be listed (%s)", self._storage.url, first_line(error))
                self._held = {}
        return self._held

    def _try(self, what: str, name: str, do: Callable[[], None]) -> None:
        assert self._storage is not None
        # Once it is known to be out of reach, one try an epoch is enough, and at the end one for all.
        for wait in (*WAITS, None) if not self._said else (None,):
            try:
                do()
                self._failed.pop(name, None)
                return
            except FileNotFoundError:  # the search removed it meanwhile
                if not (self._folder / name).exists():
                    return
                error: Exception = FileNotFoundError(name)
            except Exception as fault:  # of any file system's package: an upload must not end a training
                error = fault
            if wait is None:
                break
            time.sleep(wait)
        told = first_line(error)
        if what == "upload":
            self._failed[name] = told
        if not self._said:
            self._said = True
            self._say(f"{self._storage.url}: {name}: {what} failed ({told}); training goes on without")
        elif self._ends:
            with self._changed:
                self._failed.update(dict.fromkeys(self._uploads, told))
                self._uploads.clear()
                self._removals.clear()
