"""What judges a run: after each epoch validation loss, objective, signs of a collapse; at the end the test part."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.augment import TwoViews, ViewParameters, build_views, plain_view
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.evaluate.label_free import feature_std, rankme
from phenoscape_tune.evaluate.neighbours import choose_queries, nearest
from phenoscape_tune.evaluate.objective import (
    FEW_LABELS,
    HELD_OUT_IMAGES,
    MODERATE,
    WEAK,
    Score,
    classification_score,
    few_labels_score,
    label_free_score,
)
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training.run import Diverged, Row, Run, stream
from phenoscape_tune.transforms import TransformsConfig

SHOWN_QUERIES = 6  # images that are shown with their nearest neighbours
VALIDATION_SEED, REFERENCE_SEED = 2, 3  # streams of random numbers within one seed
# The reference views of the label-free scores: the same augmentations whatever the run's own is. How far the ranking
# leans on them is measured in docs/objectives.md.
REFERENCE_CHUNK = 64  # images
REFERENCES = {
    WEAK: TransformsConfig(cj_strength=0.2, min_scale=0.5),
    MODERATE: TransformsConfig(cj_strength=0.5, min_scale=0.2),
}
# What is beside red, green and blue would tell one view by the other if it stayed as it is.
_PROBABILITIES = {"gain_prob": 0.8, "offset_prob": 0.5, "noise_prob": 0.5}
BEYOND_RGB = {
    WEAK: {**_PROBABILITIES, "gain_strength": 0.04, "offset_strength": 0.01, "noise_strength": 0.005},
    MODERATE: {**_PROBABILITIES, "gain_strength": 0.1, "offset_strength": 0.02, "noise_strength": 0.01},
}


def reference_views(name: str, channels: Channels, input_size: int) -> TwoViews:
    """The reference views of a name, the same whatever the run's own transforms are.

    Jitter and greyscale only where there are red, green and blue; gain, offset and noise where there are others.
    """
    changes = {} if channels.rgb is not None else {"cj_prob": 0.0, "random_gray_scale": 0.0}
    if channels.rgb is None or len(channels) > len(channels.rgb):
        changes |= BEYOND_RGB[name]
    return build_views(REFERENCES[name].model_copy(update=changes), channels, input_size)


@torch.no_grad()
def validate(run: Run) -> Row:
    """Validation loss on the run's own augmentation and temperature, the objective, and the signs of a collapse."""
    run.encoder.eval()
    val = run.parts.split.val
    generator = torch.Generator().manual_seed(stream(run.config.seed, VALIDATION_SEED, 0))
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    batch = run.batches.batch_size * ranks.world_size()  # as many negatives as in training
    for indices, drawn in _drawn(run, val, run.two_views, batch, 2, generator):
        views = run.two_views.apply(run.batches.take(indices), drawn).contiguous(memory_format=torch.channels_last)
        with run.autocast():
            z = torch.cat([run.encoder(rows)[1] for rows in views.split(run.gradient_step.rows)])
        total += nt_xent(z, run.config.temperature, over_ranks=False) * len(indices)
    loss = float(ranks.mean_over_ranks(total)) * ranks.world_size() / len(val)
    if not math.isfinite(loss):
        raise Diverged(run.epoch)
    features = embed(run, val)  # (n, D)
    score = measure_validation(run, features)
    row: Row = {"val_loss": loss, "objective": score.value}
    if score.error is not None:
        row["objective_error"] = score.error
    return row | {"rankme": rankme(features[_held_out(len(features))]), "feature_std": feature_std(features)}


def measure(run: Run, part: np.ndarray, features: Tensor) -> Score:
    """The run's objective on a part, whose plain `features` (n, D) are known."""
    metric, parts = run.metric, run.parts
    if metric.views:
        return label_free_score(metric, embed_references(run, part))
    if not metric.needs_labels:
        return label_free_score(metric, features[None, _held_out(len(features))])
    assert parts.labels is not None
    bank = parts.labelled(parts.split.train)
    labelled = parts.labels[part] >= 0
    return classification_score(
        metric, embed(run, bank), parts.labels[bank], features[torch.from_numpy(labelled)], parts.labels[part][labelled]
    )


def measure_validation(run: Run, features: Tensor) -> Score:
    """The run's objective on the validation part, whose plain `features` (n, D) are known.

    Where few of its images are labelled, kNN classifies the labelled training images too, each by all the others: the
    labels were not trained on.
    """
    parts = run.parts
    if run.metric.name != "knn_accuracy" or not parts.partly_labelled:
        return measure(run, parts.split.val, features)
    labelled = parts.labelled(parts.split.val)
    if len(labelled) >= FEW_LABELS:
        return measure(run, parts.split.val, features)
    assert parts.labels is not None
    known = np.concatenate([parts.labelled(parts.split.train), labelled])
    groups = parts.images.specimens.groups
    return few_labels_score(embed(run, known), parts.labels[known], [groups[i] for i in known])


