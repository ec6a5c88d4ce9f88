from __future__ import annotations

import pytest
import torch

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.training.device import autocast_dtype, default_device, has_fast_bf16, strides_over_one_pixel


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
