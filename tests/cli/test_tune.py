from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phenoscape_tune.cli import tune
from phenoscape_tune.config import build_config
from phenoscape_tune.layers import load_config
from phenoscape_tune.search.space import build_space
from phenoscape_tune.yaml_file import dump_mapping, load_mapping

ROOT = Path(__file__).parents[2]
SPACE = """
parameters:
  temperature: {type: uniform, low: 0.05, high: 0.5}
  lr: {type: loguniform, low: 1e-4, high: 1e-1}
scheduler: {grace_epochs: 2, reduction_factor: 2}
budget: {trials: 6, max_epochs: 4}
confirm: {top_k: 1, seeds: 2}
"""
TINY = [
    *("backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "batch_size=8", "projection_dim=16"),
    *("num_workers=1", "accelerator=cpu", "max_epochs=50"),
]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def run(*arguments: object) -> int:
    return tune.main([str(argument) for argument in arguments])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


# ---- a whole search ----


@pytest.fixture(scope="module")
def search(birds: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """One real search of 6 trials and a confirmation: its folder, what it printed, its arguments."""
    folder = tmp_path_factory.mktemp("search") / "birds"
    path = folder.parent / "space.yaml"
    path.write_text(SPACE)
    arguments = ["--space", str(path), "--out", str(folder), "--max-epochs", "4", f"data_dir={birds}", *TINY]
    output = folder.parent / "printed"
    with output.open("w") as file:
        before = sys.stdout
        sys.stdout = file
        try:
            code = tune.main(arguments)
        finally:
            sys.stdout = before
    assert code == 0, output.read_text()
    return folder, output.read_text(), arguments


@pytest.mark.slow
def test_a_search_leaves_the_contracts_folder(search: tuple[Path, str, list[str]]) -> None:
    folder, _, _ = search
    names = {path.name for path in folder.iterdir()}
    expected = {"search.yaml", "trials", "study.journal", "leaderboard.csv", "best.yaml", "summary.json", "report.html"}
    assert expected <= names
    listed = rows(folder)
    assert {path.name for path in (folder / "trials").iterdir()} == {row["trial"] for row in listed}
    for row in listed:
        trial = folder / "trials" / row["trial"]
        assert {"config.yaml", "logs"} <= {path.name for path in trial.iterdir()}
        config = load_config(str(trial / "config.yaml"))
        assert config.lr == pytest.approx(float(row["lr"]))
        assert config.temperature == pytest.approx(float(row["temperature"]))
        assert config.max_epochs == 4
    # Checkpoints of the best trials only (`keep`), the winner and the baseline among them.
    kept = {path.parts[-3] for path in (folder / "trials").glob("*/checkpoints/best.ckpt")}
    winner = json.loads((folder / "summary.json").read_text())["winner"]["trial"]
    baseline = next(row["trial"] for row in listed if row["stage"] == "defaults")
    assert {winner, baseline} <= kept <= {row["trial"] for row in listed if row["status"] == "completed"}
    assert len(kept) <= 5 + 2


@pytest.mark.slow
def test_its_leaderboard_has_every_trial_of_the_plan(search: tuple[Path, str, list[str]]) -> None:
    listed = rows(search[0])
    stages = [row["stage"] for row in listed]
    assert [stages.count(stage) for stage in ("defaults", "lr", "temperature", "confirm")] == [1, 3, 2, 4]
    assert {row["status"] for row in listed} <= {"completed", "pruned"}
    for row in listed:
        assert int(row["epochs"]) == 4 or row["status"] == "pruned"
        assert 0 <= float(row["objective"]) <= 1


@pytest.mark.slow
def test_its_summary_and_best_configuration_agree(search: tuple[Path, str, list[str]]) -> None:
    folder, printed, _ = search
    summary = json.loads((folder / "summary.json").read_text())
    best = load_config(str(folder / "best.yaml"))
    assert best.max_epochs == 50
    assert Path(best.out_dir).parent == folder
    for key, value in summary["winner"]["values"].items():
        assert getattr(best, key) == pytest.approx(value)
    assert [stage["name"] for stage in summary["stages"]] == ["defaults", "lr", "temperature", "confirm"]
    assert summary["budget"]["used"]["trials"] == 6
    assert summary["gain_ci95"][0] <= summary["gain"] <= summary["gain_ci95"][1]
    assert f"python scripts/train.py --config {folder / 'best.yaml'}" in printed
    assert f"tensorboard --logdir {folder}" in printed
    assert "stage 0 defaults: " in printed
    assert "stage 1 lr: lr" in printed


@pytest.mark.slow
def test_its_journal_opens_in_optuna_with_pruned_and_completed_told_apart(search: tuple[Path, str, list[str]]) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder, _, _ = search
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    states: dict[str, str] = {}
    for name in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            if "taken_over" not in trial.user_attrs:
                states[trial.user_attrs["name"]] = trial.state.name
                assert len(trial.intermediate_values) in (2, 4)
    expected = {"completed": "COMPLETE", "pruned": "PRUNED"}
    assert states == {row["trial"]: expected[row["status"]] for row in rows(folder)}


@pytest.mark.slow
def test_optuna_reads_the_study_and_its_importances_are_of_completed_trials(
    search: tuple[Path, str, list[str]],
) -> None:
    folder, _, _ = search
    journal = str(folder / "study.journal")
    command = [str(Path(sys.executable).parent / "optuna"), "trials", "--storage", journal, "-f", "json"]
    command += ["--storage-class", "JournalFileBackend", "--study-name", "1-lr"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    states = [trial["state"] for trial in json.loads(printed)]
    # The baseline, taken over, and the stage's own.
    assert states.count("COMPLETE") + states.count("PRUNED") == len(states) == 4

    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(study_name="1-lr", storage=JournalStorage(JournalFileBackend(journal)))
    # A pruned trial has no value, so that no importance takes a first rung's score for a final one.
    assert all((trial.value is None) == (trial.state.name == "PRUNED") for trial in study.trials)
    assert optuna.importance.get_param_importances(study).keys() == {"lr"}


@pytest.mark.slow
def test_optuna_dashboard_opens_the_journal(search: tuple[Path, str, list[str]]) -> None:
    folder, _, _ = search
    port = 7000 + os.getpid() % 800
    command = [str(Path(sys.executable).parent / "optuna-dashboard"), str(folder / "study.journal")]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        studies: list[dict[str, Any]] = []
        deadline = time.monotonic() + 90
        while not studies and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    studies = json.load(answer)["study_summaries"]
            except OSError:
                time.sleep(0.5)
        assert {study["study_name"] for study in studies} == {"0-defaults", "1-lr", "2-temperature", "3-confirm"}
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.slow
def test_tensorboard_shows_every_trial_with_its_values(search: tuple[Path, str, list[str]]) -> None:
    folder, _, _ = search
    port = 6100 + os.getpid() % 800
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        groups = _wait_for_session_groups(port, count=10)
    finally:
        server.terminate()
        server.wait(timeout=20)
    listed = {row["trial"]: row for row in rows(folder)}
    shown = {}
    for group in groups:
        trial = group["sessions"][0]["name"].split("/")[1]
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        shown[trial] = (group["hparams"], values)
    assert set(shown) == set(listed)
    for trial, (hparams, metrics) in shown.items():
        assert hparams["lr"] == pytest.approx(float(listed[trial]["lr"]))
        assert hparams["temperature"] == pytest.approx(float(listed[trial]["temperature"]))
        assert hparams["stage"] == listed[trial]["stage"]
        assert metrics["objective_mean"] == pytest.approx(float(listed[trial]["objective"]), abs=1e-4)


def _wait_for_session_groups(port: int, count: int) -> list[dict[str, Any]]:
    body = json.dumps({"experimentName": "", "allowedStatuses": [
        "STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"], "colParams": [],
        "startIndex": 0, "sliceSize": 100}).encode()  # fmt: skip
    url = f"http://127.0.0.1:{port}/data/plugin/hparams/session_groups"
    deadline = time.monotonic() + 90
    groups: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                groups = json.load(answer).get("sessionGroups", [])
            if len(groups) >= count and all(group.get("metricValues") for group in groups):
                break
        except OSError:
            pass
        time.sleep(1)
    return groups


@pytest.mark.slow
def test_resuming_a_finished_search_shows_its_result(
    search: tuple[Path, str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed, arguments = search
    before = (folder / "study.journal").read_bytes()
    assert run("--resume", "--out", folder) == 0
    again = capsys.readouterr().out
    assert printed.splitlines()[-5:] == again.splitlines()[-5:]
    assert tune.main([*arguments, "--resume"]) == 0
    assert tune.main([*arguments, "--resume-or-start"]) == 0
    assert (folder / "study.journal").read_bytes() == before


@pytest.mark.slow
def test_an_existing_search_and_a_changed_one_are_refused(
    search: tuple[Path, str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, arguments = search
    assert tune.main(arguments) == 2
    message = capsys.readouterr().err
    assert "exists already" in message
    assert "--resume" in message
    assert "--overwrite" in message
    for flag in ("--resume", "--resume-or-start"):
        assert tune.main([*arguments, flag, "weight_decay=0.5"]) == 2
        assert "config.weight_decay: was 0.0001, is 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_search_learns_from_an_earlier_one(
    search: tuple[Path, str, list[str]], birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, _, _ = search
    path = tmp_path / "again.yaml"
    path.write_text(SPACE.replace("confirm: {top_k: 1, seeds: 2}", "confirm: null").replace("trials: 6", "trials: 3"))
    folder = tmp_path / "again"
    start = ("--space", path, "--out", folder, "--max-epochs", 4, f"data_dir={birds}", *TINY)
    assert run(*start, "--warm-start", earlier) == 0
    assert f"warm start: 5 trials of {earlier} fit this space" in capsys.readouterr().out
    assert len(rows(folder)) == 3  # what was not run here is no row
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    told = [t for t in optuna.load_study(study_name="1-lr", storage=storage).trials if t.user_attrs.get("warm")]
    lr_stage = {row["trial"]: float(row["lr"]) for row in rows(earlier) if row["stage"] == "lr"}
    assert {t.user_attrs["name"].split(":")[1]: pytest.approx(t.params["lr"]) for t in told} == lr_stage


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


@pytest.mark.slow
def test_a_search_over_batch_sizes_without_labels(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "batch.yaml"
    path.write_text(
        "parameters:\n  lr: {type: loguniform, low: 1e-4, high: 1e-1}\n"
        "  batch_size: {type: choice, values: [4, 8, 16]}\n"
        "budget: {trials: 5, max_epochs: 2}\nconfirm: {top_k: 1, seeds: 2}\n"
    )
    flat = tmp_path / "flat"  # without class folders
    flat.mkdir()
    for file in birds.glob("*/*.jpg"):
        shutil.copy(file, flat / f"{file.parent.name}-{file.name}")
    folder = tmp_path / "batch"
    assert run("--space", path, "--out", folder, f"data_dir={flat}", *TINY, "batch_size=8", "max_epochs=2") == 0
    out = capsys.readouterr().out
    assert "objective: reference contrast (lower is better)" in out
    assert "batch sizes on this device: 16 images fit at once; images/s by size: 8: " in out
    for row in rows(folder):
        if row["stage"] == "batch_size":
            standing = next(r for r in rows(folder) if r["trial"] == winner_of(folder, "lr"))
            ratio = float(row["batch_size"]) / float(standing["batch_size"])
            assert float(row["lr"]) == pytest.approx(min(0.1, float(standing["lr"]) * ratio**0.5))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["objective"] == {"metric": "reference_contrast", "higher_is_better": False}
    assert set(summary["batch_sizes"]["images_per_second"]) == {"8", "16"}
    by_objective = sorted((r for r in rows(folder) if r["rank"]), key=lambda row: int(row["rank"]))
    completed = [float(row["objective"]) for row in by_objective if row["status"] == "completed"]
    assert completed == sorted(completed)  # the lowest is the best


def winner_of(folder: Path, stage: str) -> str:
    summary = json.loads((folder / "summary.json").read_text())
    return next(each["winner"] for each in summary["stages"] if each["name"] == stage)


@pytest.mark.slow
def test_an_unknown_backbone_is_refused_before_the_first_trial(
    birds: Path, space: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--space", space, "--out", tmp_path / "x", f"data_dir={birds}", *TINY, "backbone=resnet81") == 2
    assert "backbone: 'resnet81' is not a model of timm; did you mean" in capsys.readouterr().err
    assert not (tmp_path / "x" / "trials").exists()


# ---- without a search ----


def test_a_result_that_appears_while_a_search_starts_is_not_deleted(
    birds: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "twice"

    def another_search_ends(*ignored: Any) -> None:
        folder.mkdir()
        for name in ("search.yaml", "report.html"):
            (folder / name).write_text("theirs")

    monkeypatch.setattr(tune, "start_devices", another_search_ends)
    monkeypatch.setattr(tune, "measure_batch_sizes", lambda plan, *ignored: plan)
    monkeypatch.setattr(tune, "_show_plan", lambda *ignored: None)
    assert run("--space", space, "--out", folder, f"data_dir={birds}", *TINY) == 2
    assert f"{folder}: exists already" in capsys.readouterr().err
    assert (folder / "report.html").read_text() == "theirs"


def test_the_dry_run_prints_the_plan_and_starts_nothing(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--space", space, "--dry-run", "data_dir=nowhere") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(";")[0] for line in lines if line.startswith("stage")] == [
        "stage 0 defaults: none (the configuration as it is)",
        "stage 1 lr: lr",
        "stage 2 temperature: temperature",
    ]
    for word in ("trials: 6", "epochs a trial: 4", "devices:", "estimated cost:"):
        assert word in out
    assert "nowhere: no such folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]


def test_what_wins_flag_then_key_value_then_space_file(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def epochs(*arguments: str) -> str:
        assert run("--space", space, "--dry-run", *arguments) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("trials:"))
        return line.split("epochs a trial: ")[1].split(",")[0]

    assert epochs("--max-epochs", "7", "max_epochs=60") == "7"
    assert epochs("max_epochs=60") == "60"
    assert epochs() == "4"
    assert run("--space", space, "--dry-run", "--trials", "9", "--order", "joint", "--no-confirm") == 0
    out = capsys.readouterr().out
    assert "stage 1 joint: lr, temperature; 8 trials" in out
    assert "0 confirmations" in out


def bad(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that is refused: exit code 2, nothing but an error."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in out + err
    return err


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
    needy.write_text(SPACE + "objective: {metric: knn_accuracy}\n")
    unlabelled = bad(capsys, "--space", needy, "--out", tmp_path / "x", f"data_dir={birds / 'crow'}", "batch_size=8")
    assert "objective.metric: knn_accuracy needs labels" in unlabelled
    assert "metric: reference_contrast" in unlabelled
    assert not (tmp_path / "x").exists()


def test_resume_or_start_starts_where_no_search_was_begun(
    space: Path, tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--space", space, f"data_dir={birds}", "batch_size=1000", "--resume-or-start", "--out", tmp_path / "x")
    # Refused only for its images: nothing says that there is no search to resume.
    assert "batch_size: 1000 is larger than the training part" in bad(capsys, *start)
    # What a start leaves that was killed before it wrote search.yaml.
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".search.lock").touch()
    (tmp_path / "x" / ".search.yaml.tmp").write_text("seed: ")
    assert "batch_size: 1000 is larger than the training part" in bad(capsys, *start)
    (tmp_path / "x" / "thesis.tex").write_text("years of work")
    assert "exists already" in bad(capsys, *start)


def test_wrong_output_folders(space: Path, tmp_path: Path, birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    start = ("--space", space, f"data_dir={birds}", "batch_size=8")
    assert "exists already" in bad(capsys, *start, "--out", tmp_path / "precious")
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "search.yaml").write_text("seed: 1\n")
    (tmp_path / "mixed" / "photos").mkdir()
    assert "also holds photos" in bad(capsys, *start, "--out", tmp_path / "mixed", "--overwrite")
    assert (tmp_path / "mixed" / "photos").is_dir()
    assert "data_dir: is empty" in bad(capsys, "--space", space, "data_dir=")
    assert "holds no search.yaml" in bad(capsys, *start, "--out", tmp_path / "precious", "--overwrite")
    assert (tmp_path / "precious" / "thesis.tex").read_text() == "years of work"
    assert "there is no search in it" in bad(capsys, "--resume", "--out", tmp_path / "precious")
    # A place where not even root can make a folder.
    assert "cannot be written" in bad(capsys, *start, "--out", "/proc/search")
    assert "is not a plain folder name" in bad(capsys, *start, "--name", "a/b")


def test_a_budget_below_one_trial_a_stage_names_the_least(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the least is 3" in bad(capsys, "--space", space, "--dry-run", "--trials", "2")


def test_a_confirmation_of_more_trials_than_there_are_shrinks_and_the_plan_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace("top_k: 1", "top_k: 9"))
    assert run("--space", path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "confirm.top_k: 5 instead of 9: there are no more searched trials" in out
    assert "then confirm: the best 5 and the defaults" in out


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "soon"])
def test_a_budget_of_time_is_a_number_above_zero(space: Path, capsys: pytest.CaptureFixture[str], hours: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--space", space, f"--hours={hours}")
    assert ended.value.code == 2
    assert "is not a number of hours above 0" in capsys.readouterr().err


def test_budgets_of_time_are_told_in_the_plan(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--space", space, "--dry-run", "--hours", "1.5", "--gpu-hours", "4") == 0
    assert "or 1.5 hours or 4 GPU hours, whichever ends first" in capsys.readouterr().out


def test_shares_of_stages_that_the_search_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace("max_epochs: 4", "max_epochs: 4, shares: {temprature: 2}"))
    error = bad(capsys, "--space", path, "--dry-run")
    assert "budget.shares.temprature: is no stage of this search; did you mean 'temperature'" in error


def test_the_stages_follow_the_documented_order_whatever_the_order_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = load_mapping(ROOT / "search_spaces" / "full.yaml")
    keys = list(content["parameters"])
    printed = []
    for turn in range(len(keys)):
        content["parameters"] = {key: content["parameters"][key] for key in keys[turn:] + keys[:turn]}
        path = tmp_path / str(turn) / "full.yaml"
        path.parent.mkdir()
        path.write_text(dump_mapping(content))
        assert run("--space", path, "--dry-run") == 0
        printed.append(capsys.readouterr().out)
    assert len(set(printed)) == 1
    stages = [line.split(";")[0] for line in printed[0].splitlines() if line.startswith("stage")]
    assert stages == [
        "stage 0 defaults: none (the configuration as it is)",
        "stage 1 lr: lr",
        "stage 2 batch_size: batch_size",
        "stage 3 lr_recheck: lr",
        "stage 4 temperature: temperature",
        "stage 5 augmentation: transforms.cj_strength, transforms.min_scale",
    ]


def test_a_cluster_that_nobody_answers_for_is_refused_before_anything_is_written(
    space: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--space", space, "--out", tmp_path / "out", f"data_dir={birds}", *TINY, "--max-epochs", "4"]
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test may have started this process's Ray
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert "--address 127.0.0.1:9: nobody answers there" in bad(capsys, *arguments)
    assert "--address ray://head:1: is not auto or HOST:PORT" in bad(capsys, *arguments, "--address", "ray://head:1")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_for_a_cluster_counts_nothing_of_this_machine(
    space: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--space", space, "--dry-run", "--address", "head:6379", "--concurrent", 64) == 0
    out, err = capsys.readouterr()
    assert "devices: those of the cluster at head:6379 (not asked), 64 trials at a time" in out
    assert "CPU core" not in out + err
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert run("--space", space, "--dry-run") == 0
    assert "the cluster at head:6379" in capsys.readouterr().out
    assert run("--space", space, "--dry-run", "--address", "local") == 0
    assert "cluster" not in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["--space", "lr_temp", "bachsize=8"], ["--space", "lr_tmp"]])
def test_help_and_schema_errors_import_neither_torch_nor_ray(arguments: list[str]) -> None:
    script = (
        "import sys; sys.argv = ['tune.py', *sys.argv[1:]]\n"
        "from phenoscape_tune.cli.tune import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'timm', 'torchvision', 'optuna', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_a_search_compares_all_bands_with_three_of_them(
    cubes: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kind of images is told from the files; each choice has its own packed images and its own augmentations."""
    space = tmp_path / "bands.yaml"
    space.write_text(
        "parameters:\n  bands: {type: choice, values: [all, rgb]}\n"
        "  transforms.augmentation_strength: {type: uniform, low: 0.2, high: 1.0}\n"
        "order: joint\nscheduler: {grace_epochs: 2, reduction_factor: 2}\nbudget: {trials: 5, max_epochs: 2}\n"
        "confirm: {top_k: 1, seeds: 1}\n"
    )
    folder = tmp_path / "search"
    own = [*TINY, "input_size=16", "spectral_stem=4", "val_fraction=0.3", "test_fraction=0.3"]
    assert run("--space", space, "--out", folder, "--max-epochs", "2", f"data_dir={cubes}", *own) == 0
    assert "hyperspectral, 20 of 20 channels (400 nm, 420 nm, ..., 780 nm)" in capsys.readouterr().out
    listed = rows(folder)
    assert {row["status"] for row in listed} <= {"completed", "pruned"}
    assert {row["bands"] for row in listed} == {"all", "rgb"}
    for row in listed:
        config = load_config(str(folder / "trials" / row["trial"] / "config.yaml"))
        assert (config.modality, config.bands) == ("hyperspectral", row["bands"])
        alone = row["bands"] == "rgb"
        assert (config.transforms.cj_prob > 0, config.transforms.shift_prob > 0) == (alone, not alone)
        log = (folder / "trials" / row["trial"] / "logs" / "training.log").read_text()
        assert ("20 channels are mixed to 4" in log) == (not alone)
    assert load_config(str(folder / "best.yaml")).modality == "hyperspectral"
    assert run("--resume", "--out", folder) == 0
