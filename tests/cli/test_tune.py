from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phenoscape_tune.cli import tune
from phenoscape_tune.config import load_config
from phenoscape_tune.yaml_file import load_mapping

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
    assert {"search.yaml", "trials", "study.journal", "leaderboard.csv", "best.yaml", "summary.json"} <= names
    listed = rows(folder)
    assert {path.name for path in (folder / "trials").iterdir()} == {row["trial"] for row in listed}
    for row in listed:
        trial = folder / "trials" / row["trial"]
        assert {"config.yaml", "checkpoints", "logs"} <= {path.name for path in trial.iterdir()}
        config = load_config(str(trial / "config.yaml"))
        assert config.lr == pytest.approx(float(row["lr"]))
        assert config.temperature == pytest.approx(float(row["temperature"]))
        assert config.max_epochs == 4


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
    assert tune.main([*arguments, "--resume", "weight_decay=0.5"]) == 2
    assert "config.weight_decay: was 0.0001, is 0.5" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_whose_training_fails_is_told_and_the_search_goes_on(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text(
        "parameters: {lr: {type: choice, values: [0.001, 1.0e+30]}}\n"
        "budget: {trials: 4, max_epochs: 1}\nconfirm: null\n"
    )
    assert (
        run("--space", path, "--out", tmp_path / "wild", "--max-epochs", 1, f"data_dir={birds}", *TINY, "optimizer=sgd")
        == 0
    )
    statuses = {float(row["lr"]): (row["status"], row["reason"]) for row in rows(tmp_path / "wild")}
    assert statuses == {0.001: ("completed", ""), 1e30: ("failed", "diverged at epoch 1")}
    assert "not confirmed" in capsys.readouterr().out


@pytest.mark.slow
def test_where_every_trial_diverges_the_search_says_so(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text("parameters: {lr: {type: loguniform, low: 1e28, high: 1e30}}\nbudget: {trials: 2, max_epochs: 1}\n")
    code = run("--space", path, "--out", tmp_path / "wild", f"data_dir={birds}", *TINY, "optimizer=sgd", "lr=1e30")
    assert code == 1
    assert "no valid trial" in capsys.readouterr().out
    assert {row["reason"] for row in rows(tmp_path / "wild")} == {"diverged at epoch 1"}


@pytest.mark.slow
def test_an_unknown_backbone_is_refused_before_the_first_trial(
    birds: Path, space: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--space", space, "--out", tmp_path / "x", f"data_dir={birds}", *TINY, "backbone=resnet81") == 2
    assert "backbone: 'resnet81' is not a model of timm; did you mean" in capsys.readouterr().err
    assert not (tmp_path / "x" / "trials").exists()


@pytest.mark.slow
def test_ctrl_c_ends_orderly_and_resume_goes_on(birds: Path, space: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), "--space", str(space), "--out", str(folder)]
    process = subprocess.Popen(
        [*command, "--max-epochs", "14", "--trials", "3", "--no-confirm", f"data_dir={birds}", *TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    journal = folder / "study.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _reported(journal) < 5:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert f"--resume --out {folder}" in printed
    assert "Traceback" not in printed
    assert rows(folder)[0]["status"] == "interrupted"
    reported = _reported(journal)
    assert reported >= 5

    resumed = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "tune.py"), "--resume", "--out", str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    listed = rows(folder)
    assert len(listed) == 3
    assert all(row["status"] in ("completed", "pruned") for row in listed)
    baseline = next(row["trial"] for row in listed if row["stage"] == "defaults")
    log = (folder / "trials" / baseline / "logs" / "training.log").read_text()
    assert "goes on after epoch" in log
    # No epoch was trained and reported twice.
    assert [log.count(f"epoch {n}/14 ") for n in range(1, 15)] == [1] * 14
    study = load_mapping(folder / "search.yaml")
    assert study["max_epochs"] == 14


def _reported(journal: Path) -> int:
    return journal.read_text().count('"intermediate_value"') if journal.exists() else 0


# ---- without a search ----


def test_the_dry_run_prints_the_plan_and_starts_nothing(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--space", space, "--dry-run", "data_dir=nowhere", "compile=true") == 0
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
    assert "compile: True does nothing in this version yet" in err
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
        ("compile=true", "compile: True does nothing in this version yet"),
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
    assert "needs labels" in bad(capsys, *start, f"data_dir={birds / 'crow'}", "batch_size=8")
    assert not (tmp_path / "x").exists()


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
    assert "no search to resume" in bad(capsys, "--resume", "--out", tmp_path / "precious")
    # A place where not even root can make a folder.
    assert "cannot be written" in bad(capsys, *start, "--out", "/proc/search")
    assert "is not a plain folder name" in bad(capsys, *start, "--name", "a/b")


def test_a_budget_below_one_trial_a_stage_names_the_least(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the least is 3" in bad(capsys, "--space", space, "--dry-run", "--trials", "2")


@pytest.mark.parametrize("flag", ["--hours=1", "--gpu-hours=1", "--warm-start=x", "--address=auto", "--doctor"])
def test_flags_of_later_versions_are_refused_and_not_ignored(
    space: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert "does nothing in this version yet" in bad(capsys, "--space", space, flag)


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
