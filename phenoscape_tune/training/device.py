"""What the device profits from: precision, memory layout, threads."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from phenoscape_tune import ranks
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import Encoder

log = logging.getLogger(__name__)


def default_device(config: TrainConfig) -> torch.device:
    """The device of a run on this machine. Raises UserError where a GPU is asked for and none is there."""
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator: gpu: this machine has no usable GPU; set accelerator=auto or accelerator=cpu")
    if config.accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def be_deterministic(wanted: bool) -> None:
    """Same result to the bit at the same threads, precision and machine, or else what is fastest."""
    if wanted:
        # Read by cuBLAS when it starts; without it torch refuses matrix products on a GPU.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted
    torch.set_float32_matmul_precision("highest" if wanted else "high")


@contextmanager
def settings_given_back() -> Iterator[None]:
    """Leave the process with the settings of torch that it had: a notebook computes on after a run."""
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)


def adapt(encoder: Encoder, config: TrainConfig, device: torch.device, say: Callable[[str], None]) -> Encoder:
    """The encoder with what the configuration asks of it beyond its layers: checkpointed or synchronised ones.

    Raises UserError where the backbone cannot be checkpointed.
    """
    backbone: Any = encoder.backbone
    if config.gradient_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, TypeError) as error:
            raise UserError(
                f"gradient_checkpointing: '{config.backbone}' cannot; set gradient_checkpointing=false and a smaller "
                "micro_batch_size"
            ) from error
    if config.sync_batchnorm and ranks.in_group():
        if device.type == "cuda":
            from timm.layers import convert_sync_batchnorm

            # Not torch's own, which loses the activation that many of timm's norms hold.
            return convert_sync_batchnorm(encoder)
        say("sync_batchnorm: works on GPUs only: here each rank's batch has statistics of its own")
    return encoder


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is in the hardware (elsewhere it is emulated, and slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast_dtype(
    config: TrainConfig,
    device: torch.device,
    model: nn.Module,
    channels: int,
    say: Callable[[str], None] = log.info,
) -> torch.dtype | None:
    """The autocast type of a run; None for plain float32.

    float16 is for GPUs: on a CPU bfloat16 takes its place where that is fast, else float32.
    """
    if config.precision == 16 and device.type == "cuda":
        return torch.float16
    if config.precision == 16:
        say(f"precision: 16 is for GPUs: here it is {'bf16' if has_fast_bf16(device) else 32}")
    wanted = config.precision == "bf16" or (config.precision in ("auto", 16) and has_fast_bf16(device))
    if wanted and device.type == "cpu" and strides_over_one_pixel(model, channels, config.input_size):
        say(
            f"precision: 32 instead of bf16: at {config.input_size} px a strided convolution of {config.backbone} sees "
            "a single pixel, where bf16 gradients are wrong on a CPU"
        )
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
