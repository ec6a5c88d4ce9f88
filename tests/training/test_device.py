from __future__ import annotations

import pytest
import torch

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import build_encoder
from phenoscape_tune.training.device import (
    adapt,
    autocast_dtype,
    be_deterministic,
    default_device,
    has_fast_bf16,
    settings_given_back,
    strides_over_one_pixel,
)


def test_cpu_is_taken_where_it_is_asked_for() -> None:
    assert default_device(build_config({"accelerator": "cpu"})) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    assert default_device(build_config({})) == torch.device("cpu")
    with pytest.raises(UserError, match="accelerator: gpu.*accelerator=auto"):
        default_device(build_config({"accelerator": "gpu"}))


def test_auto_precision_is_bf16_only_where_the_hardware_has_it() -> None:
    cpu = torch.device("cpu")
    model = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def chosen(precision: object, size: int = 64) -> torch.dtype | None:
        return autocast_dtype(build_config({"precision": precision, "input_size": size}), cpu, model, 3)

    assert chosen(32) is None
    assert chosen("bf16") == torch.bfloat16
    assert chosen("auto") == (torch.bfloat16 if has_fast_bf16(cpu) else None)


def test_a_strided_convolution_on_one_pixel_is_found() -> None:
    def convolution(**options: int) -> torch.nn.Conv2d:
        return torch.nn.Conv2d(3, 3, **options)

    halves = [convolution(kernel_size=3, stride=2, padding=1) for _ in range(4)]
    assert strides_over_one_pixel(torch.nn.Sequential(*halves), 3, 8)
    assert not strides_over_one_pixel(torch.nn.Sequential(*halves), 3, 16)
    ones = [*halves[:3], convolution(kernel_size=3, padding=1), convolution(kernel_size=1, stride=2)]
    assert not strides_over_one_pixel(torch.nn.Sequential(*ones), 3, 8)


def test_there_bf16_gives_way_to_float32(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Sequential(*[torch.nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(4)])
    caplog.set_level("INFO")
    config = build_config({"precision": "bf16", "input_size": 8})
    assert autocast_dtype(config, torch.device("cpu"), model, 3) is None
    assert "precision: 32 instead of bf16" in caplog.text


@pytest.mark.parametrize(("channels", "spectral_stem"), [(3, None), (9, 4)])
def test_checkpointed_layers_give_the_same_gradient(channels: int, spectral_stem: int | None) -> None:
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = build_config(
            {
                "backbone": "resnet10t",
                "input_size": 64,
                "gradient_checkpointing": checkpointed,
                "projection_dim": 8,
                "spectral_stem": spectral_stem,
            }
        )
        encoder = build_encoder(config, channels, [0.5] * channels, [0.25] * channels)
        encoder = adapt(encoder, config, torch.device("cpu"), print).train()
        images = torch.rand(4, channels, 64, 64, generator=torch.Generator().manual_seed(1))
        encoder(images)[1].square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_a_backbone_that_cannot_be_checkpointed_is_refused() -> None:
    config = build_config({"backbone": "resnet10t", "gradient_checkpointing": True})
    encoder = build_encoder(config, 3, [0.5] * 3, [0.25] * 3)
    encoder.backbone = torch.nn.Identity()
    with pytest.raises(UserError, match="gradient_checkpointing: 'resnet10t' cannot; set gradient_checkpointing=false"):
        adapt(encoder, config, torch.device("cpu"), print)


def settings() -> tuple[bool, bool, str]:
    found = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    return *found, torch.get_float32_matmul_precision()


def test_deterministic_is_switched_on_and_off_and_the_callers_settings_are_given_back() -> None:
    before = settings()
    with settings_given_back():
        be_deterministic(True)
        assert settings() == (True, False, "highest")
        be_deterministic(False)
        assert settings() == (False, True, "high")
    assert settings() == before


def test_synchronised_norms_keep_the_activation_that_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.layers import SyncBatchNormAct

    monkeypatch.setattr("phenoscape_tune.ranks.in_group", lambda: True)
    config = build_config({"backbone": "efficientnet_b0", "input_size": 32, "sync_batchnorm": True})
    encoder = build_encoder(config, 3, [0.5] * 3, [0.25] * 3)
    converted = adapt(encoder, config, torch.device("cuda"), print)
    norms = [m for m in converted.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert sum(isinstance(norm, SyncBatchNormAct) for norm in norms) > 40
    said: list[str] = []
    adapt(build_encoder(config, 3, [0.5] * 3, [0.25] * 3), config, torch.device("cpu"), said.append)
    assert said == ["sync_batchnorm: works on GPUs only: here each rank's batch has statistics of its own"]
