from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.parts import open_parts
from phenoscape_tune.data.sample import write_sample
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import load_config
from phenoscape_tune.training import checkpoint
from phenoscape_tune.training.evaluation import find_neighbours, validate
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.run import Diverged, RunOptions, start_run

pytestmark = pytest.mark.slow  # real training

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")


class Stop(Exception):
    pass


def train(config: TrainConfig, options: RunOptions | None = None) -> list[dict[str, Any]]:
    return train_simclr(config, lambda row: None, options, CPU)


def stop_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise Stop

    return report


def test_a_run_leaves_its_folder_and_reports_every_epoch(tiny: Tiny) -> None:
    config = tiny(log_every_n_steps=2)
    rows: list[dict[str, Any]] = []
    train_simclr(config, rows.append, device=CPU)
    assert [row["epoch"] for row in rows] == [1, 2]
    measured = ("train_loss", "val_loss", "objective", "objective_error", "lr", "images_per_second", "seconds")
    for row in rows:
        assert all(np.isfinite(row[key]) for key in measured)
    folder = Path(config.out_dir)
    told = config.model_copy(update={"modality": "rgb"})  # by the files
    assert load_config(str(folder / "config.yaml")) == told
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    log = (folder / "logs" / "training.log").read_text()
    assert "72 images" in log
    assert "3 class sub-folders" in log
    assert "epoch 2/2" in log
    assert "gradient_norm" in log
    assert "images packed at" in log
    assert list((folder / "logs" / "tensorboard").glob("events*"))


def test_images_that_are_not_packed_train_the_same_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    packed = train(tiny(precision=32, out_dir=str(tmp_path / "a")))
    loader = {"num_workers": 2, "pin_memory": True, "persistent_workers": True, "cache_dir": str(tmp_path / "cache")}
    unpacked = train(tiny(pack=False, precision=32, out_dir=str(tmp_path / "b"), **loader))
    for key in ("train_loss", "val_loss", "objective"):
        assert [row[key] for row in unpacked] == [row[key] for row in packed]
    assert "decoded anew in each epoch by 2 threads" in (tmp_path / "b" / "logs" / "training.log").read_text()
    assert not list((tmp_path / "cache").glob("packed-*"))


def test_a_run_with_a_spectral_stem_says_so_and_goes_on_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    keys = {"spectral_stem": 2, "precision": 32}
    unbroken = tiny(out_dir=str(tmp_path / "a"), **keys)
    rows = train(unbroken)
    log = (tmp_path / "a" / "logs" / "training.log").read_text()
    assert "spectral_stem: 3 channels are mixed to 2 by a learned 1x1 convolution" in log
    broken = tiny(out_dir=str(tmp_path / "b"), **keys)
    with pytest.raises(Stop):
        train_simclr(broken, stop_after(1), device=CPU)
    resumed = train(broken, RunOptions(resume=tmp_path / "b" / "checkpoints" / "last.ckpt"))
    assert [row["objective"] for row in resumed] == [row["objective"] for row in rows]
    ends = [checkpoint.load(tmp_path / name / "checkpoints" / "last.ckpt").model for name in "ab"]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert "spectral_stem.0.weight" in ends[0]


