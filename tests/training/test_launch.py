from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from phenoscape_tune.config import TrainConfig

pytestmark = pytest.mark.slow


def test_the_torch_trainer_runs_in_this_process_without_starting_ray(tiny: Callable[..., TrainConfig]) -> None:
    script = """
import json, os, sys
from phenoscape_tune.config import build_config
from phenoscape_tune.training.launch import launch
pids = []
rows = launch(build_config(json.loads(sys.argv[1])), lambda row: pids.append(os.getpid()))
import ray
assert pids == [os.getpid()] * 2, pids
assert [row["epoch"] for row in rows] == [1, 2]
assert not ray.is_initialized()
"""
    config = tiny().model_dump_json()
    subprocess.run([sys.executable, "-c", script, config], check=True, timeout=200)
