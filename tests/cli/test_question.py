from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tune_command import TINY, bad

from phenoscape_tune.cli.question import look_at_data, refuse_changes, resolve_search
from phenoscape_tune.cli.request import SearchRequest, request_of
from phenoscape_tune.cli.tune import build_parser
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import parse_overrides, set_key
from phenoscape_tune.search.space import build_space
from phenoscape_tune.yaml_file import dump_mapping, load_mapping

SPACE = """
parameters:
  lr: {type: loguniform, low: 1.0e-4, high: 1.0e-1}
  temperature: {type: uniform, low: 0.05, high: 0.5}
budget: {trials: 6}
"""


def asked_by(*arguments: str) -> SearchRequest:
    return request_of(SearchRequest, build_parser().parse_intermixed_args(arguments))


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

    def arguments(self, *more: str) -> SearchRequest:
        files = ["--space", str(self.space), "--config", str(self.config)]
        return asked_by(*files, f"data_dir={self.folder}", "--resume-or-start", *more)

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
    asked = asked_by("--space", str(begun.space), "--resume")
    config = resolve_search(asked)[1]
    begun.saved["config"] = build_config({**config.to_mapping(), "batch_size": 8, "data_dir": sample}).to_mapping()
    begun.saved["max_epochs"] = 2
    refuse_changes(asked, begun.saved, begun.folder)
    told = capsys.readouterr().err
    assert "config.batch_size: stays 8" in told and "max_epochs: stays 2" in told


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("lr=abc", "lr: 'abc' is not valid"),
        ("temperature=0", "temperature: 0 is not valid"),
        ("bachsize=8", "bachsize: unknown key; did you mean 'batch_size'?"),
        ("data_dir=missing-folder", "missing-folder"),
        ("bands=every:0", "bands: 'every:0' is not valid: write all, every:4"),
        ("nonsense", "'nonsense' is neither an option nor key=value"),
    ],
)
def test_a_wrong_key_value(space: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, argument: str, message: str
) -> None:  # fmt: skip
    assert message in bad(capsys, "--space", space, "--out", tmp_path / "x", "data_dir=.", argument)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hours=0"], "--hours: budget.hours: 0.0 is not valid: input should be greater than 0"),
        (["--hours=-1"], "--hours: budget.hours: -1.0 is not valid: input should be greater than 0"),
        (["--hours=nan"], "--hours: budget.hours: nan is not valid: input should be a finite number"),
        (["--gpu-hours=inf"], "--gpu-hours: budget.gpu_hours: inf is not valid: input should be a finite number"),
        (["--trials", "0"], "--trials: budget.trials: 0 is not valid: input should be greater than or equal to 1"),
        (["--max-epochs", "0"], "--max-epochs: budget.max_epochs: 0 is not valid: input should be greater than or"),
        (["--concurrent", "0"], "--concurrent: 0 is not a number of trials side by side; write 1 or more"),
        (["--seed=-1"], "--seed: seed: -1 is not valid: input should be greater than or equal to 0 (default 42)"),
        (["--order", "joint"], "--order: budget.shares.lr: is no stage of this search; known: joint"),
    ],
)
def test_a_wrong_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    path = tmp_path / "shared.yaml"
    path.write_text(SPACE.replace("trials: 6", "trials: 6, shares: {lr: 2}"))
    assert message in bad(capsys, "--space", path, "--dry-run", *flags)


def test_faults_of_several_flags_are_told_together(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = bad(capsys, "--space", space, "--dry-run", "--trials", "0", "--hours", "0")
    assert "--trials: budget.trials: 0" in told and "--hours: budget.hours: 0.0" in told


def test_flags_change_the_space_and_its_length_stands_beside_it() -> None:
    asked = SearchRequest(space="lr_temp", order="joint", trials=9, max_epochs=7, hours=2, no_confirm=True)
    space, _, length = resolve_search(asked)
    assert (space.order, space.budget.trials, space.budget.hours, space.confirm) == ("joint", 9, 2.0, None)
    assert (length, space.budget.max_epochs) == (7, 30)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("lr: {type: loguniform, low: 0.1, high: 0.001}", "parameters.lr: the bounds are reversed"),
        ("lr: {type: loguniform, low: 0, high: 0.1}", "parameters.lr: low 0 has no logarithm"),
        ("learning_rate: {type: uniform, low: 0, high: 1}", "parameters.learning_rate: is no configuration key"),
        ("lr: {type: uniform, low: 0.1, high: 1}\n  lr: {type: uniform, low: 0.1, high: 1}", "stands twice"),
        ("lr: {type: choice, values: []}", "the choice is empty"),
    ],
)
def test_a_wrong_space(tmp_path: Path, capsys: pytest.CaptureFixture[str], parameters: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"parameters:\n  {parameters}\n")
    error = bad(capsys, "--space", path, "--dry-run")
    assert message in error
    assert "wrong.yaml" in error


