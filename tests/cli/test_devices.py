from __future__ import annotations

from pathlib import Path

import pytest

from phenoscape_tune.cli import train, tune
from phenoscape_tune.cli.devices import Devices, batch_warnings, describe_devices, find_address
from phenoscape_tune.config import build_config
from phenoscape_tune.search.display import describe_plan
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.space import build_space
from phenoscape_tune.training.batch_advice import describe_memory
from phenoscape_tune.training.gpus import Gpu

LR = {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}}
BATCH = {"batch_size": {"type": "choice", "values": [64, 128, 256]}}
CARDS = (Gpu("RTX 4090", 23.5), Gpu("Tesla T4", 14.6))


def test_the_plan_tells_the_memory_of_each_gpu_and_the_guides_batch_sizes() -> None:
    plan = make_plan(build_space({"parameters": LR}), build_config({}), 30, Path("x"))
    lines = describe_plan(plan, describe_devices(2), None, 2, describe_memory(CARDS))
    place = next(i for i, line in enumerate(lines) if line.startswith("devices: 2 GPUs"))
    assert lines[place + 1].startswith("GPU memory: 23.5 GiB (RTX 4090), 14.6 GiB (Tesla T4); ")
    assert lines[place + 1].endswith("a batch_size of 32 to 64")
    without = describe_plan(plan, describe_devices(0), None, 2, describe_memory([]))
    assert not any("GPU" in line for line in without)


def test_what_the_trials_can_count_with() -> None:
    assert Devices(4, 2, 0.5, 2, 0.0, CARDS).memory_gib == 7.3
    assert Devices(2, 4, 1.0, 2, 0.0, CARDS[:1]).memory_gib == 23.5
    assert Devices(2, 1, 0.0, 0, 0.0).memory_gib is None


def test_devices_of_several_machines_are_told_as_such() -> None:
    assert Devices(4, 2, 0.0, 0, 0.0, total_cpus=8, machines=2).describe() == "8 CPU cores of 2 machines"
    assert Devices(4, 2, 1.0, 4, 0.0, total_cpus=8).describe() == "4 GPUs"


def test_a_flag_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert find_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert find_address(None) == "head:6379"
    assert find_address("auto") == "auto"
    assert find_address("local") is None


def test_the_batch_size_that_will_run_is_the_one_that_is_judged() -> None:
    searched, fixed = build_space({"parameters": {**LR, **BATCH}}), build_space({"parameters": LR})
    base = build_config({"batch_size": 16})
    assert [line.split(" is ")[0] for line in batch_warnings(searched, base, 7.6)] == [
        "parameters.batch_size: 64 to 256"
    ]
    assert batch_warnings(searched, base, 23.5) == []
    for space in (fixed, None):
        assert [line.split(" is ")[0] for line in batch_warnings(space, base, 23.5)] == ["batch_size: 16"]
        assert batch_warnings(space, base, 7.6) == []
    assert batch_warnings(searched, base, None) == batch_warnings(None, base, None) == []


def test_without_a_gpu_nothing_is_said_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert tune.main(["--space", "full", "--dry-run", "accelerator=cpu", "batch_size=512"]) == 0
    assert train.main(["--dry-run", "accelerator=cpu", "batch_size=512"]) == 0
    out, err = capsys.readouterr()
    assert "GPU memory" not in out + err
    assert "recommends" not in out + err
