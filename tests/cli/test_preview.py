from __future__ import annotations

from pathlib import Path

import pytest
from tune_command import SPACE, bad, run

from phenoscape_tune.yaml_file import dump_mapping, load_mapping

ROOT = Path(__file__).parents[2]


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
        "stage 6 refine: batch_size, lr, temperature, transforms.cj_strength, transforms.min_scale",
    ]


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
