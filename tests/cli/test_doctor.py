from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from phenoscape_tune.cli import doctor
from phenoscape_tune.cli.request import SearchRequest, request_of
from phenoscape_tune.cli.rows import FAULT, OK, WARNING, Row
from phenoscape_tune.cli.tune import build_parser
from phenoscape_tune.data import envi

ROOT = Path(__file__).parents[2]


def asked_by(*arguments: str) -> SearchRequest:
    return request_of(SearchRequest, build_parser().parse_intermixed_args(["--doctor", *arguments]))


def rows_of(*arguments: object) -> dict[str, Row]:
    """The rows of the quick checks: those that start no process."""
    asked = asked_by(*map(str, arguments))
    slow = {"imports", "Ray"}
    return {row.name: row for check in doctor.checks(asked) if check.name not in slow for row in doctor.answer(check)}


def test_images_are_counted_and_tried(birds: Path, tmp_path: Path) -> None:
    rows = rows_of("--out", tmp_path / "x", f"data_dir={birds}")
    assert rows["images"].found.startswith("72 rgb images") and "3 class" in rows["images"].found
    assert rows["decoding"].state == OK
    assert not (tmp_path / "x").exists()
    assert {row.area for row in rows.values()} == {"installation", "devices", "storage", "data"}


def test_of_a_cube_a_few_bands_are_read(cubes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_channels(path: Path, channels: Sequence[int] | None = None) -> np.ndarray:
        asked.append(channels)
        return own(path, channels)

    own = envi.read_channels
    monkeypatch.setattr(envi, "read_channels", read_channels)
    assert rows_of(f"data_dir={cubes}")["decoding"].state == OK
    assert asked == [[0, 10, 19]] * 32


def test_unreadable_images_are_named(tmp_path: Path, birds: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "good.jpg").write_bytes((birds / "crow" / "00.jpg").read_bytes())
    (data / "bad.jpg").write_bytes(b"no image")
    row = rows_of(f"data_dir={data}")["decoding"]
    assert row.state == WARNING and "'bad.jpg'" in row.found and "check_data.py" in row.remedy


@pytest.mark.parametrize(
    ("argument", "name", "told"),
    [
        ("data_dir=/no/such/folder", "images", "/no/such/folder does not exist"),
        ("temprature=0.5", "configuration", "temperature"),
    ],
)
def test_a_fault_of_the_input_is_a_row(argument: str, name: str, told: str) -> None:
    row = rows_of(argument)[name]
    assert row.state == FAULT and told in row.found and "\n" not in row.found


def test_a_check_that_raises_or_hangs_is_a_row_and_the_rows_before_it_stay() -> None:
    def raises() -> list[Row]:
        raise ZeroDivisionError("by zero")

    (row,) = doctor.answer(doctor.Check("devices", "cores", raises))
    assert row == Row("cores", FAULT, "ZeroDivisionError: by zero", "mend what the message names", "devices")

    def hangs():  # type: ignore[no-untyped-def]
        yield Row("first", OK, "well")
        time.sleep(60)

    begun = time.monotonic()
    first, last = doctor.answer(doctor.Check("storage", "output folder", hangs, seconds=0.5))
    assert first.state == OK and last.state == FAULT and "no answer within 0.5 s" in last.found
    assert time.monotonic() - begun < 10


def test_remote_storage_is_written_and_read_where_the_configuration_names_it(tmp_path: Path) -> None:
    assert "remote storage" not in rows_of()
    there = tmp_path / "there"
    row = rows_of(f"storage=file://{there}")["remote storage"]
    assert row.state == OK and str(there) in row.found and row.area == "storage"
    assert not list(there.iterdir())
    (tmp_path / "file").touch()
    row = rows_of(f"storage=file://{tmp_path}/file/below")["remote storage"]
    assert row.state == FAULT and "cannot be written and read" in row.found and "leave storage out" in row.remedy
    assert "\n" not in row.found


def test_remote_storage_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what it is sent, and never answers
        url = f"s3://bucket/x?scheme=http&region=x&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        begun = time.monotonic()
        (row,) = doctor._check_remote_storage(url, seconds=1)
    assert row.state == FAULT and "no answer within 1 s" in row.found and "leave storage out" in row.remedy
    assert time.monotonic() - begun < 20


def test_an_address_is_looked_at_instead_of_a_ray_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = asked_by("--address", "127.0.0.1:1")
    assert [check.name for check in doctor.checks(asked) if check.area == "cluster"] == ["cluster"]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    row = rows_of()["cluster"]
    assert row.state == FAULT and "nobody answers there" in row.found and row.area == "cluster"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), "--doctor", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=500, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_finds_this_machine_well_and_says_only_what_is_not_when_quiet(birds: Path, tmp_path: Path) -> None:
    done = run("--out", tmp_path / "x", f"data_dir={birds}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("python", "packages", "imports", "GPUs", "cores", "memory", "output folder", "images", "Ray"):
        assert f" {name} " in done.stdout
    assert "no faults" in done.stdout  # Ray was started too


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_tells_real_faults_without_a_traceback(tmp_path: Path) -> None:
    # A missing package, as every process of the command sees it.
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "timm.py").write_text("raise ModuleNotFoundError(\"No module named 'timm'\")")
    long_folder = tmp_path / ("x" * 60)
    long_folder.mkdir()
    done = run("--quiet", "--out", "/proc/search", PYTHONPATH=str(blocked), TMPDIR=str(long_folder), RAY_ADDRESS="")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "No module named 'timm'" in done.stdout
    assert "/proc: cannot be written" in done.stdout
    assert "Ray's sockets leave room for 39" in done.stdout and "RAY_TMPDIR=/tmp" in done.stdout
    assert all(line[:8].strip() in ("fault", "warning", "") for line in done.stdout.splitlines()[:-1])
