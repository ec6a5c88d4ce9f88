from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from two_ranks import run_two_ranks

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.parts import open_parts
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import Encoder, build_encoder
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training import checkpoint, run
from phenoscape_tune.training.gradient_cache import OOM_ABOVE, GradientStep, backpropagate, split_rows
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.memory import OutOfMemory
from phenoscape_tune.training.run import Row, RunOptions, start_run

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")
TAU = 0.2


class Network(nn.Module):
    """Images (n, 3, 4, 4) to features (n, 6) and projections (n, 5)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers(images)
        return h, self.head(h)


def network(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    return Network(*layers).to(dtype)


def views(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2 * batch, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def whole_gradient(encoder: nn.Module, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    encoder.zero_grad()
    loss = nt_xent(encoder(pixels)[1], TAU)
    loss.backward()
    return loss.detach(), [p.grad for p in encoder.parameters()]


def chunked_gradient(
    encoder: nn.Module, pixels: Tensor, micro_batch: int, autocast: Any = nullcontext
) -> tuple[Tensor, list[Tensor]]:
    """As the cached one, with the graphs of all parts kept: what memory would not allow."""
    encoder.zero_grad()
    z: Tensor | None = None
    for rows in split_rows(len(pixels) // 2, micro_batch):
        with autocast():
            part = encoder(pixels[rows])[1]
        z = part.new_zeros(len(pixels), part.shape[1]) if z is None else z.clone()
        z[rows] = part
    assert z is not None
    loss = nt_xent(z, TAU)
    loss.backward()
    return loss.detach(), [p.grad for p in encoder.parameters()]


def cached_gradient(
    encoder: nn.Module, pixels: Tensor, micro_batch: int, autocast: Any = nullcontext
) -> tuple[Tensor, list[Tensor]]:
    encoder.zero_grad()
    return backpropagate(encoder, pixels, TAU, micro_batch, autocast), [p.grad for p in encoder.parameters()]


def assert_same(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], rtol: float) -> None:
    assert torch.allclose(ours[0], theirs[0], rtol=rtol, atol=0)
    a, b = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (ours[1], theirs[1]))
    assert float((a - b).norm()) <= rtol * float(b.norm())


def test_a_micro_batch_is_a_whole_number_from_two_on() -> None:
    for value in (2, 16, "auto"):
        assert build_config({"micro_batch_size": value}).micro_batch_size == value
    for value in (1, 0, 2.5, "half"):
        with pytest.raises(UserError, match="micro_batch_size"):
            build_config({"micro_batch_size": value})


# The parts of a batch


@given(batch=st.integers(2, 200), micro_batch=st.integers(2, 200))
def test_parts_hold_each_view_once_and_no_two_views_of_an_image(batch: int, micro_batch: int) -> None:
    parts = [np.arange(2 * batch)[rows] for rows in split_rows(batch, micro_batch)]
    assert sorted(np.concatenate(parts)) == list(range(2 * batch))
    if micro_batch >= batch:
        assert len(parts) == 1
        return
    sizes = [len(part) for part in parts]
    assert 2 <= min(sizes) <= max(sizes) <= 2 * micro_batch
    assert max(sizes) - min(sizes) <= 1
    assert all(len(set(part % batch)) == len(part) for part in parts)


def test_images_of_a_part_of_view_1_are_spread_over_those_of_view_2() -> None:
    parts = [set(np.arange(128)[rows] % 64) for rows in split_rows(64, 8)]
    first, second = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    assert max(len(a & b) for a in first for b in second) == 4  # of 16, as many as chance


# Gradients


@settings(deadline=None, max_examples=15)
@given(batch=st.integers(3, 12), micro_batch=st.integers(2, 11))
def test_equals_the_whole_batch_where_no_layer_couples_images(batch: int, micro_batch: int) -> None:
    encoder = network(nn.GroupNorm(2, 6))
    assert_same(cached_gradient(encoder, views(batch), micro_batch), whole_gradient(encoder, views(batch)), 1e-10)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), nn.BatchNorm2d(6), nn.Sequential(nn.BatchNorm2d(6), nn.Dropout(0.2))]
)
def test_random_layers_and_batch_norm_see_the_same_in_both_passes(layer: nn.Module) -> None:
    encoder = network(layer)
    pixels = views(10)
    torch.manual_seed(5)
    cached = cached_gradient(encoder, pixels, 3)
    afterwards = torch.get_rng_state()
    torch.manual_seed(5)
    assert_same(cached, chunked_gradient(encoder, pixels, 3), 1e-10)
    assert torch.equal(torch.get_rng_state(), afterwards)
    if isinstance(layer, nn.Dropout):
        torch.manual_seed(6)
        assert not torch.allclose(cached_gradient(encoder, pixels, 3)[0], cached[0])


@pytest.mark.parametrize("micro_batch", [8, 9, 100])
def test_a_micro_batch_of_the_whole_batch_is_the_plain_path_to_the_bit(micro_batch: int) -> None:
    encoder = network(nn.BatchNorm2d(6), nn.Dropout(0.1), dtype=torch.float32)
    plain = copy.deepcopy(encoder)
    torch.manual_seed(2)
    ours = cached_gradient(encoder, views(8, torch.float32), micro_batch)
    torch.manual_seed(2)
    theirs = whole_gradient(plain, views(8, torch.float32))
    assert torch.equal(ours[0], theirs[0])
    assert all(torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(encoder.buffers(), plain.buffers(), strict=True))


def test_half_precision_gives_the_gradient_of_the_same_parts() -> None:
    encoder = network(nn.BatchNorm2d(6), dtype=torch.float32)
    pixels = views(8, torch.float32)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    cached = cached_gradient(encoder, pixels, 2, autocast)
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in cached[1])
    assert_same(cached, chunked_gradient(encoder, pixels, 2, autocast), 0.01)
    assert_same(cached, chunked_gradient(encoder, pixels, 2), 0.03)


def test_the_loss_of_the_parts_alone_is_another_one() -> None:
    encoder, pixels = network(), views(8)
    parts = [nt_xent(encoder(pixels.view(2, 8, 3, 4, 4)[:, k : k + 4].flatten(0, 1))[1], TAU) for k in (0, 4)]
    assert not torch.allclose(torch.stack(parts).mean(), cached_gradient(encoder, pixels, 4)[0], rtol=0.05)


# Batch norm's running statistics


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, None])
def test_running_statistics_take_one_step_towards_the_mean_of_the_parts(momentum: float | None) -> None:
    norm = nn.BatchNorm2d(6, momentum=momentum)
    encoder, pixels = network(norm), views(12)
    cached_gradient(encoder, pixels, 3)
    with torch.no_grad():
        maps = encoder.layers[0](pixels)  # (24, 6, 2, 2)
    parts = [maps[rows] for rows in split_rows(12, 3)]
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variances = torch.stack([part.transpose(0, 1).flatten(1).var(1) for part in parts]).mean(0)
    share = 1.0 if momentum is None else momentum
    assert torch.allclose(norm.running_mean, share * means, rtol=1e-10)
    assert torch.allclose(norm.running_mean, share * maps.mean((0, 2, 3)), rtol=1e-10)
    assert torch.allclose(norm.running_var, share * variances + (1 - share), rtol=1e-10)
    assert (norm.momentum, norm.track_running_stats, int(norm.num_batches_tracked)) == (momentum, True, 1)


def test_a_frozen_batch_norm_stays_as_it_is() -> None:
    norm = nn.BatchNorm2d(6)
    encoder = network(norm)
    norm.running_mean += 0.3
    norm.eval()
    before = norm.running_mean.clone()
    assert_same(cached_gradient(encoder, views(6), 2), whole_gradient(encoder, views(6)), 1e-10)
    assert torch.equal(norm.running_mean, before)


def test_batch_norm_is_left_as_it_was_where_a_pass_fails() -> None:
    class Fault(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                raise RuntimeError("in the second pass")
            return images

    norm = nn.BatchNorm2d(6)
    encoder = network(norm, Fault())
    with pytest.raises(RuntimeError, match="second pass"):
        cached_gradient(encoder, views(6), 2)
    assert (norm.momentum, norm.track_running_stats) == (0.1, True)


def test_timms_own_batch_norms_are_treated_alike() -> None:
    config = build_config({"backbone": "test_efficientnet.r160_in1k", "input_size": 32, "projection_dim": 8})
    torch.manual_seed(0)
    encoder = build_encoder(config, 3, [0.5] * 3, [0.25] * 3).double()
    twin = copy.deepcopy(encoder)
    pixels = torch.rand(12, 3, 32, 32, dtype=torch.float64)
    assert_same(cached_gradient(encoder, pixels, 2), chunked_gradient(twin, pixels, 2), 1e-8)
    first, other = encoder.backbone.bn1, twin.backbone.bn1
    assert type(first).__name__ == "BatchNormAct2d"
    assert (int(first.num_batches_tracked), int(other.num_batches_tracked)) == (1, 4)
    assert not torch.allclose(first.running_mean, other.running_mean)  # four steps of the plain kind


# Out of memory


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


# Accumulation, scaling, recomputation, compilation


def test_accumulated_batches_are_one_contrastive_batch() -> None:
    encoder, pixels = network(), views(12)
    config = build_config({"batch_size": 4, "accumulate_grad_batches": 3, "temperature": TAU})
    step = GradientStep(encoder, config)
    assert (step.batch_size, step.micro_batch) == (12, 4)
    expected = whole_gradient(copy.deepcopy(encoder), pixels)
    loss = step(pixels, nullcontext)
    assert_same((loss, [p.grad for p in encoder.parameters()]), expected, rtol=1e-10)


@pytest.mark.parametrize("micro_batch", [4, 12])
def test_a_scaled_loss_gives_the_same_gradient_after_unscaling(micro_batch: int) -> None:
    encoder, pixels = network(dtype=torch.float32), views(12, torch.float32)
    config = build_config({"batch_size": 12, "micro_batch_size": micro_batch, "temperature": TAU})
    expected = whole_gradient(copy.deepcopy(encoder), pixels)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loss = GradientStep(encoder, config, scaler)(pixels, nullcontext)
    scaled = [p.grad.clone() for p in encoder.parameters()]
    scaler.unscale_(torch.optim.SGD(encoder.parameters(), lr=0.1))
    assert_same((loss, [p.grad for p in encoder.parameters()]), expected, rtol=1e-5)
    assert float(scaled[0].norm()) > 100 * float(next(encoder.parameters()).grad.norm())


class Checkpointed(Network):
    """Runs its layers again in the backward pass."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.utils.checkpoint.checkpoint(self.layers, images, use_reentrant=False)
        return h, self.head(h)


