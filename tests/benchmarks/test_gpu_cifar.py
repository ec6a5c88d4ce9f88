"""The benchmark on a GPU: its files are what the commands take, and without a GPU it says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_cifar
import pytest
import torch
from PIL import Image

from phenoscape_tune.layers import load_config
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.space import load_space


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "cifar" / part / name).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (32, 32)).save(tmp_path / "cifar" / part / name / f"{number}.jpg")
    return tmp_path / "cifar"


@pytest.mark.parametrize("size", [gpu_cifar.FULL, gpu_cifar.SMALL])
def test_the_space_and_the_configuration_are_a_search(size: gpu_cifar.Size, tmp_path: Path) -> None:
    space, _ = load_space(str(gpu_cifar.HERE / "gpu_cifar_space.yaml"))
    base = load_config(str(gpu_cifar.HERE / "gpu_cifar.yaml"))
    assert set(space.parameters) == {"lr", "temperature", "transforms.cj_strength", "transforms.min_scale"}
    assert space.budget.trials == gpu_cifar.FULL.trials
    plan = make_plan(space, base, size.trial_epochs, tmp_path)
    assert plan.rungs.max_epochs == size.trial_epochs


def test_a_part_is_linked_once(cifar: Path, tmp_path: Path) -> None:
    for _ in range(2):
        part = gpu_cifar.link_part(cifar / "train", tmp_path / "part", 2)
    assert sorted(path.name for path in (part / "cat").iterdir()) == ["0.jpg", "1.jpg"]
    assert (part / "dog" / "1.jpg").resolve() == (cifar / "train" / "dog" / "1.jpg").resolve()


def run(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu_cifar.py", *words])
        gpu_cifar.main()


def test_a_folder_that_is_not_in_two_parts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--data", str(tmp_path), "--small")
    assert ended.value.code == 2
    assert "has no sub-folder train" in capsys.readouterr().err


def test_a_commands_seconds_go_on_where_it_was_interrupted(tmp_path: Path) -> None:
    (tmp_path / "seconds.json").write_text('{"train.py": 100.0, "tune.py": 5.0}')
    taken = gpu_cifar.run_command(tmp_path, "train.py", "--help")
    assert taken >= 100.0
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"train.py": taken, "tune.py": 5.0}
    with pytest.raises(SystemExit) as ended:
        gpu_cifar.run_command(tmp_path, "train.py", "data_dir=nowhere")
    assert ended.value.code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(cifar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--data", str(cifar))
    assert ended.value.code == 2
    assert "needs a GPU" in capsys.readouterr().err
