from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from phenoscape_tune.cli import embed
from phenoscape_tune.config import TrainConfig

Tiny = Callable[..., TrainConfig]


def run(*arguments: object) -> int:
    return embed.main([str(argument) for argument in arguments])


@pytest.fixture
def trained(tiny: Tiny, tmp_path: Path) -> Path:
    """The folder of a run whose encoder is as it began: what it is worth does not matter here."""
    from phenoscape_tune.model import build_encoder
    from phenoscape_tune.training import checkpoint

    config = tiny(backbone="test_vit.r160_in1k", accelerator="cpu", precision=32)
    encoder = build_encoder(config, 3, [0.5] * 3, [0.2] * 3)
    state = checkpoint.State(model=encoder.state_dict(), optimizer={}, config=config.to_mapping(), epoch=2)
    checkpoint.save(state, tmp_path / "run" / "checkpoints", best=True)
    return tmp_path / "run"


def test_help_imports_neither_torch_nor_ray() -> None:
    script = (
        "import sys; sys.argv = ['embed.py', '--help']\n"
        "from phenoscape_tune.cli.embed import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'timm', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: no such checkpoint"),
        (["."], "holds no checkpoints/best.ckpt"),
        (["gone", "--format", "cvs"], "'cvs' is unknown; did you mean 'csv'"),
        (["gone", "backbone=resnet18"], "backbone: embed.py takes no such key"),
        (["gone", "a", "b"], "a, b: one folder of images at a time"),
    ],
)
def test_what_is_wrong_is_one_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_search_is_told_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search.yaml").touch()
    assert run(tmp_path) == 2
    assert "is a search's folder; train its winner" in capsys.readouterr().err