@pytest.mark.parametrize("micro_batch", [3, 6])
def test_layers_that_are_run_again_count_once_in_batch_norms_statistics(micro_batch: int) -> None:
    torch.manual_seed(0)
    again = Checkpointed(nn.BatchNorm2d(6)).double()
    once = Network(nn.BatchNorm2d(6)).double()
    once.load_state_dict(again.state_dict())
    pixels = views(6)
    loss = backpropagate(once, pixels, TAU, micro_batch, nullcontext)
    assert_same(
        (
            backpropagate(again, pixels, TAU, micro_batch, nullcontext, recomputes=True),
            [p.grad for p in again.parameters()],
        ),
        (loss, [p.grad for p in once.parameters()]),
        rtol=1e-10,
    )
    for (name, ours), theirs in zip(again.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_where_compilation_fails_the_run_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    compile_with = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend=backend))
    encoder, pixels = network(), views(4)
    expected = whole_gradient(copy.deepcopy(encoder), pixels)
    step = GradientStep(encoder, build_config({"batch_size": 4, "compile": True, "temperature": TAU}))
    loss = step(pixels, nullcontext)
    assert_same((loss, [p.grad for p in encoder.parameters()]), expected, rtol=1e-10)
    assert "torch.compile failed" in caplog.text
    caplog.clear()
    step(pixels, nullcontext)
    assert caplog.text == ""


