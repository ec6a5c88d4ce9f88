from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import phenoscape_tune
from phenoscape_tune import NoResult, Parameter, SearchSpace, TrainConfig, UserError, train, tune
from phenoscape_tune.layers import load_config

LR = Parameter(type="loguniform", low=1e-4, high=1e-2)
TINY: dict[str, Any] = {
    **{"backbone": "test_resnet.r160_in1k", "input_size": 32, "stem": "standard", "batch_size": 8},
    **{"projection_dim": 16, "num_workers": 1, "accelerator": "cpu"},
}


# ---- names, types, imports ----


def test_the_public_names_are_few_and_each_says_what_it_is() -> None:
    assert set(phenoscape_tune.__all__) <= set(dir(phenoscape_tune))
    for name in phenoscape_tune.__all__:
        told = getattr(phenoscape_tune, name).__doc__
        assert told and "!!! abstract" not in told, name  # pydantic's own, of a class without one
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        phenoscape_tune.trian  # noqa: B018


def test_importing_them_and_a_wrong_input_load_neither_torch_nor_ray() -> None:
    script = (
        "import sys\nfrom phenoscape_tune import SearchSpace, TrainConfig, UserError, train, tune\n"
        "for call in (lambda: train(overrides={'lrr': 1}), lambda: tune('lr_tmp'), lambda: TrainConfig(lr=-1)):\n"
        "    try: call()\n    except UserError as error: print(error)\n"
        "heavy = {'torch', 'ray', 'timm', 'torchvision', 'optuna', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert [line.split(":")[1].strip() for line in result.stdout.splitlines()] == [
        *("lrr", "no such file, and none of the shipped search_spaces", "lr"),
    ]


# ---- faults of the input ----


def test_faults_of_a_configuration_are_told_together_where_it_is_made() -> None:
    with pytest.raises(UserError) as told:
        TrainConfig(lr=-1, bachsize=8)  # type: ignore[call-arg]
    assert "TrainConfig: lr: -1 is not valid" in str(told.value)
    assert "TrainConfig: bachsize: unknown key; did you mean 'batch_size'?" in str(told.value)
    assert TrainConfig(transforms={"cj_strength": 0.8}).transforms.cj_strength == 0.8  # type: ignore[arg-type]