def test_faults_of_space_and_configuration_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("parameters:\n  lrr: {type: uniform, low: 0, high: 1}\n")
    error = bad(capsys, "--space", path, "--dry-run", "lr=abc")
    assert "parameters.lrr" in error
    assert "lr: 'abc'" in error


def test_wrong_folders_of_images(space: Path, tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one" / "a.png")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    (tmp_path / "broken").mkdir()
    whole = next((birds / "crow").iterdir()).read_bytes()
    for i in range(4):
        (tmp_path / "broken" / f"{i}.jpg").write_bytes(whole if i else whole[:200])
    start = ("--space", space, "--out", tmp_path / "x")
    assert "empty" in bad(capsys, *start, f"data_dir={tmp_path / 'empty'}")
    assert "1 image" in bad(capsys, *start, f"data_dir={tmp_path / 'one'}")
    assert ".txt" in bad(capsys, *start, f"data_dir={tmp_path / 'text'}")
    broken = bad(capsys, *start, f"data_dir={tmp_path / 'broken'}")
    assert "0.jpg" in broken
    assert "max_unreadable" in broken
    assert "batch_size: 64 is larger" in bad(capsys, *start, f"data_dir={birds}", "batch_size=64")
    needy = tmp_path / "needy.yaml"
    needy.write_text(space.read_text() + "objective: {metric: knn_accuracy}\n")
    unlabelled = bad(capsys, "--space", needy, "--out", tmp_path / "x", f"data_dir={birds / 'crow'}", "batch_size=8")
    assert "objective.metric: knn_accuracy needs labels" in unlabelled
    assert "metric: reference_contrast" in unlabelled
    assert not (tmp_path / "x").exists()


def test_a_warm_start_from_what_cannot_be_compared_names_the_differences(
    birds: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "earlier"
    start = ("--space", space, "--out", tmp_path / "x", "--max-epochs", 4, f"data_dir={birds}", *TINY)
    assert f"{earlier}: holds no search.yaml" in bad(capsys, *start, "--warm-start", earlier)
    base = build_config({"data_dir": str(birds), "temperature": 0.3})
    content = {
        **{"seed": 42, "max_epochs": 9, "data": "another", "metric": "rankme"},
        **{"space": build_space(load_mapping(space)).to_mapping(), "config": base.to_mapping()},
    }
    earlier.mkdir()
    (earlier / "search.yaml").write_text(dump_mapping(content))
    error = bad(capsys, *start, "--warm-start", earlier)
    for told in ("other images, classes or parts", "objective: rankme there, knn_accuracy here",
                 "max_epochs: 9 there, 4 here", "temperature: 0.3 there, 0.1 here"):  # fmt: skip
        assert told in error
    assert not (tmp_path / "x").exists()


def test_folders_that_look_like_dates_are_doubted_where_they_decide(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for year, name in zip(("2019", "2020", "2021"), sorted(path.name for path in birds.iterdir()), strict=True):
        (tmp_path / "images" / year).mkdir(parents=True)
        for image in (birds / name).iterdir():
            (tmp_path / "images" / year / image.name).symlink_to(image)

    def told(metric: str, *more: str) -> str:
        space = build_space({**yaml.safe_load(SPACE), "objective": {"metric": metric}})
        config = build_config({"data_dir": str(tmp_path / "images"), **parse_overrides([*TINY, *more])})
        look_at_data(space, config, 8, tmp_path / "x", quiet=True)
        return capsys.readouterr().err

    assert "sub-folders are named by numbers, dates or cameras (2019, 2020, 2021)" in told("auto")
    assert "named by numbers" not in told("reference_contrast")
    table = tmp_path / "labels.csv"
    names = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.*"))
    table.write_text("filename,label\n" + "".join(f"{name},{place % 2}\n" for place, name in enumerate(names)))
    assert "named by numbers" not in told("auto", f"labels={table}")
