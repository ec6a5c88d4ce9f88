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