def test_faults_of_a_space_are_told_where_it_is_made() -> None:
    with pytest.raises(UserError, match="Parameter: the bounds are reversed"):
        Parameter(type="uniform", low=1, high=0)
    with pytest.raises(UserError, match="Parameter: lwo: unknown key; did you mean 'low'"):
        Parameter(type="uniform", lwo=0, high=1)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"SearchSpace: parameters\.learning_rate: is no configuration key"):
        SearchSpace(parameters={"learning_rate": LR})
    with pytest.raises(UserError, match=r"SearchSpace: parameters\.epochs: is no configuration key"):
        SearchSpace(parameters={"epochs": LR}, order="random")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"SearchSpace: trails: unknown key; known: budget"):
        SearchSpace(parameters={"lr": LR}, trails=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"space": "lr_tmp"}, "did you mean 'lr_temp'"),
        ({}, "say what to search"),
        ({"space": "lr", "hours": 0}, "--hours: budget.hours: 0 is not valid: input should be greater than 0"),
        ({"space": "lr", "hours": "soon"}, "--hours: budget.hours: 'soon' is not valid: input should"),
        ({"space": "lr", "order": "jiont"}, "--order: order: 'jiont' is not valid: input should be 'staged'"),
        ({"space": "lr", "trials": True}, "--trials: budget.trials: true, false, yes and no are no value of this key"),
        ({"space": "lr", "concurrent": True}, "--concurrent: True is not a number of trials side by side"),
        ({"space": "lr", "overrides": {1: 2}}, "overrides: 1 is no key"),
        ({"space": "lr", "overrides": {"max_epochs": "5.0", "data_dir": "nowhere"}}, "nowhere does not exist"),
        ({"space": "lr", "resume": True, "overwrite": True}, "exclude each other"),
        ({"space": "lr", "overrides": {"transforms.cj_strenght": 1}}, "did you mean 'transforms.cj_strength'"),
        ({"space": "lr", "config": TrainConfig(data_dir="nowhere")}, "nowhere does not exist"),
        ({"space": Path("lr"), "config": Path("none.yaml")}, "none.yaml: no such file"),
        ({"space": {"lr": LR}}, "space: {'lr': Parameter(type='loguniform'"),
        ({"space": "lr", "warm_start": 3}, "warm_start: 3 is no path or name; write text or a Path"),
        ({"space": "lr", "overrides": {"data_dir": Path("nowhere")}}, "nowhere does not exist"),
    ],
)
def test_what_is_wrong_with_a_search_is_raised(arguments: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        tune(out=tmp_path / "x", **arguments)
    assert told in str(error.value)
    assert not (tmp_path / "x").exists()


def test_a_search_is_refused_outside_of_the_main_thread(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def call() -> None:
        try:
            tune("lr", out=tmp_path / "x")
        except UserError as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    assert "main thread" in str(raised[0])


# ---- real ones ----


@pytest.mark.slow
def test_a_search_in_the_callers_ray_and_a_run_of_what_it_found(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import ray

    # As loud as a Ray that the caller started.
    caplog.set_level(logging.INFO, logger="ray")
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)

    space = SearchSpace(parameters={"lr": LR}, confirm=None)
    config = TrainConfig(data_dir=str(birds), max_epochs=1, **TINY)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    result = tune(space, config, out=tmp_path / "search", trials=3, concurrent=1, quiet=True)
    assert capsys.readouterr().out == ""
    assert not [record for record in caplog.records if record.name.startswith("ray.tune")]
    assert ray.is_initialized()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    summary = json.loads((result.folder / "summary.json").read_text())
    assert (result.folder, summary["budget"]["used"]["trials"]) == (tmp_path / "search", 3)
    assert (result.objective, result.values) == (summary["winner"]["objective"], summary["winner"]["values"])
    assert (result.baseline, result.gain) == (summary["baseline"]["objective"], summary["gain"])
    assert (result.verdict, result.gain_ci95, result.metric) == (summary["verdict"], None, "knn_accuracy")
    assert result.best == load_config(str(result.folder / "best.yaml"))

    with pytest.raises(UserError, match="exists already"):
        tune(space, config, out=tmp_path / "search")
    assert tune(out=tmp_path / "search", resume=True) == result
    with pytest.raises(UserError, match=r"space\.budget\.trials: was 3, is 4"):
        tune(space, config, out=tmp_path / "search", trials=4, resume_or_start=True)

    run = train(result.best, overrides={"early_stopping.monitor": "val_loss"})
    assert run.folder == tmp_path / "search" / "best" and run.checkpoint.is_file()
    assert run.config.early_stopping is not None and run.config.lr == result.best.lr
    assert [row["epoch"] for row in run.history] == [1]
    assert (run.metric, run.objective, run.val_loss) == (
        *("knn_accuracy", run.history[-1]["objective"], run.history[-1]["val_loss"]),
    )
    assert f"weights   {run.checkpoint}" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        train(result.best)
    with pytest.raises(NoResult, match="diverged at epoch 1"):
        train(result.best, overwrite=True, overrides={"optimizer": "sgd", "lr": 1e30})


@pytest.mark.slow
def test_where_no_trial_is_valid_that_is_raised(birds: Path, ray_session: None, tmp_path: Path) -> None:
    space = SearchSpace(parameters={"lr": Parameter(type="loguniform", low=1e28, high=1e30)}, confirm=None)
    config = TrainConfig(data_dir=str(birds), max_epochs=1, optimizer="sgd", lr=1e30, **TINY)
    with pytest.raises(NoResult, match=r"no valid trial(.|\n)*above all of lr"):
        tune(space, config, out=tmp_path / "search", trials=2, concurrent=1)


@pytest.mark.slow
def test_a_script_needs_no_guard_and_starts_and_stops_a_ray_of_its_own(birds: Path, tmp_path: Path) -> None:
    """The ranks of a run, and Ray's workers, are processes that must not run the caller's script again."""
    script = tmp_path / "mine.py"
    script.write_text(
        "from phenoscape_tune import Parameter, SearchSpace, TrainConfig, train, tune\n"
        f"config = TrainConfig(data_dir={str(birds)!r}, max_epochs=1, **{TINY!r})\n"
        "lr = Parameter(type='loguniform', low=1e-4, high=1e-2)\n"
        "result = tune(SearchSpace(parameters={'lr': lr}, confirm=None), config, trials=2, concurrent=1, quiet=True)\n"
        "import ray\n"
        "assert not ray.is_initialized()\n"
        "run = train(result.best, overrides={'devices': 2}, quiet=True)\n"
        "print('once:', result.folder.name, run.folder.name)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=500, env=os.environ
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == "once: search best\n"
    assert (tmp_path / "outputs" / "search" / "best" / "checkpoints" / "best.ckpt").is_file()