def test(run: Run) -> Row:
    """The objective on the test part, which no choice was made on; a line a specimen goes to `test_scores.csv`."""
    part = run.parts.split.test
    measured = run.parts.labelled(part) if run.metric.needs_labels else part[_held_out(len(part))]
    bank = run.parts.labelled(run.parts.split.train)
    if not len(measured) or (run.metric.needs_labels and not len(bank)):
        return {}
    score = measure(run, part, embed(run, part))
    row = {"test_objective": score.value}
    if score.error is not None:
        row["test_error"] = score.error
    if score.specimens is None or ranks.rank():
        return row
    specimens = run.parts.images.specimens
    names, groups, classes, labels = specimens.names, specimens.groups, specimens.classes, run.parts.labels
    # File names need not be UTF-8: as they are on the disk they are written.
    with (run.folder / "test_scores.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "group", "label", "predicted", "score"])
        for i, (index, value) in enumerate(zip(measured, score.specimens, strict=True)):
            # The gain is balanced over what stands there: a score that needs no labels is not.
            label = classes[labels[index]] if labels is not None and run.metric.needs_labels else ""
            predicted = classes[score.predicted[i]] if score.predicted is not None else ""
            writer.writerow([names[index], groups[index], label, predicted, f"{value:.6g}"])
    return row


def find_neighbours(run: Run) -> tuple[np.ndarray, list[np.ndarray]]:
    """The indices of some validation images, of all classes in turn, and for each those of the nearest other specimens'
    validation images by the features h, the nearest first."""
    val, labels = run.parts.split.val, run.parts.labels
    part = val[_held_out(len(val))]
    features = embed(run, part).cpu().numpy()  # (n, D)
    known = part if labels is None else run.parts.labelled(part)
    candidates = np.flatnonzero(np.isin(part, known)) if len(known) else np.arange(len(part))
    queries = choose_queries(candidates, None if labels is None else labels[part], SHOWN_QUERIES)
    groups = run.parts.images.specimens.groups
    return part[queries], [part[found] for found in nearest(features, queries, [groups[index] for index in part])]


@torch.no_grad()
def embed(run: Run, part: np.ndarray) -> Tensor:
    """Backbone features h (n, D), float32, of whole images without augmentation; the ranks share the work."""
    run.encoder.eval()
    features = [torch.empty(0, run.encoder.feature_dim, device=run.device)]
    for images in run.batches.in_order(part[ranks.rank() :: ranks.world_size()]):
        views = plain_view(images, run.config.input_size).contiguous(memory_format=torch.channels_last)
        with run.autocast():
            features += [run.encoder.features(rows).float() for rows in views.split(run.gradient_step.rows)]
    return ranks.gather_shares(torch.cat(features), len(part))


@torch.no_grad()
def embed_references(run: Run, part: np.ndarray) -> Tensor:
    """Backbone features (q, n, D), float32, of the metric's q reference views of up to `HELD_OUT_IMAGES` images.

    What is drawn follows from the search's seed alone: every trial, and every epoch, sees the same views.
    """
    run.encoder.eval()
    held_out, seen = part[_held_out(len(part))], []
    for number, (name, count) in enumerate(run.metric.views):
        reference = reference_views(name, run.parts.images.channels, run.config.input_size)
        generator = torch.Generator().manual_seed(stream(run.reference_seed, REFERENCE_SEED, number))
        features = [torch.empty(0, REFERENCE_CHUNK, count, run.encoder.feature_dim, device=run.device)]
        # In chunks of its own: drawn by the run's batch size, trials that search it would see other views.
        for indices, drawn in _drawn(run, held_out, reference, REFERENCE_CHUNK, count, generator):
            views = reference.apply(run.batches.take(indices), drawn).contiguous(memory_format=torch.channels_last)
            with run.autocast():
                h = torch.stack([run.encoder.features(view).float() for view in views.split(len(indices))], dim=1)
            features.append(F.pad(h, (0, 0, 0, 0, 0, REFERENCE_CHUNK - len(indices)))[None])  # (1, chunk, count, D)
        chunks = ranks.gather_shares(torch.cat(features), -(-len(held_out) // REFERENCE_CHUNK))
        seen.append(chunks.flatten(0, 1)[: len(held_out)].transpose(0, 1))  # (count, n, D)
    return torch.cat(seen)


def _held_out(images: int) -> np.ndarray:
    """Which of a part's images the label-free scores look at: `HELD_OUT_IMAGES` at most, taken evenly. A part is in the
    order of its files, so that the first ones would be those of the first classes."""
    most = min(images, HELD_OUT_IMAGES)
    return np.arange(most) * images // max(1, most)


def _drawn(
    run: Run, part: np.ndarray, transform: TwoViews, size: int, count: int, generator: torch.Generator
) -> Iterator[tuple[np.ndarray, ViewParameters]]:
    """This rank's chunks of a part, with the `count` views that are drawn of each.

    What is drawn is the same whatever the number of ranks: each draws for all, and applies its own.
    """
    height, width = run.batches.size
    for number, start in enumerate(range(0, len(part), size)):
        indices = part[start : start + size]
        drawn = transform.draw(len(indices), height, width, generator, count)
        if number % ranks.world_size() == ranks.rank():
            yield indices, drawn
