from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.cli import folder_checks
from phenoscape_tune.cli.rows import FAULT, OK, WARNING


def test_a_folder_that_works_need_not_exist_and_is_left_as_it_was(tmp_path: Path) -> None:
    rows = list(folder_checks.check_folder_works("output folder", tmp_path / "a" / "b", "--out"))
    assert rows[0].state == OK and "written, flushed, renamed and locked" in rows[0].found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_nothing_can_be_written_is_a_fault() -> None:
    (row,) = folder_checks.check_folder_works("output folder", Path("/proc/search"), "--out")  # not even by root
    assert row.state == FAULT and "/proc: cannot be written" in row.found and "--out" in row.remedy


def test_a_tiny_file_size_limit_is_a_fault_that_names_the_limit(tmp_path: Path) -> None:
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
        "from pathlib import Path; from phenoscape_tune.cli.folder_checks import check_folder_works;"
        "from phenoscape_tune.cli.machine import check_open_files;"
        "[print(row.state, row.found, row.remedy) for row in"
        " [*check_folder_works('output folder', Path(sys.argv[1]), '--out'), *check_open_files()]]"
    )
    printed = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert "fault" in printed and "4 MiB cannot be written and flushed (File too large)" in printed
    assert "files of at most 65,536 bytes may be written" in printed and "ulimit -f unlimited" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder_checks.os, "fsync", full)
    rows = list(folder_checks.check_folder_works("output folder", tmp_path, "--out"))
    assert rows[0].state == FAULT and "No space left on device" in rows[0].found


def test_a_file_system_without_locks_is_a_fault_that_tells_how_to_mount_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_checks.fcntl, "flock", refuse)
    rows = list(folder_checks.check_folder_works("output folder", tmp_path, "--out"))
    assert rows[0].state == FAULT and "cannot be locked (No locks available)" in rows[0].found
    assert "lockd" in rows[0].remedy


def test_a_lock_that_lets_everyone_in_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_checks.fcntl, "flock", lambda file, how: None)
    assert folder_checks.try_files(tmp_path) is not None
    monkeypatch.undo()
    assert fcntl.flock is folder_checks.fcntl.flock and folder_checks.try_files(tmp_path) is None


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/vda / ext4 rw 0 0\nserver:/x /home/some\\040one nfs4 rw 0 0\ntmpfs /home/some\\040one/t tmpfs rw 0 0\n"
    )
    for path, kind in {
        "/home/some one/outputs": "nfs4",
        "/home/some one/t/x": "tmpfs",
        "/home/someone": "ext4",
    }.items():
        assert folder_checks.file_system(Path(path), mounts) == kind
    assert folder_checks.file_system(tmp_path) != ""
    assert folder_checks.file_system(tmp_path, tmp_path / "none") == ""


def test_a_cache_on_a_network_is_a_warning_and_outputs_there_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_checks, "file_system", lambda path: "nfs4")
    cache = list(folder_checks.check_folder_works("cache folder", tmp_path, "PHENOSCAPE_CACHE"))
    assert any(row.state == WARNING and "local folder" in row.remedy for row in cache)
    outputs = list(folder_checks.check_folder_works("output folder", tmp_path, "--out"))
    assert outputs[0].state == OK and "nfs4, on the network" in outputs[0].found
    assert not any("local folder" in row.remedy for row in outputs)


@pytest.mark.parametrize(("gib", "state"), [(0.5, FAULT), (5, WARNING), (500, OK)])
def test_little_room_is_told(gib: float, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = folder_checks.shutil.disk_usage(tmp_path)._replace(free=int(gib * 2**30))
    monkeypatch.setattr(folder_checks.shutil, "disk_usage", lambda path: usage)
    assert list(folder_checks.check_folder_works("output folder", tmp_path, "--out"))[1].state == state
