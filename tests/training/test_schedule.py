from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.training.schedule import build_optimizer, learning_rate, load_optimizer


def config(**values: object) -> TrainConfig:
    return build_config({"warmup_epochs": 0, **values})


@settings(deadline=None, max_examples=30)
@given(lr=st.floats(1e-5, 1e-1), eta=st.floats(0, 1), epochs=st.integers(1, 40), period=st.integers(1, 60))
def test_without_warm_up_it_is_torchs_cosine_annealing(lr: float, eta: float, epochs: int, period: int) -> None:
    c = config(lr=lr, eta_min=lr * eta * 0.99, max_epochs=epochs, T_max=period)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period, eta_min=c.resolved_eta_min)
    for epoch in range(epochs):
        assert learning_rate(c, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimizer.step()
        peer.step()


def test_warm_up_rises_linearly_to_the_peak_and_ends_at_the_floor() -> None:
    c = config(lr=0.1, max_epochs=20, warmup_epochs=4)
    assert learning_rate(c, 0) == 0
    assert learning_rate(c, 2) == pytest.approx(0.05)
    assert learning_rate(c, 4) == pytest.approx(0.1)
    assert learning_rate(c, 20) == pytest.approx(1e-4)


def test_a_floor_that_is_not_below_lr_becomes_a_tenth_of_it() -> None:
    c = config(lr=1e-5, eta_min=1e-4, max_epochs=10)
    assert learning_rate(c, 10) == pytest.approx(1e-6)


def test_biases_and_normalisation_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    for optimizer in ("sgd", "adamw"):
        groups = build_optimizer(config(optimizer=optimizer, weight_decay=0.5), model).param_groups
        assert [len(group["params"]) for group in groups] == [1, 3]
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0]


def test_lars_follows_the_ratio_of_norms_but_for_biases_and_normalisation() -> None:
    """Layer-wise rate of arXiv 1708.03888, equation 6: eta ||w|| / (||g|| + beta ||w||)."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 4, dtype=torch.float64)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    c = config(optimizer="lars", lr=0.5, weight_decay=0.01, momentum=0.0)
    optimizer = build_optimizer(c, model)
    model(torch.randn(3, 6, dtype=torch.float64)).square().sum().backward()
    assert model.weight.grad is not None and model.bias.grad is not None
    gradient, of_bias = model.weight.grad.clone(), model.bias.grad.clone()
    optimizer.step()
    ratio = 0.001 * weight.norm() / (gradient.norm() + 0.01 * weight.norm() + 1e-8)
    assert torch.allclose(model.weight, weight - 0.5 * ratio * (gradient + 0.01 * weight), rtol=1e-9, atol=1e-12)
    assert torch.allclose(model.bias, bias - 0.5 * of_bias, rtol=1e-9, atol=1e-12)


def test_lars_without_weight_decay_still_adapts_weights() -> None:
    model = torch.nn.Linear(2, 2)
    groups = build_optimizer(config(optimizer="lars", weight_decay=0.0), model).param_groups
    assert [group["always_adapt"] for group in groups] == [True, False]


def layers(seed: int) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 3))
    return network.to(memory_format=torch.channels_last)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_step_on_a_cpu_is_torchs_plain_one(name: str) -> None:
    """It is computed in one go there; operation by operation it is the same to float32's rounding."""
    ours, plain = layers(0), layers(0)
    optimizer = build_optimizer(config(optimizer=name, lr=0.01, weight_decay=0.1), ours)
    assert all(group["fused"] for group in optimizer.param_groups)
    peer = build_optimizer(config(optimizer=name, lr=0.01, weight_decay=0.1), plain)
    for group in peer.param_groups:
        group["fused"] = False
    for seed in range(5):
        step(ours, optimizer, seed)
        step(plain, peer, seed)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("theirs", [True, None])
def test_a_checkpoint_does_not_bring_how_the_step_is_computed(name: str, theirs: bool | None) -> None:
    """It may be of another kind of device, or of a version that knew one way only."""
    network, c = layers(0), config(optimizer=name, lr=0.01)
    optimizer = build_optimizer(c, network)
    step(network, optimizer, 0)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        if "fused" in group:
            group["fused"] = theirs
    again = layers(0)
    again.load_state_dict(network.state_dict())
    loaded = build_optimizer(c, again)
    load_optimizer(loaded, state)
    assert [g.get("fused") for g in loaded.param_groups] == [g.get("fused") for g in optimizer.param_groups]
    step(network, optimizer, 1)
    step(again, loaded, 1)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_on_another_device_torch_chooses_how_the_step_is_computed() -> None:
    groups = build_optimizer(config(optimizer="adamw"), layers(0).to("meta")).param_groups
    assert [group["fused"] for group in groups] == [None, None]


def test_a_compiled_network_s_step_is_not_taken_in_one_go() -> None:
    # Its gradients may lie in memory otherwise than its weights, which a fused step on a CPU does not notice.
    groups = build_optimizer(config(optimizer="adamw", compile=True), layers(0)).param_groups
    assert [group["fused"] for group in groups] == [None, None]


def convolution(layout: torch.memory_format) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(4, 6, 3).to(memory_format=layout)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_checkpoint_of_another_memory_layout_is_taken_rightly(name: str) -> None:
    c = config(optimizer=name, lr=0.01)
    plain, ours = convolution(torch.contiguous_format), convolution(torch.channels_last)
    theirs = build_optimizer(c, plain)
    step(plain, theirs, 0)
    ours.load_state_dict(plain.state_dict())
    loaded = build_optimizer(c, ours)
    load_optimizer(loaded, copy.deepcopy(theirs.state_dict()))
    step(plain, theirs, 1)
    step(ours, loaded, 1)
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_real_gradients_lie_as_their_weights_do() -> None:
    # What the fused step on a CPU takes for granted.
    from phenoscape_tune.model import build_encoder
    from phenoscape_tune.nt_xent import nt_xent

    c = config(backbone="test_resnet", input_size=32)
    encoder = build_encoder(c, 3, [0.5] * 3, [0.25] * 3).to(memory_format=torch.channels_last).train()
    _, z = encoder(torch.rand(8, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    nt_xent(z, 0.1).backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        if min(parameter.shape) > 1:  # of a dimension of one, the stride says nothing
            assert parameter.grad.stride() == parameter.stride()