def test_the_winners_of_two_searches_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = tmp_path / "outputs" / "lr_temp" / "best" / "checkpoints" / "best.ckpt"
    folder = tmp_path / "outputs" / "lr_temp-best-embeddings"
    for path in (checkpoint, folder / "embeddings.csv"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert run(checkpoint.parents[1]) == 2
    assert f"{folder}: exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_runs_own_images(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(trained) == 0
    out, err = capsys.readouterr()
    folder = tmp_path / "outputs" / "run-embeddings"
    assert "72 images, 64 features each" in out
    assert "the run's test part" in out and "95 % interval" in out
    assert "embedding images 72/72" in err
    assert {path.name for path in folder.iterdir()} == set(embed.FILES)
    told = json.loads((folder / "downstream.json").read_text())
    for row in told["classifiers"].values():
        assert 0 <= row["ci95"][0] <= row["balanced_accuracy"] <= row["ci95"][1] <= 1
    assert load_file(folder / "embeddings.safetensors")["embeddings"].shape == (72, 64)

    assert run(trained) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(trained / "checkpoints" / "last.ckpt", "--overwrite", "--format", "csv", "--quiet") == 0
    assert not (folder / "embeddings.parquet").exists()
    out, err = capsys.readouterr()
    assert not err and "written" in out
    (folder / "notes.txt").touch()
    assert run(trained, "--overwrite") == 2  # somebody's notes are never deleted
    assert (folder / "embeddings.csv").exists()


@pytest.mark.slow
def test_new_images_at_another_size_of_other_classes_and_names(
    trained: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    shutil.copytree(birds / "crow", new / "owl")
    shutil.copytree(birds / "robin", new / "wren")
    shutil.copytree(birds / "robin", os.fsdecode(os.fsencode(new) + b"/m\xfcller"))
    latin = os.fsdecode(os.fsencode(new / "wren") + b"/caf\xe9.jpg")
    shutil.copy(birds / "robin" / "00.jpg", latin)
    folder = tmp_path / "out"
    assert run(trained, new, "--out", folder, "input_size=48", "--format", "csv,parquet") == 0
    assert "5-fold cross-validation by specimen of 73 images (new data)" in capsys.readouterr().out
    assert json.loads((folder / "downstream.json").read_text())["classes"] == {"m\\xfcller": 24, "owl": 24, "wren": 25}
    with (folder / "embeddings.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        names = [row["filename"] for row in csv.DictReader(file)]
    assert "wren/" + Path(latin).name in names
    assert json.loads((folder / "backbone.json").read_text())["arguments"]["img_size"] == 48


@pytest.mark.slow
def test_one_image_and_no_image(trained: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    folder = tmp_path / "out"
    assert run(trained, tmp_path / "one", "--out", folder) == 2
    assert "is empty" in capsys.readouterr().err
    assert not folder.exists()
    shutil.copy(birds / "crow" / "00.jpg", tmp_path / "one")
    assert run(trained, tmp_path / "one", "--out", folder) == 0
    assert "no accuracy: no labels" in capsys.readouterr().out
    assert not (folder / "neighbours.png").exists()
    row = next(csv.DictReader((folder / "embeddings.csv").open(newline="")))
    assert np.isfinite([float(row[f"x{n}"]) for n in range(1, 65)]).all()


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_or_of_another_network_changes_nothing(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from phenoscape_tune.training import checkpoint

    path = trained / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    content["config"]["backbone"] = "test_resnet.r160_in1k"
    checkpoint.write(content, tmp_path / "other.ckpt")
    (tmp_path / "half.ckpt").write_bytes(path.read_bytes()[:5000])
    torch.save({"format": 1, "model": {}}, tmp_path / "old.ckpt")
    for name, message in (
        ("other.ckpt", "does not fit backbone 'test_resnet.r160_in1k'"),
        ("half.ckpt", "is not a whole checkpoint"),
        ("old.ckpt", "is of an earlier version of this project (format 1)"),
    ):
        assert run(tmp_path / name, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
    content = torch.load(path, weights_only=True)
    content["model"]["backbone.norm.weight"][:] = float("nan")
    checkpoint.write(content, tmp_path / "nan.ckpt")
    assert run(tmp_path / "nan.ckpt", "--out", tmp_path / "out") == 2
    assert "features that are no numbers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_images_of_other_channels_are_refused_by_what_differs(
    tiny: Tiny, cubes: Path, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from phenoscape_tune.training.loop import train_simclr

    plain = {"cj_prob": 0, "random_gray_scale": 0}
    config = tiny(data_dir=str(cubes), bands="uniform:5", spectral_stem=3, batch_size=4, max_epochs=1, transforms=plain)
    train_simclr(config, lambda row: None)
    folder = Path(config.out_dir)
    other = tmp_path / "other"
    for header in cubes.rglob("*.hdr"):
        target = other / header.relative_to(cubes)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(header.with_suffix(".raw"), target.with_suffix(".raw"))
        waves = "wavelength = { " + " , ".join(str(wave) for wave in range(400, 800, 20)) + " }"
        text = header.read_text()
        assert waves in text
        infrared = "wavelength = {" + ", ".join(str(wave) for wave in range(900, 1300, 20)) + "}"
        target.write_text(text.replace(waves, infrared))
    assert run(folder, other, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "was trained on other channels" in error
    assert "channel 0 is at 400 nm there, at 900 nm here" in error
    assert not (tmp_path / "out").exists()
    assert run(folder, birds, "--out", tmp_path / "out") == 2
    assert "Traceback" not in capsys.readouterr().err
    assert run(folder, "--out", tmp_path / "out", "--quiet") == 0
    assert json.loads((tmp_path / "out" / "backbone.json").read_text())["spectral_stem"] == 3


@pytest.mark.slow
def test_labels_from_a_table_and_the_accuracy_is_that_of_training(
    trained: Path, tiny: Tiny, birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from phenoscape_tune.data.parts import open_parts
    from phenoscape_tune.evaluate.objective import METRICS, classification_score

    folder = tmp_path / "out"
    assert run(trained, "--out", folder) == 0
    parts = open_parts(tiny())
    import torch

    features = torch.from_numpy(load_file(folder / "embeddings.safetensors")["embeddings"])
    assert parts.labels is not None
    bank, test = parts.split.train, parts.split.test
    told = json.loads((folder / "downstream.json").read_text())["classifiers"]
    for name, metric in (("knn", "knn_accuracy"), ("probe", "probe_accuracy")):
        score = classification_score(
            METRICS[metric], features[bank], parts.labels[bank], features[test], parts.labels[test]
        )
        assert told[name]["balanced_accuracy"] == pytest.approx(score.value)
    table = tmp_path / "table.csv"
    table.write_text("filename,label\n" + "".join(f"crow/{n:02d}.jpg,{'ab'[n % 2]}\n" for n in range(10)))
    capsys.readouterr()
    assert run(trained, f"labels={table}", "--out", tmp_path / "other") == 0
    # Other labels are other parts: what was trained on may be anywhere.
    assert "cross-validation by specimen of 10 images (these images were seen" in capsys.readouterr().out
