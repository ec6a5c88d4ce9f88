from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.cli import packages
from phenoscape_tune.cli.rows import FAULT, OK, WARNING


def test_the_packages_of_this_environment_are_as_required() -> None:
    (row,) = packages.check_packages()
    assert row.state == OK and row.found.endswith("as required")
    assert packages.check_python()[0].state == OK


def test_a_missing_and_an_old_package_are_faults_with_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        packages.OURS: ["no-such-package>=2", "numpy>=900", "pillow; extra == 'dev'", "scipy; python_version < '3'"]
    }
    monkeypatch.setattr(packages, "requires", lambda name: wanted.get(name, []))
    rows = packages.check_packages()
    assert [(row.name, row.state) for row in rows] == [("no-such-package", FAULT), ("numpy", FAULT)]
    assert "is not installed; needed: no-such-package>=2" in rows[0].found
    assert "needed: numpy>=900" in rows[1].found
    assert "constraints.txt" in rows[0].remedy


def test_a_torchvision_of_another_torch_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {packages.OURS: [], "torchvision": ["numpy", "torch==1.0.0"]}
    monkeypatch.setattr(packages, "requires", lambda name: wanted[name])
    (row,) = packages.check_packages()
    assert row.state == FAULT and "torchvision is built for torch==1.0.0" in row.found


def test_an_import_that_fails_is_told_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a package that is missing, or whose shared library is: the import itself raises, in a process of its own.
    (tmp_path / "broken_one.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "IMPORTED", ("json", "broken_one", "missing_one"))
    rows = list(packages.check_imports())
    assert [(row.name, row.state) for row in rows] == [
        ("import broken_one", FAULT), ("import missing_one", FAULT), ("imports", OK)
    ]  # fmt: skip
    assert "libcudart.so.12: cannot open shared object file" in rows[0].found
    assert "No module named 'missing_one'" in rows[1].found


@pytest.mark.parametrize(
    ("code", "told"),
    [("import os; os.abort()", "exit code -6"), ("import time; time.sleep(60)", "no end within 5 s")],
)
def test_an_import_that_crashes_or_hangs_is_a_row(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_one.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(packages, "IMPORTED", ("json", "bad_one"))
    rows = list(packages.check_imports(seconds=5))
    assert rows[0].name == "import bad_one" and rows[0].state == FAULT and told in rows[0].found
    assert rows[1].name == "imports"


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); print('begun', flush=True); time.sleep(60)"
    )
    begun = time.monotonic()
    ended, output, _ = packages.run_apart([sys.executable, "-c", code], 3)
    assert ended is None and output == "begun\n" and time.monotonic() - begun < 20
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    for _ in range(50):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("its child runs on")


GOOD = {"cuda": "12.8", "count": 1, "error": "", "bf16": [True], "warnings": []}


@pytest.mark.parametrize(
    ("cards", "change", "state", "told"),
    [
        ([], {"count": 0, "bf16": []}, OK, "none; trials run on CPU cores"),
        (["A100"], {}, OK, "A100; CUDA 12.8; bf16 is fast on them"),
        (["V100"], {"bf16": [False]}, OK, "without fast bf16"),
        (["A100"], {"count": 0, "cuda": None}, FAULT, "torch is built without CUDA"),
        (["A100", "A100"], {}, FAULT, "torch finds 1"),
        (["A100"], {"count": 0, "warnings": ["The NVIDIA driver on your system is too old (found version 11040)."]},
         FAULT, "the driver is too old for CUDA 12.8"),
        (["H200"], {"error": "RuntimeError: no kernel image is available"}, FAULT, "no kernel image is available"),
    ],
)  # fmt: skip
def test_the_drivers_gpus_against_torchs(cards: list[str], change: dict[str, Any], state: str, told: str) -> None:
    (row,) = packages.compare_gpus(cards, {**GOOD, **change})
    assert row.state == state and told in row.found
    assert bool(row.remedy) == (state != OK)


def test_torch_is_asked_for_its_gpus() -> None:
    (row,) = packages.check_gpus()
    assert row.name == "GPUs" and row.state == OK


def test_a_ray_that_does_not_start_is_told_with_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 60)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    (row,) = packages.check_ray()
    assert row.state == FAULT and "Ray's sockets leave room for 39" in row.found


def test_an_environment_without_this_package_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "OURS", "no-such-package")
    assert packages.check_python()[0].state == WARNING
