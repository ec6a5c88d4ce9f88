"""What `--doctor` asks of a folder: whether files are written, flushed, renamed and locked there; room left."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from phenoscape_tune.cli.rows import FAULT, OK, WARNING, Row
from phenoscape_tune.search.ray_folder import check_ray_folder

GIB = 2**30
PROBE_BYTES = 2**22
LITTLE_ROOM_GIB, NO_ROOM_GIB = 10.0, 1.0
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "afs", "glusterfs", "9p", "virtiofs"}
    | {"fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.glusterfs", "fuse.beegfs", "fuse.ceph"}
)
MOUNTS = Path("/proc/self/mounts")


def check_folder_works(name: str, folder: Path, key: str) -> Iterator[Row]:
    """Whether a search can use a folder, which need not exist yet.

    Args:
        key: with which another folder is chosen.
    """
    nearest = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))
    remedy = f"choose another folder by {key}, or make {nearest} writable"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest) as probe:
            problem = try_files(Path(probe))
    except OSError as error:
        # Where it may not even be removed again, the first reason is the one that counts.
        yield Row(name, FAULT, f"{nearest}: cannot be written ({error.strerror or error})", remedy)
        return
    kind = file_system(nearest)
    network = kind in NETWORK
    where = f"{folder} ({kind or 'unknown file system'}{', on the network' if network else ''})"
    if problem:
        yield Row(name, FAULT, f"{where}: {problem[0]}", problem[1].format(key=key))
        return
    yield Row(name, OK, f"{where}: files are written, flushed, renamed and locked")
    if network and key == "PHENOSCAPE_CACHE":
        yield Row(name, WARNING, "packed images are read at random, slowly over a network", f"{key}=a local folder")
    free = shutil.disk_usage(nearest).free / GIB
    if free < LITTLE_ROOM_GIB:
        state = FAULT if free < NO_ROOM_GIB else WARNING
        yield Row(
            f"{name}'s room", state, f"{free:.1f} GiB free in {nearest}", f"free some, or choose another by {key}"
        )
    else:
        yield Row(f"{name}'s room", OK, f"{free:,.0f} GiB free")


def try_files(folder: Path) -> tuple[str, str] | None:
    """What does not work in an existing folder, and the remedy, with `{key}` in it; None where all does."""
    other = "choose a folder on another file system by {key}"
    aside, path = folder / "aside", folder / "file"
    try:
        with aside.open("wb") as file:
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        more = "; ulimit -f unlimited" if error.errno == errno.EFBIG else ""
        return f"{PROBE_BYTES // 2**20} MiB cannot be written and flushed ({error.strerror})", f"{other}{more}"
    try:
        os.replace(aside, path)
    except OSError as error:
        return f"a file cannot be renamed ({error.strerror})", other
    # Each search holds a lock on its folder, and its journal is written under another.
    try:
        with path.open("rb+") as one, path.open("rb+") as two:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
    except OSError as error:
        told = f"files cannot be locked ({error.strerror}); on NFS: mounted without locks"
        return told, "mount it with locks (NFS: option local_lock=none, lockd running), or {key}=a folder elsewhere"
    return "a lock does not keep a second holder out", other


def file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """The kind of the file system that a path lies on, as the system names it; empty where it does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real = Path(os.path.realpath(path))
    found, longest = "", -1
    for fields in (line.split() for line in lines):
        point = Path(fields[1].replace("\\040", " "))
        if (point == real or point in real.parents) and len(point.parts) >= longest:  # of two, the later lies on top
            found, longest = fields[2], len(point.parts)
    return found


def check_temporary_folder() -> Iterator[Row]:
    """The folder of Ray's sockets and of temporary files."""
    folder = Path(check_ray_folder())
    yield from check_folder_works("temporary folder", folder, "RAY_TMPDIR")