def test_a_run_on_spectra_shows_their_means_once(tiny: Tiny, cubes: Path) -> None:
    colourless = {"cj_prob": 0, "random_gray_scale": 0}
    config = tiny(data_dir=str(cubes), spectral_stem=3, batch_size=4, transforms=colourless)
    with pytest.raises(Stop):
        train_simclr(config, stop_after(1), device=CPU)
    train(config, RunOptions(resume=Path(config.out_dir) / "checkpoints" / "last.ckpt"))
    events = EventAccumulator(str(Path(config.out_dir) / "logs" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    shown = {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}
    names = ("mean spectra by class", "augmented views: 640, 540, 440 nm", "nearest neighbours")
    assert set(shown) == {f"views/{name}" for name in names}
    assert set(shown.values()) == {1}
    log = (Path(config.out_dir) / "logs" / "training.log").read_text()
    assert "spectral_stem: 20 channels are mixed to 3 by a learned 1x1 convolution" in log


def test_at_its_end_a_run_shows_images_with_their_nearest_neighbours(tiny: Tiny) -> None:
    stopping = {"monitor": "val_loss", "patience": 1, "min_delta": 9.0}
    for changes, epochs in (({"max_epochs": 2}, 2), ({"max_epochs": 9, "early_stopping": stopping}, 2)):
        config = tiny(**changes)
        assert len(train(config)) == epochs
        folder = Path(config.out_dir)
        events = EventAccumulator(str(folder / "logs" / "tensorboard")).Reload()
        (event,) = events.Images("views/nearest neighbours")
        picture = Image.open(io.BytesIO(event.encoded_image_string))
        assert picture.size == (event.width, event.height)
        assert picture.format == "JPEG"
        shutil.rmtree(folder)


def test_neighbours_are_of_the_validation_part_and_of_all_classes(tiny: Tiny) -> None:
    config = tiny()
    parts = open_parts(config)
    run = start_run(config, CPU, RunOptions(), parts)
    queries, found = find_neighbours(run)
    val, labels = set(parts.split.val.tolist()), parts.labels
    assert labels is not None
    assert len(queries) == 6 and set(labels[queries]) == {0, 1, 2}
    for query, others in zip(queries, found, strict=True):
        assert {query, *others.tolist()} <= val
        assert query not in others and len(others) == 5


def test_the_loss_falls(tiny: Tiny) -> None:
    rows = train(tiny(max_epochs=8, batch_size=16, lr=0.003))
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] - 0.1


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    unbroken = tiny(max_epochs=4, out_dir=str(tmp_path / "a"), precision=32)
    broken = tiny(max_epochs=4, out_dir=str(tmp_path / "b"), precision=32)
    whole = train(unbroken)
    with pytest.raises(Stop):
        train_simclr(broken, stop_after(2), device=CPU)
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    rows = train(broken, RunOptions(resume=last))
    for key in ("train_loss", "val_loss", "objective", "lr"):
        assert [row[key] for row in rows] == [row[key] for row in whole]
    a, b = (checkpoint.load(tmp_path / run / "checkpoints" / "last.ckpt") for run in "ab")
    assert all(torch.equal(a.model[key], b.model[key]) for key in a.model)


def test_a_resumed_run_reports_again_what_was_not_reported(tiny: Tiny) -> None:
    config = tiny(max_epochs=4)
    with pytest.raises(Stop):
        train_simclr(config, stop_after(3), device=CPU)
    epochs: list[int] = []
    last = Path(config.out_dir) / "checkpoints" / "last.ckpt"
    options = RunOptions(resume=last, reported_epochs=1)
    train_simclr(config, lambda row: epochs.append(row["epoch"]), options, CPU)
    assert epochs == [2, 3, 4]


def test_a_non_finite_loss_ends_the_run_at_once(tiny: Tiny) -> None:
    with pytest.raises(Diverged) as caught:
        train(tiny(optimizer="sgd", lr=1e30, warmup_epochs=0, precision=32, max_epochs=5))
    assert caught.value.epoch == 1
    assert str(caught.value) == "diverged at epoch 1"


def test_each_seed_trains_another_network_on_the_same_parts(tiny: Tiny, tmp_path: Path) -> None:
    a = train(tiny(seed=1, out_dir=str(tmp_path / "1"), max_epochs=1))
    b = train(tiny(seed=2, out_dir=str(tmp_path / "2"), max_epochs=1))
    again = train(tiny(seed=1, out_dir=str(tmp_path / "3"), max_epochs=1))
    assert a[0]["train_loss"] != b[0]["train_loss"]
    assert a[0]["train_loss"] == again[0]["train_loss"]
    split = [open_parts(tiny(seed=seed)).split.val.tolist() for seed in (1, 2)]
    assert split[0] == split[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "gradient_clip": 0.1},
        {"optimizer": "lars", "lr": 0.1},
        {"precision": "bf16"},
        {"precision": 16},
        {"T_max": 1},
        {"accumulate_grad_batches": 2},
        {"gradient_checkpointing": True, "backbone": "resnet10t", "micro_batch_size": 4},
        {"balance": True},
        {"sync_batchnorm": True, "strategy": "ddp"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_training_options_run(tiny: Tiny, changes: dict[str, Any]) -> None:
    assert np.isfinite(train(tiny(max_epochs=1, deterministic=True, **changes))[0]["val_loss"])


def test_two_deterministic_runs_are_equal_to_the_bit(tiny: Tiny, tmp_path: Path) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        train(tiny(deterministic=True, out_dir=str(tmp_path / name)))
        return checkpoint.load(tmp_path / name / "checkpoints" / "last.ckpt").model

    first, second = weights("a"), weights("b")
    assert not torch.are_deterministic_algorithms_enabled()  # what a run sets ends with it
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_batch_of_several_is_told_where_the_images_are_too_few(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"batch_size: 8, 16 of which are one step, is larger than the training part"):
        train(tiny(accumulate_grad_batches=16))


def test_versions_and_what_precision_became_are_recorded(tiny: Tiny) -> None:
    config = tiny(max_epochs=1, precision=16, accelerator="cpu")
    train(config)
    log = (Path(config.out_dir) / "logs" / "training.log").read_text()
    assert "precision: 16 is for GPUs: here it is" in log
    assert f"torch {torch.__version__.split('+')[0]}" in log
    recorded = json.loads((Path(config.out_dir) / "logs" / "versions.json").read_text())
    assert recorded["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_gradients_are_finite_at_a_size_where_the_network_runs_out_of_pixels(tiny: Tiny) -> None:
    config = tiny(input_size=16, precision="bf16", gradient_clip=1.0, max_epochs=3)
    assert np.isfinite([row["train_loss"] for row in train(config)]).all()
    assert "precision: 32 instead of bf16" in (Path(config.out_dir) / "logs" / "training.log").read_text()


def test_trained_features_beat_untrained_ones_on_the_sample_specimens(tmp_path: Path) -> None:
    values = {"data_dir": str(write_sample(tmp_path / "sample", per_class=60)), "out_dir": str(tmp_path / "run")}
    config = load_config("sample", {**values, "max_epochs": 16, "seed": 0})
    run = start_run(config, CPU, RunOptions(), open_parts(config))
    untrained = validate(run)["objective"]
    rows = train(config)
    assert rows[-1]["objective_mean"] > untrained + 0.05


def test_a_run_goes_on_when_the_weights_that_it_started_from_are_gone(
    tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    first = tiny(max_epochs=1, out_dir=str(tmp_path / "first"))
    train_simclr(first, lambda row: None)
    weights = tmp_path / "weights.ckpt"
    shutil.move(tmp_path / "first" / "checkpoints" / "best.ckpt", weights)
    config = tiny(weights=str(weights), max_epochs=2)
    rows = train_simclr(config, lambda row: None)
    weights.unlink()
    last = Path(config.out_dir) / "checkpoints" / "last.ckpt"
    again = train_simclr(config, lambda row: None, RunOptions(resume=last))
    assert again == rows
