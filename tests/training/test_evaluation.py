from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phenoscape_tune.augment import TwoViews
from phenoscape_tune.augment_spectra import NOTHING_DRAWN
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.data.parts import open_parts
from phenoscape_tune.evaluate.objective import HELD_OUT_IMAGES
from phenoscape_tune.training import evaluation
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.run import Run, RunOptions, start_run

pytestmark = pytest.mark.slow  # real training

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")


def train(config: TrainConfig, **options: Any) -> list[dict[str, Any]]:
    return train_simclr(config, lambda row: None, RunOptions(**options), CPU)


def open_run(config: TrainConfig, **options: Any) -> Run:
    return start_run(config, CPU, RunOptions(**options), open_parts(config))


def read(config: TrainConfig) -> list[dict[str, str]]:
    with (Path(config.out_dir) / "test_scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_test_part_is_measured_in_the_last_epoch_of_a_confirmation_only(tiny: Tiny) -> None:
    config = tiny()
    rows = train(config, test=True)
    assert "test_objective" not in rows[0]
    parts, written = open_parts(config), read(config)
    assert {row["filename"] for row in written} == {parts.images.specimens.names[i] for i in parts.split.test}
    assert all(float(row["score"]) == (row["label"] == row["predicted"]) for row in written)
    by_class = [[float(row["score"]) for row in written if row["label"] == name] for name in parts.classes]
    assert rows[1]["test_objective"] == pytest.approx(np.mean([np.mean(own) for own in by_class]))


def test_without_labels_the_objective_is_the_reference_contrast(tiny: Tiny, birds: Path) -> None:
    config = tiny(data_dir=str(birds / "crow"), val_fraction=0.3, test_fraction=0.3)
    rows = train(config, test=True)
    written = read(config)
    assert {(row["label"], row["predicted"]) for row in written} == {("", "")}
    assert rows[-1]["test_objective"] == pytest.approx(np.mean([float(row["score"]) for row in written]), rel=1e-4)
    # Between agreement of all views and features that tell nothing.
    n = len(open_parts(config).split.val)
    assert all(0 < row["objective"] < 2 * np.log(2 * n - 1) for row in rows)
    assert all(row["objective_error"] > 0 for row in rows)


@pytest.mark.parametrize("metric", ["knn_accuracy", "probe_accuracy", "reference_contrast", "rankme", "lidar"])
def test_every_metric_gives_a_value_each_epoch(tiny: Tiny, metric: str) -> None:
    rows = train(tiny(max_epochs=1), metric=metric, test=True)
    assert np.isfinite(rows[0]["objective"])
    assert np.isfinite(rows[0]["test_objective"])
    assert rows[0]["rankme"] >= 1
    assert rows[0]["feature_std"] > 0


def test_the_reference_views_are_those_of_the_search_whatever_the_trial_searches(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def features_of(**changes: Any) -> torch.Tensor:
        run = open_run(tiny(**changes), metric="reference_contrast", reference_seed=7)
        seen.clear()
        width = run.encoder.feature_dim
        look = lambda views: seen.append(views.clone()) or views.flatten(1)[:, :width]  # noqa: E731
        monkeypatch.setattr(run.encoder, "features", look)
        evaluation.embed_references(run, run.parts.split.val)
        return torch.cat(seen)

    views = features_of()
    changed = {"cj_strength": 0.0, "min_scale": 0.9, "gaussian_blur": 0.0}
    for changes in ({"batch_size": 32}, {"seed": 3}, {"temperature": 0.5}, {"transforms": changed}):
        assert torch.equal(features_of(**changes), views)


def test_the_objective_of_unchanged_weights_does_not_change_with_the_epoch(tiny: Tiny) -> None:
    run = open_run(tiny(), metric="reference_contrast")
    first = evaluation.validate(run)
    run.epoch += 1
    assert evaluation.validate(run) == first


def test_no_more_images_are_looked_at_than_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "HELD_OUT_IMAGES", 5)
    run = open_run(tiny(), metric="lidar")
    assert evaluation.embed_references(run, run.parts.split.val).shape[:2] == (8, 5)
    assert HELD_OUT_IMAGES == 1000


@pytest.mark.parametrize(("images", "most"), [(9, 3), (10, 3), (3, 3), (2, 3), (1999, 1000)])
def test_what_is_looked_at_is_taken_evenly_from_a_part_in_the_order_of_its_classes(
    images: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "HELD_OUT_IMAGES", most)
    chosen = evaluation._held_out(images)
    assert len(set(chosen.tolist())) == min(images, most)
    assert chosen.min() == 0
    assert images - chosen.max() <= -(-images // most) + 1
    assert np.diff(chosen).max(initial=1) <= -(-images // most)


def test_the_scores_of_a_large_test_part_stand_beside_their_own_images(
    tiny: Tiny, birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "HELD_OUT_IMAGES", 5)
    config = tiny(val_fraction=0.3, test_fraction=0.3)
    looked_at: list[np.ndarray] = []
    embed_references = evaluation.embed_references

    def watched(run: Run, part: np.ndarray) -> torch.Tensor:
        looked_at.append(part[evaluation._held_out(len(part))])
        return embed_references(run, part)

    monkeypatch.setattr(evaluation, "embed_references", watched)
    train(config, test=True, metric="reference_contrast")
    names = open_parts(config).images.specimens.names
    assert [row["filename"] for row in read(config)] == [names[i] for i in looked_at[-1]]
    assert len({Path(row["filename"]).parent for row in read(config)}) == 3  # all classes


def test_all_classes_are_looked_at(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tiny(), metric="reference_contrast")
    labels, val = run.parts.labels, run.parts.split.val
    assert labels is not None
    monkeypatch.setattr(evaluation, "HELD_OUT_IMAGES", len(val) // 2)
    seen: list[int] = []
    take = run.batches.take

    def watched(indices: np.ndarray) -> torch.Tensor:
        seen.extend(indices.tolist())
        return take(indices)

    monkeypatch.setattr(run.batches, "take", watched)
    evaluation.embed_references(run, val)
    assert set(labels[seen]) == set(labels[val])


def label_few(birds: Path, tmp_path: Path, each: int) -> Path:
    """A CSV that labels `each` images of every bird."""
    path = tmp_path / "few.csv"
    names = [f"{name}/{i:02d}.jpg,{name}" for name in ("crow", "finch", "robin") for i in range(each)]
    path.write_text("\n".join(["filename,label", *names]) + "\n")
    return path


def test_a_handful_of_labels_is_enough_for_the_knn_objective(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    config = tiny(labels=str(label_few(birds, tmp_path, 6)), max_epochs=4, lr=0.003)
    assert open_run(config).metric.name == "reference_contrast"  # so few rank worse than none
    run = open_run(config, metric="knn_accuracy")
    assert run.parts.partly_labelled
    rows = train(config, test=True, metric="knn_accuracy")
    # All labelled images of training and validation are classified, each by the others: a third of them by chance.
    labelled = sum(len(run.parts.labelled(part)) for part in (run.parts.split.train, run.parts.split.val))
    values = [row["objective"] for row in rows]
    assert max(values) > 0.6
    sizes = np.bincount(run.parts.labels[run.parts.labels >= 0]) if run.parts.labels is not None else []
    assert labelled + len(run.parts.labelled(run.parts.split.test)) == sum(sizes) == 18
    assert {row["label"] for row in read(config)} <= {"crow", "finch", "robin"}
    assert len(read(config)) == len(run.parts.labelled(run.parts.split.test))


def test_without_labels_in_the_test_part_no_gain_is_made_up(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    config = tiny(labels=str(label_few(birds, tmp_path, 2)), max_epochs=1)
    rows = train(config, test=True, metric="knn_accuracy")
    assert not len(open_parts(config).labelled(open_parts(config).split.test))
    assert "test_objective" not in rows[-1]
    assert not (Path(config.out_dir) / "test_scores.csv").exists()


FULL = Channels(("uv1", "red", "green", "blue"), rgb=(1, 2, 3), uv=(0,))
UV = Channels(("uv1", "uv2"), uv=(0, 1))
BANDS = Channels(tuple(map(str, range(9))), wavelengths=tuple(map(float, range(400, 490, 10))))


@pytest.mark.parametrize("name", evaluation.REFERENCES)
def test_the_reference_views_of_rgb_images_are_what_they_were(name: str) -> None:
    settings = {"weak": (0.2, 0.5), "moderate": (0.5, 0.2)}[name]
    guide = {"cj_prob": 0.8, "random_gray_scale": 0.2, "gaussian_blur": 0.5, "kernel_size": 0.1, "sigmas": (0.1, 2.0)}
    strength, scale = settings
    before = TwoViews(input_size=32, cj_strength=strength, min_scale=scale, hf_prob=0.5, **guide)  # type: ignore[arg-type]
    now = evaluation.reference_views(name, RGB, 32)
    assert now.spectra.draw(2, 3, torch.Generator()) == NOTHING_DRAWN
    assert replace(now, spectra=before.spectra) == before


@pytest.mark.parametrize("channels", [FULL, UV, BANDS])
def test_the_reference_views_of_other_channels_change_all_of_them(channels: Channels) -> None:
    images = torch.full((40, len(channels), 36, 36), 120, dtype=torch.uint8)  # flat: crop, flip and blur do nothing
    distances = []
    for name in (evaluation.WEAK, evaluation.MODERATE):
        views = evaluation.reference_views(name, channels, 32)
        assert (views.cj_prob > 0, views.random_gray_scale > 0) == ((channels.rgb is not None,) * 2)
        seen = views(images, torch.Generator().manual_seed(0)).view(2, 40, len(channels), -1)
        apart = (seen[0] - seen[1]).abs().mean((0, 2))  # of two views, in each channel
        assert (apart > 0.005).all()
        distances.append(float(apart.mean()))
    assert distances[0] < distances[1]
