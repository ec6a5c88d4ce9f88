"""The contrastive loss of SimCLR over the batches of all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from phenoscape_tune.ranks import all_gather, rank

# Similarities that are held at a time: up to 1,024 images in a batch all of them, of more those of some anchors. One
# of 4,096 would else take 256 MiB for them, several times over: more than a micro-batch of 128 may take.
BLOCK_VALUES = 2**22


def nt_xent(projections: Tensor, temperature: float, over_ranks: bool = True) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, arXiv 2002.05709, equation 1).

    Args:
        projections: (2B, d) of this rank: view 1 of B images, then view 2 of the same images in the same order.
        temperature: tau > 0.
        over_ranks: whether the other ranks' views are negatives too; all ranks have to call it then.

    Returns:
        The mean over this rank's 2B anchors, a scalar; negatives are the other views of all ranks' batches. Computed
        in float32 at least, whatever autocast does, because exp(1/tau) overflows half precision. Memory is bounded by
        `BLOCK_VALUES`, whatever B is; the gradient can be taken once, not again of itself.
    """
    if projections.ndim != 2 or len(projections) % 2:
        raise ValueError(f"expected projections of shape (2B, d), got {tuple(projections.shape)}")
    with torch.autocast(projections.device.type, enabled=False):
        if projections.dtype in (torch.float16, torch.bfloat16):
            projections = projections.float()
        z = F.normalize(projections, dim=1)  # (2B, d)
        z_all = all_gather(z) if over_ranks else z  # (2B * ranks, d)
        n = len(z)
        first = rank() * n if over_ranks else 0
        if n * len(z_all) > BLOCK_VALUES:
            loss: Tensor = _InBlocks.apply(z, z_all, first, temperature)
            return loss
        own, positive = _columns(0, n, n, first, z.device)
        similarity = z @ z_all.T / temperature  # (2B, 2B * ranks)
        similarity = similarity.scatter(1, own[:, None], float("-inf"))  # an image is no negative of itself
        return F.cross_entropy(similarity, positive)


def _columns(start: int, stop: int, n: int, first: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where anchors `start` to `stop` of this rank's n, and their positives, stand among the views of all ranks."""
    own = torch.arange(start, stop, device=device)
    return own + first, (own + n // 2) % n + first


class _InBlocks(torch.autograd.Function):
    """The loss of z (n, d) among z_all (m, d), with the similarities of a block of anchors at a time.

    The gradient is taken along with the loss: for anchor i it is (Σ_k p_ik z_k − z_positive) / (n·tau), with p the
    softmax of its similarities; and the other way round for what the anchors do to the views of `z_all`.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, z_all: Tensor, first: int, temperature: float) -> Tensor:
        n, rows = len(z), max(1, BLOCK_VALUES // len(z_all))
        total, of_anchors, of_all = z.new_zeros(()), torch.empty_like(z), torch.zeros_like(z_all)
        for start in range(0, n, rows):
            anchors = z[start : start + rows]  # (r, d)
            own, positive = (c[:, None] for c in _columns(start, start + len(anchors), n, first, z.device))
            similarity = (anchors @ z_all.T).div_(temperature).scatter_(1, own, float("-inf"))  # (r, m)
            log_sum = similarity.logsumexp(1, keepdim=True)
            total += (log_sum - similarity.gather(1, positive)).sum()
            share = similarity.sub_(log_sum).exp_()
            share.scatter_add_(1, positive, share.new_full(positive.shape, -1.0))
            of_anchors[start : start + rows] = share @ z_all
            of_all.addmm_(share.T, anchors)
        ctx.save_for_backward(of_anchors.div_(n * temperature), of_all.div_(n * temperature))
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_anchors, of_all = ctx.saved_tensors
        return of_anchors * gradients[0], of_all * gradients[0], None, None
