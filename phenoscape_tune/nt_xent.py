"""The contrastive loss of SimCLR over the batches of all ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from phenoscape_tune.ranks import all_gather, rank


def nt_xent(projections: Tensor, temperature: float, over_ranks: bool = True) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, arXiv 2002.05709, equation 1).

    Args:
        projections: (2B, d) of this rank: view 1 of B images, then view 2 of the same images in the same order.
        temperature: tau > 0.
        over_ranks: whether the other ranks' views are negatives too; all ranks have to call it then.

    Returns:
        The mean over this rank's 2B anchors, a scalar; negatives are the other views of all ranks' batches. Computed
        in float32 at least, whatever autocast does, because exp(1/tau) overflows half precision.
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
        own = torch.arange(n, device=z.device) + first
        positive = (torch.arange(n, device=z.device) + n // 2) % n + first
        similarity = z @ z_all.T / temperature  # (2B, 2B * ranks)
        similarity = similarity.scatter(1, own[:, None], float("-inf"))  # an image is no negative of itself
        return F.cross_entropy(similarity, positive)
