"""Rank, world size and the exchange of tensors: the same calls with and without a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def in_group() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if in_group() else 0


def world_size() -> int:
    return dist.get_world_size() if in_group() else 1


class _AllGather(torch.autograd.Function):
    """Concatenate over ranks; the gradient of each rank's part is the sum over all ranks that used it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def all_gather(local: Tensor) -> Tensor:
    """Concatenate `local` (n, ...) of all ranks in rank order to (n * world_size, ...), differentiably.

    Every rank must bring the same shape. With losses that each rank averages over its own anchors, the mean of the
    ranks' gradients (what DistributedDataParallel takes) is the gradient of the mean loss.
    """
    return _AllGather.apply(local) if in_group() else local


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all ranks; not differentiable."""
    if not in_group():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_shares(share: Tensor, total: int) -> Tensor:
    """The rows (total, ...) of which this rank holds every world_size-th, from its rank on; the same on every rank.

    Not differentiable.
    """
    if not in_group():
        return share
    world = world_size()
    most = -(-total // world)
    padded = share.new_zeros(most, *share.shape[1:])
    padded[: len(share)] = share
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]  # (most, world, ...): row i is rank i % world's


def average_buffers(module: torch.nn.Module) -> None:
    """Replace the floating-point buffers of a module (batch norm's running statistics) by their mean over ranks."""
    if in_group():
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean_over_ranks(buffer))
