from __future__ import annotations

import numpy as np
import torch

from phenoscape_tune.data.batches import Batches

IMAGES = np.arange(10 * 3 * 2 * 2, dtype=np.uint8).reshape(10, 3, 2, 2)
PART = np.array([1, 3, 4, 6, 7, 8, 9])


def batches(size: int = 3) -> Batches:
    return Batches(IMAGES, size, torch.device("cpu"))


def indices(chunks: list[torch.Tensor]) -> list[int]:
    return [int(image[0, 0, 0]) // 12 for chunk in chunks for image in chunk]


def test_an_epoch_is_full_batches_of_the_part_without_repeats() -> None:
    chunks = list(batches().shuffled(PART, seed=1, epoch=1))
    assert [len(chunk) for chunk in chunks] == [3, 3]
    seen = indices(chunks)
    assert len(set(seen)) == 6
    assert set(seen) <= set(PART.tolist())
    assert chunks[0].dtype == torch.uint8


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return indices(list(batches().shuffled(PART, seed, epoch)))

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2, 3) for epoch in (1, 2, 3)}) > 6


def test_ranks_share_an_epoch_without_overlap(monkeypatch) -> None:
    monkeypatch.setattr("phenoscape_tune.ranks.world_size", lambda: 2)
    seen = []
    for rank in range(2):
        monkeypatch.setattr("phenoscape_tune.ranks.rank", lambda rank=rank: rank)
        assert batches(2).steps(PART) == 1
        seen += indices(list(batches(2).shuffled(PART, seed=1, epoch=1)))
    assert len(set(seen)) == 4


def test_in_order_gives_all_images_once() -> None:
    assert indices(list(batches(4).in_order(PART))) == PART.tolist()


LABELS = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])


def balanced(size: int) -> Batches:
    return Batches(IMAGES, size, torch.device("cpu"), balance_by=LABELS)


def test_a_balanced_epoch_draws_classes_evenly_and_no_image_twice_in_a_batch() -> None:
    everything = np.arange(10)
    for epoch in range(1, 6):
        chunks = [indices([chunk]) for chunk in balanced(4).shuffled(everything, seed=1, epoch=epoch)]
        assert [sorted(LABELS[chunk].tolist()) for chunk in chunks] == [[0, 0, 1, 1]] * 2
        assert all(len(set(chunk)) == 4 for chunk in chunks)
        assert chunks == [indices([chunk]) for chunk in balanced(4).shuffled(everything, seed=1, epoch=epoch)]
    # In time every image of a common class is seen.
    seen = {i for epoch in range(20) for i in indices(list(balanced(4).shuffled(everything, 1, epoch)))}
    assert seen == set(range(10))


def test_ranks_share_a_balanced_batch_without_an_image_twice(monkeypatch) -> None:
    monkeypatch.setattr("phenoscape_tune.ranks.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("phenoscape_tune.ranks.rank", lambda rank=rank: rank)
        shares.append([indices([chunk]) for chunk in balanced(2).shuffled(np.arange(10), seed=3, epoch=1)])
    for own, other in zip(*shares, strict=True):
        assert len({*own, *other}) == 4
        assert sorted(LABELS[own + other].tolist()) == [0, 0, 1, 1]


def test_a_part_smaller_than_a_batch_has_no_balanced_steps() -> None:
    assert list(balanced(4).shuffled(PART[:2], seed=1, epoch=1)) == []
