"""The benchmark of trials side by side: its sums, and two trials that only report."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import concurrent_trials
import many_trials
import pytest
from ray.cloudpickle import register_pickle_by_value

# Ray's workers cannot import a benchmark.
for module in (concurrent_trials, many_trials):
    register_pickle_by_value(module)


def test_the_rate_of_trials_counts_from_the_first_end() -> None:
    ends = {"a": 3.0, "b": 5.0, "c": 7.0, "d": 9.0}
    reports = [(at - 2 + epoch, name, {"epoch": epoch}) for name, at in ends.items() for epoch in (1, 2)]
    assert concurrent_trials.trials_per_second(reports, 2) == pytest.approx(3 / 6)


def test_the_rate_of_images_is_of_the_time_when_all_train() -> None:
    times = {"a": (1.0, 3.0, 5.0, 7.0), "b": (2.0, 4.0, 6.0, 8.0)}
    reports = [(at, name, {"epoch": n}) for name, own in times.items() for n, at in enumerate(own, start=1)]
    # From 2 to 7 both train an epoch of 100 images each two seconds.
    assert concurrent_trials.images_per_second(reports, 100, 4) == pytest.approx(100)


def test_trials_that_did_not_train_together_have_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    times = {"a": (1.0, 2.0), "b": (3.0, 4.0)}
    reports = [(at, name, {"epoch": n}) for name, own in times.items() for n, at in enumerate(own, start=1)]
    with pytest.raises(SystemExit) as ended:
        concurrent_trials.images_per_second(reports, 100, 2)
    assert ended.value.code == 2
    assert "2 epochs are too few" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells the memory of a process there")
def test_memory_of_the_packed_images_is_told_apart(tmp_path: Path) -> None:
    before = concurrent_trials.memory_of(os.getpid())
    assert before["rss"] >= before["pss"] > 0
    (tmp_path / "images.npy").write_bytes(bytes(2**22))
    with (tmp_path / "images.npy").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert not any(pages[::4096])
        after = concurrent_trials.memory_of(os.getpid())
    assert after["packed_rss"] - before["packed_rss"] == 2**22
    assert concurrent_trials.memory_of(2**22 + 1) == {}


@pytest.mark.slow
def test_two_trials_side_by_side(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, with the process that it starts for a number run in this one, which has a Ray already."""

    run_apart = subprocess.run

    def run_here(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        if command[:2] != [sys.executable, concurrent_trials.__file__]:
            return run_apart(command, **how)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[1:])
            concurrent_trials.main()
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out)

    results = tmp_path / "results.json"
    command = ["--concurrent", "2", "--trials", "4", "--epochs", "0", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", [concurrent_trials.__file__, *command])
    monkeypatch.setattr(concurrent_trials.subprocess, "run", run_here)
    concurrent_trials.main()
    (number,) = json.loads(results.read_text())[0]["numbers"]
    assert number["concurrent"] == 2
    assert number["reporting"]["trials"] == 4
    assert number["reporting"]["trials_per_second"] > 0
