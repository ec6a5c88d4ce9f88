from __future__ import annotations

import numpy as np
import pytest

from phenoscape_tune.evaluate import downstream
from phenoscape_tune.evaluate.downstream import FOLDS, assign_folds, cross_validate, hold_out


def clouds(each: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Well separated features of `each` images a class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    return (4 * np.eye(classes, 6)[labels] + rng.normal(0, 0.3, (len(labels), 6))).astype(np.float32), labels


def test_specimens_stay_whole_and_every_class_is_spread() -> None:
    labels = np.repeat([0, 1, 2], [20, 6, 4])
    groups = [f"s{number // 2}" for number in range(30)]  # two images a specimen
    folds = assign_folds(labels, groups)
    assert all(len(set(folds[np.array(groups) == group])) == 1 for group in groups)
    assert all(len(set(folds[labels == c])) == min(FOLDS, size // 2) for c, size in enumerate((20, 6, 4)))
    assert np.array_equal(folds, assign_folds(labels, groups))


def test_single_specimens_and_unlabelled_images_are_left_out() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, -1])
    folds = assign_folds(labels, ["a", "b", "c", "d", "e", "e", "f"])
    assert (folds >= 0).tolist() == [True] * 4 + [False] * 3


def test_separated_classes_are_told_by_images_of_other_specimens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds(8)
    groups = [f"s{number // 2}" for number in range(24)]
    asked = []

    def watched(features: np.ndarray, labels: np.ndarray, bank: np.ndarray, queries: np.ndarray) -> object:
        asked.append({groups[i] for i in bank} & {groups[i] for i in queries})
        return hold_out(features, labels, bank, queries)

    monkeypatch.setattr(downstream, "hold_out", watched)
    judged = cross_validate(features, labels, groups)
    assert judged is not None
    assert asked == [set()] * FOLDS
    assert judged.images.tolist() == list(range(24))
    for predicted in judged.predicted.values():
        assert np.array_equal(predicted, labels)


def test_too_few_specimens_give_nothing() -> None:
    features, labels = clouds(2)
    assert cross_validate(features, labels, ["a", "a", "b", "b", "c", "c"]) is None


def test_the_probe_is_fitted_to_a_bounded_share_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downstream, "PROBE_BANK", 12)
    features, labels = clouds(40)
    bank, queries = np.arange(0, 120, 2), np.arange(1, 120, 2)
    judged = hold_out(features, labels, bank, queries)
    assert (judged.predicted[downstream.PROBE] == labels[queries]).mean() > 0.9
    asked = judged.predicted[downstream.KNN]
    assert np.array_equal(asked, labels[queries])  # which sees the whole bank
