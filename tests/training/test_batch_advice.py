from __future__ import annotations

import re
from pathlib import Path

import pytest

from phenoscape_tune.training.batch_advice import TABLE, batch_warning, describe_memory, recommended_batch, smallest
from phenoscape_tune.training.gpus import Gpu

GUIDE = (Path(__file__).parents[1] / "training-guide.md").read_text(encoding="utf-8")


def test_the_table_is_the_guides() -> None:
    rows = re.findall(r"^\| (\d+)GB\+? \| (\d+)-(\d+) \|$", GUIDE, re.MULTILINE)
    assert {int(memory): (int(low), int(high)) for memory, low, high in rows} == TABLE


# What cards show of the memory that they are sold with.
@pytest.mark.parametrize(
    ("memory_gib", "expected"),
    [(3.9, None), (7.6, (16, 32)), (11.0, (16, 32)), (14.6, (32, 64)), (15.7, (32, 64)), (20.0, (32, 64)),
     (22.2, (64, 128)), (23.5, (64, 128)), (79.2, (64, 128))],
)  # fmt: skip
def test_a_card_belongs_to_the_row_that_it_is_sold_as(memory_gib: float, expected: tuple[int, int] | None) -> None:
    assert recommended_batch(memory_gib) == expected


def test_a_trial_counts_with_the_smallest_card_and_its_share_of_it() -> None:
    cards = [Gpu("large", 79.2), Gpu("small", 23.5), Gpu("of the machine's memory", None)]
    assert smallest(cards) == 23.5
    assert smallest(cards, share=0.5) == 11.75
    assert smallest(cards[2:]) is smallest([]) is None


def test_the_memory_is_told_with_the_recommendation() -> None:
    assert describe_memory([]) == describe_memory([Gpu("shared", None)]) == []
    (line,) = describe_memory([Gpu("T4", 14.6), Gpu("T4", 14.6)])
    assert line == "GPU memory: 14.6 GiB (T4), 14.6 GiB (T4); the guide recommends a batch_size of 32 to 64"
    (line,) = describe_memory([Gpu("T4", 14.6)], share=0.5)
    assert "a trial has 7.3 GiB; the guide recommends a batch_size of 16 to 32" in line
    (line,) = describe_memory([Gpu("old", 3.9)])
    assert "begins at 8 GB" in line


@pytest.mark.parametrize("values", [[32], [64], [16, 128], [64, 512], [8, 32]])
def test_a_batch_size_within_the_recommendation_is_not_remarked_on(values: list[int]) -> None:
    assert batch_warning("batch_size", values, 15.7) == []


def test_a_batch_size_outside_of_it_is_warned_of_with_the_remedy() -> None:
    (line,) = batch_warning("batch_size", [16], 23.5)
    assert line.startswith(
        "batch_size: 16 is outside the 64 to 128 that the guide recommends for a GPU of 24 GB or more"
    )
    assert "batch_size=64" in line
    (line,) = batch_warning("parameters.batch_size", [128, 512], 7.6)
    assert line.startswith("parameters.batch_size: 128 to 512 is outside the 16 to 32")
    assert "8 GB:" in line
    assert "micro_batch_size=32" in line


@pytest.mark.parametrize("memory_gib", [None, 3.9])
def test_without_a_gpu_of_the_table_nothing_is_said(memory_gib: float | None) -> None:
    assert batch_warning("batch_size", [4096], memory_gib) == []
