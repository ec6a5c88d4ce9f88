"""What the documents say is what the code says."""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pages import commands

from phenoscape_tune.cli.tune import build_parser
from phenoscape_tune.config import build_config, known_keys
from phenoscape_tune.layers import load_config, parse_overrides
from phenoscape_tune.search.space import load_space
from phenoscape_tune.yaml_file import dump_mapping

ROOT = Path(__file__).parent.parent
FAULTS = [*range(1, 24)]  # of docs/guarantees.md
GUIDE = (Path(__file__).parent / "training-guide.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_configuration", ROOT / "docs" / "write_configuration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_of_keys_is_current(writer: ModuleType) -> None:
    written = writer.PAGE.read_text(encoding="utf-8")
    assert written == writer.page(), "run `python docs/write_configuration.py`"


def test_the_table_has_every_key_once_and_says_what_it_means(writer: ModuleType) -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", writer.page(), re.MULTILINE)
    assert sorted(key for key, _ in rows) == sorted(known_keys())
    for key, cells in rows:
        default, values, _, meaning = (cell.strip() for cell in re.split(r" \| ", f"{cells} "))
        assert default and values and meaning.endswith("."), key


def test_defaults_ranges_options_and_units_are_told(writer: ModuleType) -> None:
    page = writer.page()
    for row in (
        "| `lr` | `0.001` | number, above 0; advised: 1e-05 to 0.1 |",
        "| `batch_size` | `32` | whole number, from 2; advised: 8 to 512 |",
        "| `precision` | `auto` | `auto`, `bf16`, `16`, `32` |",
        "| `input_size` | `224` | whole number, from 8 to 4096 | px |",
        "| `max_epochs` | `100` | whole number, from 1; advised: 50 to 500 | epochs |",
        "| `transforms.sigmas` | `[0.1, 2]` | 2 of: number, above 0 |",
        "| `early_stopping.patience` | `10` | whole number, from 1 |",
        "| `test_fraction` | `0.15` | number, from 0 below 1 |",
    ):
        assert row in page
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings == ["Data", "Model", "Optimisation", "Hardware", "Logging"]


def test_the_example_configuration_is_the_guides_first() -> None:
    example = ROOT / "docs" / "config.yaml"
    block = re.search(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert example.read_text(encoding="utf-8") == block[1]
    assert load_config(str(example)).deterministic


def named_tests(page: str) -> list[str]:
    """The tests that a page's tables name, each of which must exist; without a file's name, of the last file named."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    tables = "\n".join(line for line in text.splitlines() if line.startswith("| "))
    file, named = "", []
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::)?(test_\w+)?`", tables):
        file = path or file
        if name or path:
            named.append(f"{file}::{name}")
            assert (ROOT / file).is_file(), file
            assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"
    for room in re.findall(r"`((?:cli/|data/|training/|evaluate/|search/)?\w+\.py)`", tables):
        assert (ROOT / "phenoscape_tune" / room).is_file(), room
    return named


def test_the_coverage_of_the_guide_names_code_and_tests_that_exist() -> None:
    assert len(named_tests("guide-coverage.md")) > 50


def test_the_symptoms_of_troubleshooting_are_what_the_code_says() -> None:
    """What stands in backticks in the first column is a message: each piece between `…` is a text of the package."""
    texts = "\n".join(
        "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        if isinstance(node, ast.JoinedStr)
        else node.value
        for path in (ROOT / "phenoscape_tune").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    )
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    symptoms = re.findall(r"^\| ([^|]+) \| [^|]* \| [^|]* \|$", page, re.MULTILINE)
    assert len(symptoms) > 40
    for quoted in re.findall(r"`([^`]+)`", "\n".join(symptoms)):
        # Numbers and names differ from case to case.
        for piece in re.split(r"…|\bFILE\b|\bN\b|\b\d+\b|×", quoted):
            assert piece.strip(" ()?:;,.") in texts, f"no message says {quoted!r} (piece {piece!r})"


def test_each_fault_has_a_test_that_exists() -> None:
    assert len(named_tests("guarantees.md")) >= len(FAULTS)
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == FAULTS
    assert all("`test" in row or row.endswith("the same") for _, row in rows)


def test_the_command_of_the_tuning_guide_gives_the_configuration_in_its_report() -> None:
    """What the report of the example gives as its winner's configuration is what the command makes, but for the keys
    that were searched, and for keys that came later."""
    (command,) = (c.text for c in commands("docs/tuning.md") if "staged_cifar.yaml" in c.text)
    asked = build_parser().parse_intermixed_args(shlex.split(command)[2:])
    made = yaml.safe_load(dump_mapping(build_config(parse_overrides(asked.overrides)).to_mapping()))
    report = (ROOT / "docs" / "example" / "report.html").read_text(encoding="utf-8")
    block = re.search(r"^data_dir: .*?(?=</)", report, re.DOTALL | re.MULTILINE)
    assert block is not None
    told = yaml.safe_load(html.unescape(block[0]))
    searched = load_space(str(ROOT / asked.space))[0].parameters
    differ = {key for key in told if told[key] != made[key]}
    assert differ == {*(key.partition(".")[0] for key in searched), "out_dir", "modality"}
    changed = {f"transforms.{key}" for key, value in told["transforms"].items() if value != made["transforms"][key]}
    assert changed == {key for key in searched if "." in key}
    assert told["modality"] == "rgb"  # what `auto` finds
