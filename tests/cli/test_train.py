from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from phenoscape_tune.cli import train, whole_run
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import NoResult
from phenoscape_tune.layers import load_config
from phenoscape_tune.storage import Storage
from phenoscape_tune.yaml_file import dump_mapping

TINY = [
    *("backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "batch_size=8", "projection_dim=16"),
    *("num_workers=1", "accelerator=cpu", "max_epochs=2"),
]


def run(*arguments: object) -> int:
    return train.main([str(argument) for argument in arguments])


def test_the_dry_run_prints_a_configuration_that_loads_to_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("--dry-run", "data_dir=somewhere", "lr=1e-4", "transforms.cj_strength=0.8") == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    config = load_config(str(path))
    assert (config.lr, config.transforms.cj_strength, config.data_dir) == (1e-4, 0.8, "somewhere")


def test_a_wrong_key_is_one_message_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run", "lr=abc", "temprature=1") == 2
    error = capsys.readouterr().err
    assert "lr: 'abc'" in error
    assert "did you mean 'temperature'" in error


def test_help_imports_neither_torch_nor_ray() -> None:
    script = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from phenoscape_tune.cli.train import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_a_checkpoint_that_is_fetched_appears_whole_and_a_killed_fetch_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote, folder = tmp_path / "remote", tmp_path / "run"
    (remote / "checkpoints").mkdir(parents=True)
    (remote / "config.yaml").write_text(dump_mapping(build_config({"out_dir": str(folder)}).to_mapping()))
    (remote / "checkpoints" / "last.ckpt").write_bytes(b"all of it")
    # What a process leaves that is killed while it fetches.
    begun = folder / whole_run.FETCHED / "checkpoints"
    begun.mkdir(parents=True)
    (begun / "last.ckpt").write_bytes(b"a par")
    seen, download, resumed = [], Storage.download, []

    def look_and_download(self: Storage, name: str, target: Path) -> bool:
        found = download(self, name, target)
        seen.append({path.name for path in folder.glob("*") if not path.name.startswith(".")})
        return found

    def note(config: object, resume: Path, *more: object) -> NoReturn:
        resumed.append((resume, resume.read_bytes()))
        raise NoResult

    monkeypatch.setattr(Storage, "download", look_and_download)
    monkeypatch.setattr(whole_run, "_run", note)
    own = (f"out_dir={folder}", "accelerator=cpu")
    assert run("--resume", f"file://{remote}/checkpoints/none.ckpt", *own) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    last = folder / "checkpoints" / "last.ckpt"
    assert run("--resume", f"file://{remote}/checkpoints/last.ckpt", *own) == 1
    assert resumed == [(last, b"all of it")]
    assert seen and all(names == set() for names in seen)
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.yaml"}
    assert run("--resume", f"file://{remote}/checkpoints/last.ckpt", *own) == 2
    assert f"go on with --resume {last}" in capsys.readouterr().err


@pytest.mark.slow
def test_train_resume_and_refuse(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = (f"data_dir={birds}", f"out_dir={folder}", *TINY)
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/2" in printed
    assert f"tensorboard --logdir {folder}" in printed

    assert run(*arguments) == 2
    assert "exists already" in capsys.readouterr().err

    last = folder / "checkpoints" / "last.ckpt"
    assert run("--resume", last, "max_epochs=3") == 0
    printed = capsys.readouterr().out
    assert "goes on after epoch 2" in printed
    assert [line for line in printed.splitlines() if line.startswith("changed")] == [
        "changed on purpose: max_epochs was 2, is 3"
    ]
    assert "max_epochs was 2, is 3" in (folder / "logs" / "training.log").read_text()
    assert "epoch 3/3" in printed

    other = tmp_path / "other.yaml"
    other.write_text("lr: 0.5\n")
    assert run("--config", other, "--resume", last) == 2
    assert "lr: was 0.001, is 0.5" in capsys.readouterr().err
    assert run("--resume", tmp_path / "none.ckpt") == 2

    assert run(*arguments, "--overwrite") == 0
    assert load_config(str(folder / "config.yaml")).max_epochs == 2


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_verbose_tells_cache_defaults_seconds_and_checkpoints(
    devices: int, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run("-v", f"data_dir={birds}", f"out_dir={folder}", f"cache_dir={tmp_path / 'cache'}", *TINY,
               f"devices={devices}") == 0  # fmt: skip
    out, err = capsys.readouterr()
    (packed,) = (tmp_path / "cache").glob("packed-*[0-9a-f]")
    assert f"72 images are packed in {packed}" in err
    assert "T_max=2 down to eta_min=0.0001" in err
    assert re.search(r"^epoch 2: \d+\.\d\d s of training, \d+\.\d\d s of validation, .* of saving$", err, re.M)
    assert err.count("last.ckpt and best.ckpt of epoch 1 in ") == 1
    log = (folder / "logs" / "training.log").read_text()
    assert "epoch 2/2" in out
    assert "epoch 2/2" in log
    assert "epoch 2/2" not in err
    assert "eta_min" not in out + log
    # Of this run alone.
    assert run(f"data_dir={birds}", f"out_dir={folder}", *TINY, "--overwrite") == 0
    assert "eta_min" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_diverged_run_ends_with_advice(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (f"data_dir={birds}", f"out_dir={tmp_path / 'run'}", *TINY, "optimizer=sgd", "lr=1e30")
    assert run(*arguments) == 1
    assert "diverged at epoch 1" in capsys.readouterr().err


@pytest.mark.slow
def test_what_does_not_fit_the_memory_is_one_message(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHENOSCAPE_TUNE_OOM_ABOVE", "4")
    arguments = (f"data_dir={birds}", f"out_dir={tmp_path / 'run'}", *TINY)
    assert run(*arguments, "micro_batch_size=8") == 1
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("error: out of memory")]
    assert "batch_size" in err
    assert "Traceback" not in out + err
    # Left to itself it halves what goes through the network at once.
    assert run(*arguments, "--overwrite") == 0
    assert "from here on 4 images go through" in (tmp_path / "run" / "logs" / "training.log").read_text()


@pytest.mark.slow
def test_overwriting_deletes_nothing_that_is_not_of_a_run(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    shutil.copytree(birds, project / "images")
    (project / "config.yaml").write_text("lr: 0.001\n")
    assert run(f"data_dir={project / 'images'}", f"out_dir={project}", *TINY, "--overwrite") == 2
    assert "also holds images" in capsys.readouterr().err
    assert len(list((project / "images").rglob("*.jpg"))) == 72


@pytest.mark.slow
def test_a_checkpoint_of_another_network_changes_nothing(
    birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(f"data_dir={birds}", f"out_dir={folder}", *TINY) == 0
    before = (folder / "config.yaml").read_text()
    assert run("--resume", folder / "checkpoints" / "last.ckpt", "projection_dim=32", "max_epochs=3") == 2
    assert "another network or optimiser" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("devices=4096", "devices: 4096: this machine has"),
        ("early_stopping.monitor=val_los", "did you mean 'val_loss'"),
        ("weights=nowhere.pt", "nowhere.pt: no such file"),
        ("batch_size=32 devices=2", "images on each of 2 devices are more than the training part"),
        ("accumulate_grad_batches=16", "16 of which are one step, is larger than the training part"),
    ],
)
def test_what_is_refused_deletes_nothing(
    override: str, told: str, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("lr: 0.001\n")
    (folder / "checkpoints" / "best.ckpt").write_text("precious")
    assert run(f"data_dir={birds}", f"out_dir={folder}", "--overwrite", *TINY, *override.split()) == 2
    assert told in capsys.readouterr().err
    assert (folder / "checkpoints" / "best.ckpt").read_text() == "precious"
