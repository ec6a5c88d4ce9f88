"""Remote storage: the files below a URL such as s3://bucket/birds.

Credentials come from the environment (AWS's variables and profiles) alone.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.errors import UserError

if TYPE_CHECKING:  # loading it takes a while, and most runs have no storage
    from pyarrow.fs import FileSystem

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^?]+?)/*(\?.*)?")
_SECRETS = ("access_key", "secret_key", "session_token", "password", "account_key")
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
            raise UserError(
                f"storage: {url}: {first_line(error)}; check the URL and the network, or leave storage out"
            ) from error

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
                f"storage: {self.url}: cannot be written and read ({first_line(error)}); check the URL, the bucket "
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


def first_line(error: BaseException) -> str:
    """What a fault of a storage says, shortened to one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
