from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TAU, Network, assert_same, cached_gradient, chunked_gradient, network, views, whole_gradient
from torch import Tensor, nn

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import build_encoder
from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training.gradient_cache import GradientStep, backpropagate, split_rows


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
