from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.evaluate import knn


def slow_vote(bank: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int) -> int:
    """DINO's weighted vote, one query at a time."""
    similarity = [float(b @ query / np.linalg.norm(b) / np.linalg.norm(query)) for b in bank]
    votes = {int(c): 0.0 for c in labels}
    for index in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
        votes[int(labels[index])] += float(np.exp(similarity[index] / 0.07))
    return max(votes, key=lambda c: votes[c])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 8))
def test_equals_the_vote_one_query_at_a_time(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], 8)
    bank, queries = rng.normal(size=(24, 5)), rng.normal(size=(7, 5))
    predicted = knn.predict(torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), k=k)
    assert predicted.tolist() == [slow_vote(bank, labels, query, k) for query in queries]


def test_k_is_capped_below_the_smallest_class() -> None:
    # Two images of the rare class among a hundred: with k=20 it could hardly win a vote even at its own place.
    bank = torch.cat(
        [torch.randn(98, 4) * 0.01 + torch.tensor([1.0, 0.2, 0, 0]), torch.tensor([[1.0, 0.25, 0, 0]] * 2)]
    )
    labels = torch.tensor([0] * 98 + [1] * 2)
    assert knn.predict(bank, labels, torch.tensor([[1.0, 0.25, 0, 0]])).tolist() == [1]


def test_balanced_accuracy_counts_every_class_alike() -> None:
    truth = np.array([0] * 90 + [1] * 10)
    assert knn.balanced_accuracy(np.zeros(100, int), truth) == pytest.approx(0.5)


def test_the_bootstrap_error_is_the_binomial_one() -> None:
    truth = np.zeros(500, int)
    predicted = (np.arange(500) >= 425).astype(int)  # 85 % right
    assert knn.bootstrap_error(predicted, truth, draws=4000) == pytest.approx(np.sqrt(0.85 * 0.15 / 500), rel=0.06)


def test_the_bootstrap_is_stratified() -> None:
    # One class always right, the other always wrong: no noise within either class.
    truth = np.repeat([0, 1], 50)
    assert knn.bootstrap_error(np.zeros(100, int), truth) == 0
