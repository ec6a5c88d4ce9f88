from __future__ import annotations

import numpy as np
import pytest
import torch

from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate import label_free
from phenoscape_tune.evaluate.objective import (
    METRICS,
    check_metric,
    choose_metric,
    classification_score,
    collapsed,
    few_labels_score,
    label_free_score,
    trial_objective,
)


def test_auto_follows_the_labels() -> None:
    assert choose_metric("auto", labelled=True).name == "knn_accuracy"
    assert choose_metric("auto", labelled=False).name == "reference_contrast"
    assert choose_metric("auto", labelled=True, few=True).name == "reference_contrast"
    assert choose_metric("knn_accuracy", labelled=True, few=True).name == "knn_accuracy"


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_that_is_asked_for_is_used(name: str) -> None:
    assert choose_metric(name, labelled=True) is METRICS[name]


@pytest.mark.parametrize("name", ["knn_accuracy", "probe_accuracy"])
def test_without_labels_the_message_says_how_to_give_them(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"objective\.metric: {name} needs labels.*sub-folder.*labels=FILE\.csv.*a few a class"
    ):
        choose_metric(name, labelled=False)


def test_a_misspelt_metric_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="knn_acuracy.*did you mean 'knn_accuracy'"):
        check_metric("knn_acuracy")


@pytest.mark.parametrize("name", ["val_loss", "train_loss", "nt_xent"])
def test_a_loss_cannot_rank_trials_and_the_message_says_why(name: str) -> None:
    with pytest.raises(ValueError, match="easiest task.*write auto"):
        check_metric(name)


def test_a_trials_objective_is_the_mean_of_its_last_three_evaluations() -> None:
    assert trial_objective([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.3)
    assert trial_objective([0.5]) == 0.5


@pytest.mark.parametrize("name", ["knn_accuracy", "probe_accuracy"])
def test_separated_features_score_one_without_error(name: str) -> None:
    labels = np.repeat([0, 1], 10)
    features = torch.eye(2).repeat_interleave(10, dim=0)
    score = classification_score(METRICS[name], features, labels, features, labels)
    assert (score.value, score.error) == (1.0, 0.0)
    assert score.predicted is not None and score.specimens is not None
    assert score.predicted.tolist() == labels.tolist()
    assert score.specimens.tolist() == [1.0] * 20


def test_few_labels_are_judged_each_by_the_others() -> None:
    labels = np.repeat([0, 1, 2], 3)
    features = torch.eye(3).repeat_interleave(3, dim=0)
    assert few_labels_score(features, labels, [str(i) for i in range(9)]).value == 1.0
    # Photographs of one specimen do not vote for each other: then nobody is left who knows the class.
    alone = few_labels_score(features, labels, ["a"] * 3 + ["b"] * 3 + ["c"] * 3)
    assert alone.value == 0.0


def test_the_reference_contrast_is_the_mean_of_its_images() -> None:
    views = torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(0))
    score = label_free_score(METRICS["reference_contrast"], views)
    assert score.specimens is not None and score.error is not None
    assert score.value == pytest.approx(score.specimens.mean())
    assert score.error == pytest.approx(score.specimens.std(ddof=1) / 40**0.5)
    pairs = [label_free.reference_contrast(views[:2]), label_free.reference_contrast(views[2:])]
    assert score.value == pytest.approx(np.mean(pairs))
    same = label_free_score(METRICS["reference_contrast"], views[:1].repeat(4, 1, 1))
    assert same.value < score.value  # lower is better, and views that agree are
    assert not METRICS["reference_contrast"].higher_is_better


def test_ranks_have_no_parts_that_a_bootstrap_could_draw() -> None:
    views = torch.randn(8, 30, 6, generator=torch.Generator().manual_seed(0))
    for name in ("rankme", "lidar"):
        score = label_free_score(METRICS[name], views)
        assert 1 < score.value <= 6
        assert score.error is None and score.specimens is None


STDS = [(0.0, True), (0.001, True), (float("nan"), True), (0.3, False), (1.0, False)]


@pytest.mark.parametrize(("std", "gone"), STDS)
def test_features_that_no_longer_differ_have_collapsed(std: float, gone: bool) -> None:
    assert collapsed(std) == gone
