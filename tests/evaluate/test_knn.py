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


def slow_leave_one_out(features: np.ndarray, labels: np.ndarray, groups: list[str], k: int) -> list[int]:
    """For each image, the vote of the images of other groups, one at a time."""
    others = [[j for j in range(len(labels)) if groups[j] != groups[i]] for i in range(len(labels))]
    most = min(sum(labels[j] == labels[i] for j in others[i]) for i in range(len(labels)))
    return [
        slow_vote(features[others[i]], labels[others[i]], features[i], max(1, min(k, most))) for i in range(len(labels))
    ]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 8), people=st.integers(3, 40), chunk=st.sampled_from([1, 5, 1024]))
def test_leaving_one_out_equals_the_vote_one_image_at_a_time(seed: int, k: int, people: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    labels, features = rng.permutation(np.repeat([0, 1, 3], [4, 7, 9])), rng.normal(size=(20, 5))
    groups = [f"g{number}" for number in rng.permutation(np.arange(20) % people)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "CHUNK", chunk)
        told = knn.leave_one_out(torch.tensor(features), torch.tensor(labels), groups, k)
        alone = knn.leave_one_out(torch.tensor(features), torch.tensor(labels), None, k)
    assert told.tolist() == slow_leave_one_out(features, labels, groups, k)
    assert alone.tolist() == slow_leave_one_out(features, labels, [str(i) for i in range(20)], k)


def clusters(rng: np.random.Generator, labels: np.ndarray) -> torch.Tensor:
    """Features (M, 8) that are far nearer within a class than between classes."""
    return torch.tensor(np.eye(8)[labels] + rng.normal(scale=0.02, size=(len(labels), 8)))


class_sizes = st.lists(st.integers(2, 30), min_size=2, max_size=8)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), sizes=class_sizes, k=st.integers(1, 40))
def test_a_perfect_clustering_is_predicted_perfectly(seed: int, sizes: list[int], k: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    # Two specimens or more a class, which need not be of one class each.
    groups = [str(np.sum(labels[:i] == c) % 2 + 2 * int(rng.integers(2)) * int(c)) for i, c in enumerate(labels)]
    features = clusters(rng, labels)
    assert knn.leave_one_out(features, torch.tensor(labels), k=k).tolist() == labels.tolist()
    assert knn.leave_one_out(features, torch.tensor(labels), groups, k=k).tolist() == labels.tolist()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**31), image=st.integers(0, 29), k=st.integers(1, 4))
def test_the_own_label_and_the_own_groups_have_no_vote(seed: int, image: int, k: int) -> None:
    # Classes of ten, k of four at most: the cap stays out of the way when a label changes.
    rng = np.random.default_rng(seed)
    labels, features = np.repeat([0, 1, 2], 10), torch.tensor(rng.normal(size=(30, 4)))
    groups = [str(number) for number in rng.permutation(np.arange(30) // 3)]
    alone, grouped = labels.copy(), labels.copy()
    alone[image] = (labels[image] + 1) % 3
    for mate in range(30):
        grouped[mate] = (labels[mate] + 1) % 3 if groups[mate] == groups[image] else labels[mate]

    def predicted(by: np.ndarray, names: list[str] | None) -> int:
        return int(knn.leave_one_out(features, torch.tensor(by), names, k)[image])

    assert predicted(alone, None) == predicted(labels, None)
    assert predicted(grouped, groups) == predicted(labels, groups)


def test_flipping_a_label_changes_the_prediction_of_its_neighbour_only() -> None:
    # Nearest of each on a line of angles: 0-1, 2-3, and 4 to 3.
    angles = torch.tensor([0.0, 0.01, 0.5, 0.52, 0.55])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert knn.leave_one_out(features, torch.tensor([0, 0, 1, 1, 1]), k=1).tolist() == [0, 0, 1, 1, 1]
    assert knn.leave_one_out(features, torch.tensor([1, 0, 1, 1, 1]), k=1).tolist() == [0, 1, 1, 1, 1]


def test_images_of_the_same_group_do_not_vote_for_each_other() -> None:
    # Two photographs of each of four birds; the background of a pair is alike, its bird less so.
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    scene = torch.eye(4).repeat_interleave(2, 0)  # (8, 4)
    wrong = torch.stack([1 - labels, labels], dim=1).float() * 0.2  # birds of other classes look alike
    right = torch.stack([labels, 1 - labels], dim=1).float() * 0.2
    features = torch.cat([scene, torch.cat([right[:4], wrong[4:]])], dim=1)
    assert knn.leave_one_out(features, labels, k=1).tolist() == labels.tolist()
    assert knn.leave_one_out(features, labels, groups, k=1).tolist() == (1 - labels).tolist()


def test_leaving_one_out_caps_k_below_the_smallest_class() -> None:
    bank = torch.randn(98, 4, generator=torch.Generator().manual_seed(0)) * 0.01 + torch.tensor([1.0, 0.2, 0, 0])
    features = torch.cat([bank, torch.tensor([[1.0, 0.25, 0, 0], [1.0, 0.2501, 0, 0]])])
    labels = torch.tensor([0] * 98 + [1] * 2)
    assert knn.leave_one_out(features, labels)[-2:].tolist() == [1, 1]


def test_an_image_without_another_one_is_of_no_class() -> None:
    features, labels = torch.eye(3), torch.tensor([0, 0, 1])
    assert knn.leave_one_out(features, labels, ["a", "a", "a"]).tolist() == [-1, -1, -1]
    assert knn.leave_one_out(features, labels, ["a", "b", "b"])[1:].tolist() == [0, 0]


def test_a_large_bank_is_compared_with_few_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert knn._chunk(50_000) == 1024
    assert knn._chunk(700_000) * 700_000 <= knn.SIMILARITIES
    assert knn._chunk(2 * knn.SIMILARITIES) == 1
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(30, 8), torch.arange(30) % 3, torch.randn(20, 8)
    whole, others = knn.predict(bank, labels, queries), knn.leave_one_out(bank, labels)
    monkeypatch.setattr(knn, "SIMILARITIES", 100)  # three queries at a time
    assert torch.equal(knn.predict(bank, labels, queries), whole)
    assert torch.equal(knn.leave_one_out(bank, labels), others)


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
