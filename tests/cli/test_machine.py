from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from phenoscape_tune.cli import machine
from phenoscape_tune.cli.rows import FAULT, OK, WARNING


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_control_groups_grant(files: dict[str, str], granted: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.granted_cores(tmp_path) == granted


def test_fewer_granted_cores_than_there_are_is_a_warning_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (row,) = machine.check_cores(tmp_path)
    assert row.state == WARNING and "grants the time of 0.5" in row.found and "--concurrent 1" in row.remedy
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (row,) = machine.check_cores(tmp_path)
    assert row.state == OK and str(len(os.sched_getaffinity(0))) in row.found


@pytest.mark.parametrize(("limit", "state"), [("max\n", OK), (f"{64 * 2**30}\n", OK), (f"{2 * 2**30}\n", WARNING)])
def test_memory_is_what_is_free_and_what_is_allowed(limit: str, state: str, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    (row,) = machine.check_memory(tmp_path, tmp_path / "meminfo")
    assert row.state == state and row.found.startswith("16.0 GiB free")


def test_memory_that_the_system_does_not_tell_is_no_traceback(tmp_path: Path) -> None:
    (row,) = machine.check_memory(tmp_path, tmp_path / "none")
    assert row.state == WARNING


def test_no_shared_memory_is_a_fault(tmp_path: Path) -> None:
    assert machine.check_shared_memory(tmp_path / "none")[0].state == FAULT
    assert "GiB free" in machine.check_shared_memory()[0].found


def test_a_low_limit_of_open_files_is_told_with_the_command() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        rows = machine.check_open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert rows[0].state == WARNING and rows[0].remedy.startswith("ulimit -n ")
