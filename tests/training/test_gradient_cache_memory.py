"""Memory that runs out while a batch goes through the network in parts."""

from __future__ import annotations

import gc
import logging
import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from networks import TAU, Network, network, views
from torch import Tensor, nn

from phenoscape_tune.config import build_config
from phenoscape_tune.training.gradient_cache import OOM_ABOVE, GradientStep
from phenoscape_tune.training.memory import OutOfMemory


class Hungry(Network):
    """Runs out of memory above so many views, after taking some."""

    def __init__(self, most: int) -> None:
        super().__init__(nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.most = most
        self.taken: list[weakref.ref[Tensor]] = []
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(len(images))
        h, z = super().forward(images)
        if len(images) > self.most:
            self.taken.append(weakref.ref(h))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand a long tail")
        return h, z


def hungry(most: int) -> Hungry:
    torch.manual_seed(0)
    return Hungry(most).double()


def gradient_step(encoder: nn.Module, **values: Any) -> GradientStep:
    return GradientStep(encoder, build_config({"temperature": TAU, **values}))


def test_out_of_memory_halves_what_goes_through_the_network_for_good(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    encoder, twin = hungry(6), hungry(1000)
    step = gradient_step(encoder, batch_size=16)
    torch.manual_seed(3)
    loss = step(views(16), nullcontext)
    assert (step.micro_batch, step.rows, step.batch_size) == (2, 4, 16)
    assert [record.getMessage() for record in caplog.records] == [
        f"out of memory: from here on {smaller} images go through the network at once instead of {larger}; batch_size "
        "16 is unchanged, batch norm's statistics are now of the micro-batch"
        for larger, smaller in ((16, 8), (8, 4), (4, 2))
    ]
    # The failed attempts left no trace: neither in memory nor in random state, running statistics or gradients.
    gc.collect()
    assert encoder.taken and all(ref() is None for ref in encoder.taken)
    torch.manual_seed(3)
    expected = gradient_step(twin, batch_size=16, micro_batch_size=2)(views(16), nullcontext)
    assert torch.equal(loss, expected)
    assert all(torch.equal(a, b) for a, b in zip(encoder.buffers(), twin.buffers(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(encoder.parameters(), twin.parameters(), strict=True))
    encoder.seen.clear()
    step(views(16), nullcontext)
    assert max(encoder.seen) == 4


def test_a_number_that_the_user_gave_is_not_halved() -> None:
    step = gradient_step(hungry(6), batch_size=16, micro_batch_size=8)
    with pytest.raises(OutOfMemory) as caught:
        step(views(16), nullcontext)
    assert str(caught.value) == (
        "out of memory with batch_size 16 and 8 images at a time (micro-batch); try micro_batch_size=4, batch_size=8 "
        "with accumulate_grad_batches=2 (the loss sees as many), gradient_checkpointing=true, batch_size=8, "
        "input_size=160 or a smaller backbone (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB)"
    )
    assert caught.value.__context__ is None  # whose traceback would hold on to the memory
    assert all(p.grad is None for p in step.encoder.parameters())


@pytest.mark.parametrize("batch_size", [16, 6])
def test_below_two_images_it_is_given_up(batch_size: int) -> None:
    step = gradient_step(hungry(3), batch_size=batch_size)
    with pytest.raises(
        OutOfMemory, match=f"batch_size {batch_size} and [23] images .* try batch_size={batch_size // 2} "
    ):
        step(views(batch_size), nullcontext)


def test_memory_that_ends_later_halves_too() -> None:
    encoder = hungry(1000)
    step = gradient_step(encoder, batch_size=8)
    step(views(8), nullcontext)
    encoder.most = 10
    assert torch.isfinite(step(views(8), nullcontext))
    assert step.micro_batch == 4


def test_other_faults_are_not_taken_for_it() -> None:
    step = gradient_step(network(), batch_size=8)
    with pytest.raises(RuntimeError, match="channels"), step.naming_out_of_memory():
        step(torch.randn(16, 4, 4, 4, dtype=torch.float64), nullcontext)
    assert step.micro_batch == 8


def test_memory_that_ends_outside_of_a_step_is_named() -> None:
    step = gradient_step(network(), batch_size=8)
    with pytest.raises(OutOfMemory, match="batch_size 8 and 8 images .*MemoryError"), step.naming_out_of_memory():
        raise MemoryError
    inner = OutOfMemory("told already")
    with pytest.raises(OutOfMemory, match="told already"), step.naming_out_of_memory():
        raise inner


def test_the_variable_for_tests_ends_memory_above_two_views_of_so_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OOM_ABOVE, "3")
    step = gradient_step(network(), batch_size=8)
    step.encoder(views(3))
    with pytest.raises(torch.OutOfMemoryError, match=OOM_ABOVE):
        step.encoder(views(4))
    step(views(8), nullcontext)
    assert step.micro_batch == 2
