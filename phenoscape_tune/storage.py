"""Remote storage: a copy of a run's or a search's files under a URL such as s3://bucket/birds.

The local folder stays the truth while something runs: locks and synced appends, which a search's journal needs, are
a file system's and not an object store's. Credentials come from the environment (AWS's variables and profiles) alone.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING

from phenoscape_tune.errors import UserError

if TYPE_CHECKING:  # loading it takes a while, and most runs have no storage
    from pyarrow.fs import FileSystem

log = logging.getLogger(__name__)

WAITS = (1.0, 4.0)  # seconds before an upload is tried for the second and the third time
PATIENCE = 60.0  # seconds that the end of a run waits for what is still under way; of a search, for each file
SLOWEST = 1e6  # bytes a second: a large file has more time at a search's end
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^?]+?)/*(\?.*)?")
_SECRETS = ("access_key", "secret_key", "session_token", "password", "account_key")
_ALWAYS, _OTHER_SIZE, _OTHER_SEAL = "always", "other size", "other seal"  # when a file is uploaded
_END = 64  # bytes at a file's end: of a sealed one, its checksum (files.py)
_KEEP_NOTHING = ("memory", "http", "https", "data")  # schemes of fsspec's that live in a process, or are read only
_PUT_WHOLE = ("s3", "gcs", "abfs")  # an object appears when all of it is there


def is_url(text: str) -> bool:
    """Whether a path is meant for remote storage."""
    return "://" in text


def check_url(url: str) -> str:
    """The URL of a folder on remote storage. Raises ValueError where it is none, or has credentials in it."""
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError("write the URL of a folder, for example s3://bucket/birds")
    if parts[1] in _KEEP_NOTHING:
        raise ValueError(f"{parts[1]}:// keeps no files that are written there; write for example s3://bucket/birds")
    if "@" in parts[2].split("/")[0] or any(f"{name}=" in (parts[3] or "") for name in _SECRETS):
        raise ValueError(
            "holds credentials, which would be written into configurations and logs; leave them to the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )
    return url


def join_url(url: str, *names: str) -> str:
    """The URL of a folder or file below a folder; options after a `?` stay where they belong."""
    folder, mark, options = url.partition("?")
    return "/".join([folder.rstrip("/"), *names]) + mark + options


def split_url(url: str, levels: int) -> tuple[str, str]:
    """The URL of the folder `levels` above a file, and the file's path below it."""
    folder, mark, options = url.partition("?")
    *above, name = folder.rsplit("/", levels)
    return above[0] + mark + options, "/".join([*above[1:], name])


class Storage:
    """A folder on remote storage.

    Args:
        url: what `check_url` lets pass, of any scheme that pyarrow knows, or fsspec with the scheme's own package.

    Raises UserError for a URL that cannot be opened here.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._system, self._root = _open(check_url(url))
        except (ValueError, OSError, ImportError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise UserError(f"storage: {url}: {_first_line(error)}") from error

    def check(self) -> None:
        """Write, read and remove a small file. Raises UserError where that fails."""
        name, content = f".phenoscape_tune-{uuid.uuid4().hex}", b"a probe, removed at once"
        try:
            path = self._path(name)
            with self._system.open_output_stream(path) as file:
                file.write(content)
            with self._system.open_input_stream(path) as file:
                read = file.read()
            self._system.delete_file(path)
        except OSError as error:
            raise UserError(
                f"storage: {self.url}: cannot be written and read ({_first_line(error)}); check the URL, the bucket "
                "and the credentials in the environment, or leave storage out"
            ) from error
        if read != content:
            raise UserError(f"storage: {self.url}: gives back something else than was written; choose another one")

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file to `name` below the folder; nobody sees a part of it. Raises OSError."""
        from pyarrow.fs import LocalFileSystem, copy_files

        target = self._path(name)
        whole = self._system.type_name in _PUT_WHOLE
        aside = target if whole else f"{target}.{uuid.uuid4().hex[:8]}.tmp"
        copy_files(str(source), aside, source_filesystem=LocalFileSystem(), destination_filesystem=self._system)
        if not whole:
            self._system.move(aside, target)

    def download(self, name: str, target: Path) -> bool:
        """Copy the file `name` below the folder to a local one; False where there is none. Raises OSError."""
        from pyarrow.fs import FileType, LocalFileSystem, copy_files

        path = f"{self._root}/{name}"
        if self._system.get_file_info(path).type != FileType.File:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_files(path, str(target), source_filesystem=self._system, destination_filesystem=LocalFileSystem())
        return True

    def remove_folder(self, name: str) -> None:
        """Remove a folder below this one with all that is in it, where it exists. Raises OSError."""
        from pyarrow.fs import FileType

        if self._system.get_file_info(f"{self._root}/{name}").type == FileType.Directory:
            self._system.delete_dir(f"{self._root}/{name}")

    def sizes(self) -> dict[str, int]:
        """The bytes of each file below the folder, by its name. Raises OSError."""
        from pyarrow.fs import FileSelector, FileType

        found = self._system.get_file_info(FileSelector(self._root, allow_not_found=True, recursive=True))
        start = len(self._root) + 1
        return {each.path[start:]: each.size for each in found if each.type == FileType.File}

    def ends_as(self, source: Path, name: str) -> bool:
        """Whether `name` below the folder is as long as a local file and has the same last bytes: of files that are
        sealed with a checksum, whether they are the same. Raises OSError."""
        with source.open("rb") as here, self._system.open_input_file(f"{self._root}/{name}") as there:
            length = here.seek(0, 2)
            if there.size() != length:
                return False
            here.seek(max(0, length - _END))
            there.seek(max(0, length - _END))
            return bool(here.read() == there.read())

    def _path(self, name: str) -> str:
        path = f"{self._root}/{name}"
        if self._system.type_name not in _PUT_WHOLE:  # an object store has no folders to make
            self._system.create_dir(path.rsplit("/", 1)[0], recursive=True)
        return path


def _open(url: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        system, root = FileSystem.from_uri(url)
    except ValueError as error:
        scheme, _, path = url.partition("://")
        if "Unrecognized filesystem" not in str(error):
            raise
        import fsspec

        if scheme not in fsspec.available_protocols():
            raise ValueError(f"the scheme {scheme} is unknown; write s3://, gs://, abfs:// or file://") from None
        system, root = PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme))), path
    return system, str(root).rstrip("/")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


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
                log.info("%s: cannot be listed (%s)", self._storage.url, _first_line(error))
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
        told = _first_line(error)
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