@pytest.mark.slow
def test_a_compiled_network_has_the_same_gradient() -> None:
    encoder, pixels = network(dtype=torch.float32), views(6, torch.float32)
    expected = whole_gradient(copy.deepcopy(encoder), pixels)
    step = GradientStep(encoder, build_config({"batch_size": 6, "compile": True, "temperature": TAU}))
    loss = step(pixels, nullcontext)
    assert step._compiled
    assert_same((loss, [p.grad for p in encoder.parameters()]), expected, rtol=1e-4)
    assert set(encoder.state_dict()) == set(network().state_dict())


@pytest.mark.slow
def test_parts_are_compiled_once_for_each_pass() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder, pixels = network(nn.BatchNorm2d(6), dtype=torch.float32), views(24, torch.float32)
    config = build_config({"batch_size": 24, "micro_batch_size": 4, "compile": True, "temperature": TAU})
    step = GradientStep(encoder, config)
    for _ in range(2):
        step(pixels, nullcontext)
    assert step._compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # without and with a gradient


# Ranks


@pytest.mark.slow
def test_two_real_ranks_equal_one_process_with_the_global_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch = torch.randn(2, 14, 7, dtype=torch.float64)  # seven images a rank, two at a time
    layer = nn.Linear(7, 5, dtype=torch.float64)
    results = run_two_ranks(
        tmp_path,
        batch,
        layer,
        imports="from contextlib import nullcontext\nfrom phenoscape_tune.training.gradient_cache import backpropagate",
        output="(x, super().forward(x))",
        loss="loss = backpropagate(ddp, own, 0.2, 2, nullcontext)",
    )
    loss = nt_xent(layer(batch.reshape(-1, 7)), 0.2)
    loss.backward()
    for result in results:
        assert torch.allclose(result["loss"], loss.detach(), rtol=1e-10)
        assert torch.allclose(result["weight"], layer.weight.grad, rtol=1e-8, atol=1e-12)
        assert torch.allclose(result["bias"], layer.bias.grad, rtol=1e-8, atol=1e-12)


