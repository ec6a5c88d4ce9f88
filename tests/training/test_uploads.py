from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.layers import load_config
from phenoscape_tune.storage import Storage
from phenoscape_tune.training import checkpoint
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.uploads import find_last


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_copied_with_its_checkpoints_configuration_and_logs(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    config = tiny(storage=f"file://{remote}", max_epochs=3)
    seen = []

    def report(row: dict[str, object]) -> None:
        seen.append(row)

    train_simclr(config, report)
    local = Path(config.out_dir)
    assert names(remote) == names(local) - {"checkpoints/previous.ckpt", "images.lock"}
    for name in ("last.ckpt", "best.ckpt"):
        assert (remote / "checkpoints" / name).read_bytes() == (local / "checkpoints" / name).read_bytes()
    assert load_config(str(remote / "config.yaml")) == config.model_copy(update={"modality": "rgb"})
    assert "epoch 3/3" in (remote / "logs" / "training.log").read_text()
    assert all("note" not in row for row in seen)


def test_a_storage_that_breaks_during_a_run_is_said_and_no_fault(
    tiny: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phenoscape_tune.mirror.WAITS", (0.0, 0.0))
    config = tiny(storage=f"file://{tmp_path / 'remote'}", max_epochs=4)
    rows = []

    def refuse(*arguments: object) -> None:
        raise OSError("AWS Error NETWORK_CONNECTION")

    def report(row: dict[str, object]) -> None:
        rows.append(row)
        if row["epoch"] == 1:
            monkeypatch.setattr(Storage, "upload", refuse)

    history = train_simclr(config, report)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert "NETWORK_CONNECTION" in next(str(row["note"]) for row in rows if "note" in row)
    log = (Path(config.out_dir) / "logs" / "training.log").read_text()
    assert log.count("training goes on without") == 1


def state(epoch: int) -> checkpoint.State:
    return checkpoint.State({"w": torch.ones(2)}, {}, {}, epoch, [{"epoch": e} for e in range(1, epoch + 1)])


def test_a_trial_goes_on_from_what_is_newest_and_whole(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    remote, plain = tmp_path / "remote", tiny()
    config = tiny(storage=f"file://{remote}")
    local = Path(config.out_dir) / "checkpoints"
    assert find_last(config, 0) == (None, None)
    # It ran on another machine.
    checkpoint.save(state(5), tmp_path / "other", best=False)
    Storage(f"file://{remote}").upload(tmp_path / "other" / "last.ckpt", "checkpoints/last.ckpt")
    assert find_last(plain, 5) == (None, None)
    assert find_last(config, 5) == (local / "last.ckpt", f"goes on from file://{remote}, epoch 5")
    assert checkpoint.load(local / "last.ckpt").epoch == 5
    # It was here before, and elsewhere since.
    shutil.rmtree(local)
    checkpoint.save(state(2), local, best=False)
    assert find_last(config, 4)[1] == f"goes on from file://{remote}, epoch 5"
    # What is here is as new as what was reported.
    shutil.rmtree(local)
    checkpoint.save(state(4), local, best=False)
    assert find_last(config, 4) == (local / "last.ckpt", None)
    # What is there is damaged, or older than what is here.
    (remote / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    assert find_last(config, 9) == (local / "last.ckpt", None)
    assert sorted(path.name for path in local.iterdir()) == ["last.ckpt"]


@pytest.mark.slow
def test_a_run_on_s3_goes_on_on_another_machine(
    birds: Path, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from phenoscape_tune.cli.train import main

    small = ["backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "projection_dim=16", "batch_size=8"]
    own = [f"data_dir={birds}", "num_workers=1", "accelerator=cpu", f"storage={bucket}/run", *small]
    assert main([*own, f"out_dir={tmp_path / 'here'}", "max_epochs=2", "--quiet"]) == 0
    shutil.rmtree(tmp_path / "here")
    there = tmp_path / "there"
    url = f"{bucket}/run/checkpoints/last.ckpt"
    assert main(["--resume", url, f"out_dir={there}", "max_epochs=3", "--quiet"]) == 0
    history = checkpoint.load(there / "checkpoints" / "last.ckpt").history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert Storage(f"{bucket}/run").download("checkpoints/last.ckpt", tmp_path / "again.ckpt")
    assert checkpoint.load(tmp_path / "again.ckpt").epoch == 3
    # The folder is there now, and is not overwritten by accident; a wrong URL is told.
    assert main(["--resume", url, f"out_dir={there}", "--quiet"]) == 2
    assert main(["--resume", f"{bucket}/none/checkpoints/last.ckpt", f"out_dir={tmp_path / 'x'}", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "there: exists already; go on with --resume" in said and "holds no config.yaml" in said
