"""What the device profits from: precision, memory layout, threads."""

from __future__ import annotations

import torch

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError


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


def autocast_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The autocast type of a run; None for plain float32."""
    if config.precision == "bf16" or (config.precision == "auto" and has_fast_bf16(device)):
        return torch.bfloat16
    return None
