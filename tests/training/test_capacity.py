from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.training.capacity import Capacity, measure_in_process
from phenoscape_tune.training.memory import OutOfMemory


def small(**values: Any) -> TrainConfig:
    values = {"backbone": "test_resnet.r160_in1k", "input_size": 32, "stem": "standard", "precision": 32, **values}
    return build_config({"accelerator": "cpu", "projection_dim": 16, **values})


def test_a_batch_beyond_the_largest_goes_in_powers_of_two() -> None:
    measured = Capacity(largest=192, out_of_memory=True)
    assert [measured.micro_batch(size) for size in (32, 192, 193, 4096)] == [None, None, 128, 128]
    assert Capacity(largest=2).micro_batch(8) == 2
    with pytest.raises(OutOfMemory, match="batch_size 8 cannot be trained"):
        Capacity(largest=0, out_of_memory=True).micro_batch(8)


# What is made of the process's end

SO_FAR = json.dumps({"largest": 16, "images_per_second": {"8": 90.0, "16": 100.0}, "out_of_memory": False})


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in the place of the python that measures."""

    def replace(lines: str) -> None:
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return replace


@pytest.mark.parametrize("signal", ["KILL", "SEGV", "ABRT"])
def test_a_process_that_memory_ended_leaves_what_it_knew(python: Callable[[str], None], signal: str) -> None:
    python(f"echo '{SO_FAR}'\necho '{{\"larg'\nulimit -c 0\nkill -{signal} $$")
    measured = measure_in_process(small(), 3, 64)
    assert (measured.largest, measured.out_of_memory) == (16, True)
    assert measured.images_per_second == {8: 90.0, 16: 100.0}
    assert measured.explanation == (
        f"the process was ended by SIG{signal} above 16 images, which counts as out of memory"
    )
    python(f"ulimit -c 0\nkill -{signal} $$")
    assert (measure_in_process(small(), 3, 64).largest, measured.out_of_memory) == (0, True)


def test_a_process_that_takes_too_long_leaves_what_it_knew(python: Callable[[str], None]) -> None:
    python(f"echo '{SO_FAR}'\nexec sleep 60")
    measured = measure_in_process(small(), 3, 64, seconds=0.5)
    assert (measured.largest, measured.out_of_memory) == (16, False)
    assert measured.explanation == "stopped after 0.5 s, above 16 images"
    python("exec sleep 60")
    with pytest.raises(UserError, match="could not be measured: stopped after 0.2 s; set batch_size"):
        measure_in_process(small(), 3, 64, seconds=0.2)


def test_a_process_that_fails_says_why(python: Callable[[str], None]) -> None:
    python("echo 'warning: x' >&2; echo 'error: backbone: no such network' >&2; exit 2")
    with pytest.raises(UserError, match="^backbone: no such network$"):
        measure_in_process(small(), 3, 64)
    python("echo 'Traceback' >&2; echo 'KeyError: 1' >&2; exit 1")
    with pytest.raises(UserError, match="could not be measured: KeyError: 1; set"):
        measure_in_process(small(), 3, 64)
    python("exit 7")
    with pytest.raises(UserError, match="ended with code 7"):
        measure_in_process(small(), 3, 64)


def test_what_the_process_is_asked_and_given(python: Callable[[str], None], tmp_path: Path) -> None:
    python(f'echo "$@ | $CUDA_VISIBLE_DEVICES | $HOME" > {tmp_path}/asked; cp "$3" {tmp_path}/given; echo \'{SO_FAR}\'')
    measured = measure_in_process(small(lr=0.5), 7, 64, memory_gib=1.5, env={"CUDA_VISIBLE_DEVICES": "3"}, concurrent=2)
    asked = (tmp_path / "asked").read_text()
    assert "-m phenoscape_tune.training.capacity_steps" in asked
    assert "--channels 7 --up-to 64 --concurrent 2 --memory-gib 1.5 | 3 | /" in asked
    assert "lr: 0.5" in (tmp_path / "given").read_text()
    assert measured.explanation == ""


@pytest.mark.slow
def test_whoever_starts_the_measurement_need_not_load_torch() -> None:
    code = "import sys, phenoscape_tune.training.capacity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
