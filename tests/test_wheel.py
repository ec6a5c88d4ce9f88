"""The wheel, installed where there is no checkout: what ships with it is all that a search needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs the Python of an environment that has the wheel and its dependencies, in a folder far from the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    # The build's requirements are at hand: nothing is fetched.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    environment, elsewhere = folder / "environment", folder / "else where"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True, timeout=120)
    # The dependencies are those of the tests, lent: a `.pth` adds their folder, and the checkout, which is known there
    # by a `.pth` of its own, stays out.
    own = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    (own / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), *arguments]
        return subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True, timeout=500)

    return run


def test_the_package_is_the_wheels(installed: Command) -> None:
    script = "import phenoscape_tune, timm; print(phenoscape_tune.__file__); print(timm.__file__)"
    result = installed("-c", script)
    own, lent = result.stdout.split("\n")[:2]
    assert "/environment/lib/" in own, result.stderr
    assert "/environment/" not in lent


def test_each_command_tells_its_arguments(installed: Command) -> None:
    for command in ("tune", "train", "check_data", "embed"):
        result = installed("-m", f"phenoscape_tune.cli.{command}", "--help")
        assert result.returncode == 0, result.stderr
        assert f"usage: {command}.py" in result.stdout


USER = """
from pathlib import Path

from phenoscape_tune import Parameter, SearchSpace, TrainConfig, TrainResult, TuneResult, UserError, train, tune

space = SearchSpace(parameters={"lr": Parameter(type="loguniform", low=1e-5, high=1e-1)})
try:
    result: TuneResult = tune(space, TrainConfig(data_dir="birds", lr=1e-3, precision=32), trials=4)
    run: TrainResult = train(result.best, overrides={"transforms.cj_strength": 0.8})
    checkpoint: Path = run.checkpoint
    gain: float = result.gain
    tune("lr_temp", "rgb_basic.yaml", trials="many")
    TrainConfig(lr="x", bachsize=3)
except UserError as error:
    print(error)
"""


def test_a_users_file_is_checked_against_its_types(installed: Command, tmp_path: Path) -> None:
    path, settings = tmp_path / "mine.py", tmp_path / "mypy.ini"
    settings.write_text("[mypy]\n")
    environment = installed("-c", "import sys; print(sys.executable)").stdout.strip()
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        f"--config-file={settings}",
        "--python-executable",
        environment,
    ]

    def check(text: str) -> str:
        path.write_text(text)
        # Far from the checkout, whose own files mypy would find first.
        result = subprocess.run([*command, path], cwd=tmp_path, capture_output=True, text=True, timeout=500)
        return result.stdout + result.stderr

    lines, printed = USER.splitlines(), check(USER)
    told = [line for line in printed.splitlines() if ": error: " in line]
    wrong = {lines[int(line.split(":")[1]) - 1].split("(")[0].strip() for line in told}
    assert wrong == {"gain: float = result.gain", "tune", "TrainConfig"}, printed
    assert any('"float | None"' in line for line in told)
    assert any('Unexpected keyword argument "bachsize"' in line for line in told)
    readme = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert readme is not None
    assert "Success" in check(readme[1])


def test_the_demo_runs_from_any_folder(installed: Command, tmp_path: Path) -> None:
    few = ["--trials", "3", "--max-epochs", "1", "--no-confirm", "--concurrent", "1"]
    arguments = ["--space", "demo.yaml", "--out", str(tmp_path / "demo"), *few, "input_size=32", "accelerator=cpu"]
    result = installed("-m", "phenoscape_tune.cli.tune", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["budget"]["used"]["trials"] == 3
    assert (tmp_path / "demo" / "best.yaml").is_file() and (tmp_path / "demo" / "report.html").is_file()
