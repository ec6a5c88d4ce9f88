from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from phenoscape_tune.training.device_use import DeviceUse, Reading
from phenoscape_tune.training.step_clock import StepClock


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock) -> StepClock:
    return StepClock(DeviceUse(torch.device("cuda"), lambda: Reading(0.5, 2.0), clock), clock)


def slow_batches(clock: Clock, count: int, seconds: float) -> Iterator[Tensor]:
    for _ in range(count):
        clock.now += seconds
        yield torch.zeros(8, 3, 4, 4)


def test_the_wait_for_data_is_told_from_the_step() -> None:
    clock = Clock()
    steps = make(clock)
    for images in steps.steps(slow_batches(clock, count=4, seconds=0.5)):
        assert images.shape == (8, 3, 4, 4)
        clock.now += 1.5
    clock.now += 2.0  # what waits for the device at the end of an epoch belongs to it
    assert steps.images_per_second == pytest.approx(32 / 10)
    assert steps.row() == {
        "images_per_second": pytest.approx(32 / 10),
        "waiting_share": pytest.approx(2 / 10),
        "utilisation": pytest.approx(0.5),
        "device_memory_gb": 2.0,
    }


def test_each_epoch_is_measured_by_itself() -> None:
    clock = Clock()
    steps = make(clock)
    for _ in steps.steps(slow_batches(clock, count=3, seconds=1.0)):
        pass
    clock.now += 100.0  # an evaluation
    for _ in steps.steps(slow_batches(clock, count=2, seconds=1.0)):
        clock.now += 1.0
    assert steps.row()["images_per_second"] == pytest.approx(16 / 4)
    assert steps.row()["waiting_share"] == pytest.approx(0.5)


def test_an_epoch_that_is_broken_off_leaves_a_rate() -> None:
    clock = Clock()
    steps = make(clock)
    assert steps.images_per_second == 0
    for _ in steps.steps(slow_batches(clock, count=9, seconds=1.0)):
        break
    assert steps.images_per_second == pytest.approx(8)
    assert 0 <= steps.row()["waiting_share"] <= 1