# Real runs


class Stop(Exception):
    pass


def train(config: TrainConfig, options: RunOptions | None = None, stop_after: int | None = None) -> list[Row]:
    def report(row: dict[str, Any]) -> None:
        if row["epoch"] == stop_after:
            raise Stop

    return train_simclr(config, report, options, CPU)


def read_log(config: TrainConfig) -> str:
    return (Path(config.out_dir) / "logs" / "training.log").read_text()


@pytest.mark.slow
def test_without_batch_norm_a_run_in_micro_batches_is_the_run_of_the_whole_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: Any) -> Encoder:
        encoder = build_encoder(*arguments)
        encoder.head[1] = nn.Identity()
        return encoder

    monkeypatch.setattr(run, "build_encoder", build)
    # One step an epoch: the first epoch's loss is that of the first step.
    values = {"backbone": "test_vit.r160_in1k", "stem": "auto", "batch_size": 48, "precision": 32, "warmup_epochs": 0}
    whole = train(tiny(**values, out_dir=str(tmp_path / "whole"), max_epochs=3))
    parts = train(tiny(**values, out_dir=str(tmp_path / "parts"), max_epochs=3, micro_batch_size=4))
    assert parts[0]["train_loss"] == pytest.approx(whole[0]["train_loss"], rel=1e-6)
    assert [row["train_loss"] for row in parts] == pytest.approx([row["train_loss"] for row in whole], rel=1e-4)
    assert [row["val_loss"] for row in parts] == pytest.approx([row["val_loss"] for row in whole], rel=1e-4)
    assert whole[0]["train_loss"] != whole[1]["train_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("micro", ["given", "found"])
def test_a_resumed_run_in_micro_batches_equals_an_unbroken_one_to_the_bit(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: str
) -> None:
    values: dict[str, Any] = {"batch_size": 16, "max_epochs": 3}
    if micro == "given":
        values["micro_batch_size"] = 4
    else:
        monkeypatch.setenv(OOM_ABOVE, "5")
    whole = train(tiny(**values, out_dir=str(tmp_path / "a")))
    broken = tiny(**values, out_dir=str(tmp_path / "b"))
    with pytest.raises(Stop):
        train(broken, stop_after=1)
    rows = train(broken, RunOptions(resume=tmp_path / "b" / "checkpoints" / "last.ckpt"))
    assert np.isfinite([row["train_loss"] for row in whole]).all()
    for key in ("train_loss", "val_loss", "objective"):
        assert [row[key] for row in rows] == [row[key] for row in whole]
    a, b = (checkpoint.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in "ab")
    assert all(torch.equal(a.model[key], b.model[key]) for key in a.model)
    log = read_log(broken)
    if micro == "given":
        assert "micro_batch_size: 4 of 16 images go through the network at once; the loss sees all" in log
        assert "out of memory" not in log
    else:
        assert "out of memory: from here on 8 images go through the network at once instead of 16" in log
        assert "from here on 4 images" in log


@pytest.mark.slow
def test_a_run_that_cannot_fit_ends_with_one_line(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OOM_ABOVE, "1")
    with pytest.raises(OutOfMemory, match="batch_size 16 and 2 images at a time") as caught:
        train(tiny(batch_size=16))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_ended_run_gives_its_memory_back_at_once(tiny: Tiny) -> None:
    """A process runs one trial after the other: what only the garbage collector finds would still be in the way."""
    config = tiny()
    started = start_run(config, CPU, RunOptions(), open_parts(config))
    encoder = weakref.ref(started.encoder)
    gc.disable()
    try:
        del started
        assert encoder() is None
    finally:
        gc.enable()
