from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from phenoscape_tune.cli.question import refuse_changes, resolve_search
from phenoscape_tune.cli.tune import build_parser
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import set_key

SPACE = """
parameters:
  lr: {type: loguniform, low: 1.0e-4, high: 1.0e-1}
  temperature: {type: uniform, low: 0.05, high: 0.5}
budget: {trials: 6}
"""


class Begun:
    """A search as it was started, and the same command again.

    Attributes:
        saved: its `search.yaml`; what an earlier version had as a default is put in by `had`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.space = folder / "space.yaml"
        self.space.write_text(SPACE)
        self.config = folder / "config.yaml"
        self.config.write_text("batch_size: 32\nearly_stopping: {patience: 5}\n")
        space, config, max_epochs = resolve_search(self.arguments())
        self.saved: dict[str, Any] = {
            "max_epochs": max_epochs, "space": space.to_mapping(), "config": config.to_mapping()
        }  # fmt: skip

    def arguments(self, *more: str) -> Any:
        files = ["--space", str(self.space), "--config", str(self.config)]
        return build_parser().parse_intermixed_args([*files, f"data_dir={self.folder}", "--resume-or-start", *more])

    def had(self, key: str, value: object) -> None:
        set_key(self.saved, key, value)

    def again(self, *more: str) -> None:
        refuse_changes(self.arguments(*more), self.saved, self.folder)


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    return Begun(tmp_path)


def test_the_same_command_goes_on_and_says_nothing(begun: Begun, capsys: pytest.CaptureFixture[str]) -> None:
    begun.again()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config.weight_decay", 0.03),
        ("config.early_stopping.min_delta", 0.25),
        ("space.scheduler.grace_epochs", 7),
        ("space.confirm.seeds", 9),
        ("space.report_timeout", 77.0),
        ("max_epochs", 3),
    ],
)
def test_a_default_that_was_another_one_stays_as_it_was_and_is_told(
    begun: Begun, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    begun.had(key, value)
    begun.again()
    assert capsys.readouterr().err == f"warning: {key}: stays {value!r}, as the search was started; is not given now\n"
    begun.again("--quiet")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "value", "more"),
    [
        ("config.batch_size", 64, ()),
        ("config.early_stopping.patience", 9, ()),
        ("config.weight_decay", 0.03, ("weight_decay=1.0e-4",)),
        ("config.transforms.input_size", 64, ("transforms.input_size=96",)),
        ("config.seed", 5, ("--seed", "0")),
        ("space.budget.trials", 9, ()),
        ("space.scheduler.grace_epochs", 7, ("--trials", "6", "--max-epochs", "9")),
        ("space.confirm.seeds", 9, ("--no-confirm",)),
        ("space.order", "joint", ("--order", "staged")),
        ("max_epochs", 3, ("max_epochs=4",)),
        ("space.parameters.temperature.high", 0.4, ()),
        ("space.parameters.weight_decay", {"type": "loguniform", "low": 1e-6, "high": 1e-2}, ()),
    ],
)
def test_what_is_given_now_and_was_another_then_is_refused(
    begun: Begun, key: str, value: object, more: tuple[str, ...]
) -> None:
    begun.again()
    begun.had(key, value)
    if key.endswith("input_size"):  # of both spellings
        begun.had("config.input_size", value)
    told = "max_epochs" if "--max-epochs" in more else key
    with pytest.raises(UserError, match=rf"another space or configuration:(.|\n)* {told}[.a-z_]*: was .*, is "):
        begun.again(*more)


def test_a_section_that_is_switched_off_now_is_a_change(begun: Begun) -> None:
    begun.config.write_text("batch_size: 32\nearly_stopping: null\n")
    with pytest.raises(UserError, match=r"config\.early_stopping\.patience: was 5, is None"):
        begun.again()


def test_the_samples_settings_are_defaults_of_this_version(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = str(begun.folder / "sample")
    monkeypatch.setattr("phenoscape_tune.cli.question.ensure_data", lambda c: c.model_copy(update={"data_dir": sample}))
    args = build_parser().parse_intermixed_args(["--space", str(begun.space), "--resume"])
    config = resolve_search(args)[1]
    begun.saved["config"] = build_config({**config.to_mapping(), "batch_size": 8, "data_dir": sample}).to_mapping()
    begun.saved["max_epochs"] = 2
    refuse_changes(args, begun.saved, begun.folder)
    told = capsys.readouterr().err
    assert "config.batch_size: stays 8" in told and "max_epochs: stays 2" in told
