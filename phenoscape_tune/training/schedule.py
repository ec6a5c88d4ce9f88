"""Optimiser, linear warm-up and cosine annealing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from phenoscape_tune.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate after `epoch` epochs (fractional, from 0).

    Rises linearly over the warm-up, then follows SGDR's cosine (arXiv 1608.03983, equation 5) from lr to eta_min with
    period T_max, as torch's CosineAnnealingLR does (past T_max it rises again). Warm-up is part of T_max.
    """
    peak, floor, warmup = config.lr, config.resolved_eta_min, config.resolved_warmup_epochs
    if epoch < warmup:
        return peak * epoch / warmup
    period = max(config.schedule_epochs - warmup, 1e-9)
    return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * (epoch - warmup) / period))


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum, AdamW, or LARS (arXiv 1708.03888); biases and normalisation go without weight decay, and with
    LARS without its trust ratio (SimCLR, appendix B.6)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    # On a CPU torch otherwise goes over the weights operation by operation: 3 to 6 times as slow for AdamW. On a GPU it
    # takes many tensors at once by itself. A fused step pairs weights and gradients as they lie in memory: where the
    # gradients of a compiled network have other strides it is refused on a GPU (pytorch/pytorch#126585), and is wrong
    # on a CPU without a word.
    on_cpu = all(p.device.type == "cpu" for p in (*decayed, *plain))
    fused = True if on_cpu and not config.compile else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    if config.optimizer == "lars":
        from timm.optim import Lars

        # It takes a group without weight decay for one not to adapt; here that is the other group alone.
        adapted = [{**groups[0], "always_adapt": True}, groups[1]]
        return Lars(adapted, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take a checkpoint's state, but for how the step is computed: that is this device's, not the checkpoint's.

    Raises ValueError, KeyError where the state is another optimiser's.
    """
    own = [group.get("fused") for group in optimizer.param_groups]
    groups = [dict(group) for group in state["param_groups"]]
    for group, fused in zip(groups, own, strict=False):
        if "fused" in group:
            group["fused"] = fused
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            # A fused step takes both as they lie in memory, and a checkpoint may be of another layout.
            tensor = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if tensor and value.stride() != parameter.stride():
                held[name] = torch.empty_like(parameter).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
