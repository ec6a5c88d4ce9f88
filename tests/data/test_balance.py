from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.data.balance import balanced_order


def draw(labels: list[int], span: int, seed: int = 0) -> np.ndarray:
    """The batches (steps, span) of one epoch over all images with these labels."""
    known, part = np.array(labels), np.arange(len(labels))
    steps = len(labels) // span
    return balanced_order(part, known, span, steps, np.random.default_rng(seed)).reshape(steps, span)


def test_rare_classes_come_again_and_no_image_of_a_common_one_does() -> None:
    labels = [0] * 90 + [1] * 12
    batches = draw(labels, 10)
    seen, times = np.unique(batches, return_counts=True)
    assert batches.shape == (10, 10)
    assert (np.array(labels)[batches] == 1).sum(axis=1).tolist() == [5] * 10
    assert times[seen < 90].max() == 1
    assert sorted(times[seen >= 90]) == [4] * 10 + [5] * 2  # 50 draws of 12: four passes, and two images more


def test_a_class_of_few_images_is_whole_in_every_batch_and_leaves_the_rest_to_others() -> None:
    labels = np.array([0] * 60 + [1] * 38 + [2] * 2)
    batches = draw(labels.tolist(), 20)
    assert [np.bincount(labels[batch]).tolist() for batch in batches] == [[9, 9, 2]] * 5
    assert all(len(set(batch)) == 20 for batch in batches)


def test_unlabelled_images_keep_their_share() -> None:
    labels = np.array([-1] * 80 + [0] * 15 + [1] * 5)
    batches = draw(labels.tolist(), 20)
    assert np.bincount(labels[batches.ravel()] + 1).tolist() == [80, 10, 10]
    assert np.bincount(draw([-1] * 30, 10).ravel()).tolist() == [1] * 30


def test_the_passes_of_a_rare_class_differ() -> None:
    rare = [image for image in draw([0] * 196 + [1] * 4, 10).ravel() if image >= 196]
    passes = {tuple(rare[start : start + 4]) for start in range(0, 80, 4)}
    assert len(passes) > 5


populations = st.lists(st.integers(-1, 4), min_size=2, max_size=120)


@settings(max_examples=100, deadline=None)
@given(populations, st.integers(2, 40), st.integers(0, 5), st.integers(0, 20))
def test_properties(labels: list[int], span: int, seed: int, left_out: int) -> None:
    # The part is not the whole folder, and its indices have gaps.
    part = np.arange(len(labels))[np.arange(len(labels)) % 7 != left_out % 7]
    steps = len(part) // span
    if not steps:
        return
    known = np.array(labels)
    batches = balanced_order(part, known, span, steps, np.random.default_rng(seed)).reshape(steps, span)
    again = balanced_order(part, known, span, steps, np.random.default_rng(seed)).reshape(steps, span)
    assert (batches == again).all()
    assert batches.dtype == np.int64
    assert set(batches.ravel()) <= set(part.tolist())
    assert all(len(set(batch)) == span for batch in batches)

    sizes = {label: int((known[part] == label).sum()) for label in sorted(set(known[part].tolist()))}
    counts = {label: int((known[batches] == label).sum()) for label in sizes}
    if -1 in sizes:
        assert counts[-1] == pytest.approx(steps * span * sizes[-1] / len(part), abs=0.51)
    # Even but for classes that have every image in every batch.
    free = [counts[label] for label in sizes if label >= 0 and counts[label] < steps * sizes[label]]
    bound = [counts[label] for label in sizes if label >= 0 and counts[label] == steps * sizes[label]]
    if free:
        assert max(free) - min(free) <= 1
        assert max(bound, default=0) <= max(free) + 1
    for label in sizes:
        held = (known[batches] == label).sum(axis=1)
        assert held.max() - held.min() <= 1
        own = part[known[part] == label]
        times = np.array([(batches == image).sum() for image in own])
        assert times.max() - times.min() <= 1
