from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pseudo_terminal import COLOUR_VARIABLES, ROOT, run_on_terminal

from phenoscape_tune.terminal import open_console, show_lines, wrap

ASK = "from phenoscape_tune.terminal import open_console as o; c = o(); print(c.is_interactive, c.width, c.no_color)"


def test_lines_are_broken_between_words_and_indented() -> None:
    line = "stage 5 augmentation: transforms.cj_strength, transforms.min_scale; 8 trials (all at once, as they are)"
    broken = wrap(line, 60).split("\n")
    assert broken[0] == "stage 5 augmentation: transforms.cj_strength,"
    assert all(part.startswith("  ") for part in broken[1:])
    assert " ".join(part.strip() for part in broken) == line
    assert max(map(len, broken)) <= 60
    # A path longer than the terminal can still be copied.
    assert f"  /{'a' * 90}" in wrap(f"search /{'a' * 90} and more", 60).split("\n")


def test_in_a_pipe_lines_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    show_lines(["a " * 200, "b"])
    assert capsys.readouterr().out == f"{'a ' * 200}\nb\n"
    assert not open_console().is_interactive


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "True 80 False"),
        ({"NO_COLOR": "1"}, "True 80 True"),
        ({"TERM": "dumb"}, "False 80 False"),
    ],
)
def test_what_a_terminal_can(variables: dict[str, str], told: str) -> None:
    code, written = run_on_terminal(["-c", ASK], 80, variables=variables)
    assert (code, written.strip()) == (0, told)


def test_forced_colours_make_no_terminal_of_a_pipe() -> None:
    kept = {key: value for key, value in os.environ.items() if key not in COLOUR_VARIABLES}
    environment = {**kept, "FORCE_COLOR": "1", "TERM": "xterm"}
    command = [sys.executable, "-c", ASK]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout
    assert told.split()[0] == "False"


@pytest.mark.parametrize("columns", [80, 140])
def test_a_plan_fits_the_terminal(columns: int, tmp_path: Path) -> None:
    command = ["scripts/tune.py", "--space", "full.yaml", "--dry-run", "--out", str(tmp_path / "s")]
    code, written = run_on_terminal(command, columns)
    lines = written.rstrip("\n").split("\n")
    assert code == 0
    assert [line for line in lines if len(line) > columns and str(tmp_path) not in line] == []
    assert "\x1b" not in written
    stages = [line for line in lines if line.startswith("stage ")]
    assert len(stages) == 7
    assert any(line.startswith("  ") for line in lines) == (columns == 80)
