from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tune_command import SPACE, TINY, bad, run

from phenoscape_tune.cli import tune, whole_search
from phenoscape_tune.layers import load_config

ROOT = Path(__file__).parents[2]


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


@pytest.fixture(scope="module")
def board(search: tuple[Path, str, list[str]]) -> Iterator[str]:
    """TensorBoard's address, which has read the whole search."""
    port = 6100 + os.getpid() % 800
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(search[0]),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_session_groups(port, count=10)
        yield f"http://127.0.0.1:{port}/data"
    finally:
        server.terminate()
        server.wait(timeout=20)


def ask(address: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_tensorboard_shows_every_trial_with_its_values(search: tuple[Path, str, list[str]], board: str) -> None:
    folder, _, _ = search
    groups = _wait_for_session_groups(int(board.split(":")[2].split("/")[0]), count=10)
    listed = {row["trial"]: row for row in rows(folder)}
    shown = {}
    for group in groups:
        trial = group["sessions"][0]["name"].split("/")[1]
        values = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        shown[trial] = (group["hparams"], values)
        assert group["name"].endswith(f" {trial}")
        assert group["sessions"][0]["status"] == "STATUS_SUCCESS"
    assert set(shown) == set(listed)
    for trial, (hparams, metrics) in shown.items():
        assert hparams["lr"] == pytest.approx(float(listed[trial]["lr"]))
        assert hparams["temperature"] == pytest.approx(float(listed[trial]["temperature"]))
        assert hparams["stage"] == listed[trial]["stage"]
        assert metrics["objective/objective_mean"] == pytest.approx(float(listed[trial]["objective"]), abs=1e-4)
        assert metrics["schedule/epoch"] == int(listed[trial]["epochs"])
    # Their rows stand in the order of the stages.
    stages = [group["hparams"]["stage"] for group in groups]
    assert stages == ["defaults", *["lr"] * 3, *["temperature"] * 2, *["confirm"] * 4]


@pytest.mark.slow
def test_tensorboard_has_a_chart_a_stage_whose_lines_are_its_trials(
    search: tuple[Path, str, list[str]], board: str
) -> None:
    layout = ask(f"{board}/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    assert [title.split(":")[0] for title in charts] == [f"Stage {number}" for number in range(4)]
    found = []
    for (tag,) in charts.values():
        lines = [ask(f"{board}/plugin/custom_scalars/scalars", tag=tag, run=run) for run in ask(f"{board}/runs")]
        found.append(sum(len(line["tag_to_events"]) for line in lines))
    assert found == [1, 3, 2, 4]


@pytest.mark.slow
def test_tensorboard_tells_the_verdict_and_shows_the_winners_pictures(
    search: tuple[Path, str, list[str]], board: str
) -> None:
    folder, _, _ = search
    run = "logs/tensorboard"
    assert set(ask(f"{board}/plugin/text/tags")[run]) == {
        "result/verdict",
        "result/winner's configuration",
        "the search/plan",
    }
    (verdict,) = ask(f"{board}/plugin/text/text", run=run, tag="result/verdict")
    winner = json.loads((folder / "summary.json").read_text())["winner"]
    for key in winner["values"]:
        assert f"<td>{key}</td>" in verdict["text"]
    (configuration,) = ask(f"{board}/plugin/text/text", run=run, tag="result/winner's configuration")
    assert (
        f"lr: {json.loads((folder / 'summary.json').read_text())['winner']['values'].get('lr', 0.001)}"
        in (configuration["text"])
    )
    images = ask(f"{board}/plugin/images/tags")
    assert {"result/winner's augmented views", "result/winner's nearest neighbours"} <= set(images[run])
    completed = {row["trial"] for row in rows(folder) if row["status"] == "completed"}
    shown = {name.split("/")[1] for name, tags in images.items() if "views/nearest neighbours" in tags}
    assert shown == completed


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
    start = ("--space", path, "--out", folder, "--max-epochs", 4, "--concurrent", 1, f"data_dir={birds}", *TINY)
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
    start = ("--space", path, "--out", folder, "--concurrent", 1, f"data_dir={flat}", *TINY)
    assert run(*start, "batch_size=8", "max_epochs=2") == 0
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

    monkeypatch.setattr(whole_search, "start_devices", another_search_ends)
    monkeypatch.setattr(whole_search, "measure_batch_sizes", lambda plan, *ignored: plan)
    monkeypatch.setattr(whole_search, "show_plan", lambda *ignored, **also: None)
    assert run("--space", space, "--out", folder, f"data_dir={birds}", *TINY) == 2
    assert f"{folder}: exists already" in capsys.readouterr().err
    assert (folder / "report.html").read_text() == "theirs"


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


def test_a_cluster_that_nobody_answers_for_is_refused_before_anything_is_written(
    space: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--space", space, "--out", tmp_path / "out", f"data_dir={birds}", *TINY, "--max-epochs", "4"]
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test may have started this process's Ray
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert "--address 127.0.0.1:9: nobody answers there" in bad(capsys, *arguments)
    assert "--address ray://head:1: is not auto or HOST:PORT" in bad(capsys, *arguments, "--address", "ray://head:1")
    assert not (tmp_path / "out").exists()


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
    start = ("--space", space, "--out", folder, "--max-epochs", 2, "--concurrent", 1, f"data_dir={cubes}")
    assert run(*start, *own) == 0
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
