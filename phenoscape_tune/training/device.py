"""What the device profits from: precision, memory layout, threads."""

from __future__ import annotations

import logging

import torch
from torch import nn

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError

log = logging.getLogger(__name__)


def default_device(config: TrainConfig) -> torch.device:
    """The device of a run on this machine. Raises UserError where a GPU is asked for and none is there."""
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator: gpu: this machine has no usable GPU; set accelerator=auto or accelerator=cpu")
    if config.accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware (elsewhere it is emulated, and slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast_dtype(config: TrainConfig, device: torch.device, model: nn.Module, channels: int) -> torch.dtype | None:
    """The autocast type of a run; None for plain float32."""
    wanted = config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(device))
    if wanted and device.type == "cpu" and strides_over_one_pixel(model, channels, config.input_size):
        log.info("precision: 32 instead of bf16: at %d px a strided convolution of %s sees a single pixel, where bf16 "
                 "gradients are wrong on a CPU", config.input_size, config.backbone)  # fmt: skip
        return None
    return torch.bfloat16 if wanted else None


def strides_over_one_pixel(model: nn.Module, channels: int, size: int) -> bool:
    """Whether an input is so small that a strided convolution is left with one pixel.

    There oneDNN (torch 2.15) leaves the weight gradient of the taps that only see padding uninitialised in bf16: any
    number, NaN included (measured: docs/experiments.md).
    """
    found = []

    def look(convolution: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(convolution, nn.Conv2d)
        strided = max(convolution.stride) > 1 and max(convolution.kernel_size) > 1
        found.append(strided and min(inputs[0].shape[-2:]) == 1)

    hooks = [m.register_forward_pre_hook(look) for m in model.modules() if isinstance(m, nn.Conv2d)]
    training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, channels, size, size, device=next(model.parameters()).device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return any(found)
