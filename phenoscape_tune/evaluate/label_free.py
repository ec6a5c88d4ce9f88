"""Scores of backbone features that need no labels: a ranking, and gates against collapse.

`reference_contrast` ranks trials. The others tell why a representation is bad, or are here for comparison. All take
features h of the backbone, not projections; half precision is raised to float32, matrices are decomposed in float64 on
the CPU. None of them talks to other ranks. Features that are not all finite give nan. Features that differ by less
than float32's rounding count as equal, so a collapsed network does not have its rounding errors scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.2
LIDAR_DELTA = 1e-4
_EPSILON = 1e-7  # RankMe's and LiDAR's guard of the logarithm
_ROUNDING = 1e-6  # relative to the features' size: some units in the last place of float32
_ROWS = 1024  # bounds the (rows, 2n) matrix of similarities


def reference_contrast(views: Tensor, temperature: float = TEMPERATURE) -> float:
    """NT-Xent (SimCLR, arXiv 2002.05709, equation 1) of fixed reference views, on centred features; lower is better.

    Independent of the temperature, batch size, augmentation and projection head a trial was trained with, and of the
    features' scale, offset and rotation.

    Args:
        views: (2, n, D), n >= 2: two views of the same n held-out images, the same pixels for every trial.
        temperature: tau > 0, the same for every trial.

    Returns:
        0 at best; log(2n - 1) where the features tell nothing.
    """
    return float(reference_contrast_of_each(views, temperature).mean())


def reference_contrast_of_each(views: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Each image's part of `reference_contrast`, the mean over its two views: (n,) float32, on the views' device."""
    x = _prepared(views, 3, 2)
    if x is None:
        return torch.full(views.shape[1:2], math.nan, device=views.device)
    directions, n = _directions(_centred(x.flatten(0, 1))), x.shape[1]  # (2n, D)
    losses = []
    for rows, similarity in _similarities(directions):  # (r,), (r, 2n)
        logits = (similarity / temperature).scatter(1, rows[:, None], -math.inf)  # a view is no negative of itself
        losses.append(F.cross_entropy(logits, (rows + n) % (2 * n), reduction="none"))
    return torch.cat(losses).view(2, n).mean(0)


def retrieval_accuracy(views: Tensor) -> float:
    """Share of the 2n views whose nearest other view is of the same image, by centred cosine similarity; in [0, 1].

    Args:
        views: (2, n, D), n >= 2. A tie is a miss, so features that are all equal give 0.
    """
    x = _prepared(views, 3, 2)
    if x is None:
        return math.nan
    directions, n = _directions(_centred(x.flatten(0, 1))), x.shape[1]  # (2n, D)
    hits = 0
    for rows, similarity in _similarities(directions):  # (r,), (r, 2n)
        partner = ((rows + n) % (2 * n))[:, None]  # (r, 1)
        own = similarity.gather(1, partner)
        others = similarity.scatter(1, torch.cat([rows[:, None], partner], 1), -math.inf)
        hits += int((own[:, 0] > others.amax(1)).sum())
    return hits / (2 * n)


def rankme(features: Tensor) -> float:
    """Effective rank of the features as they are (RankMe, arXiv 2210.02885, equations 1 and 2); in [1, min(n, D)].

    A gate, not a ranking: 1 for collapsed features, but noise has full rank.

    Args:
        features: (n, D).
    """
    x = _prepared(features, 2)
    return math.nan if x is None else _effective_rank(torch.linalg.svdvals(x.cpu().double()))


def lidar(views: Tensor, delta: float = LIDAR_DELTA) -> float:
    """Effective rank of the linear discriminant matrix of images against views (LiDAR, arXiv 2312.04000, section 4).

    Args:
        views: (q, n, D), q >= 2 views of n >= 2 images.
        delta: added to the diagonal of the covariance within images; the score therefore depends on the scale.

    Returns:
        The rank, in [1, min(n - 1, D)]; 1 where the images do not differ.
    """
    x = _prepared(views, 3)
    if x is None:
        return math.nan
    q, n, width = x.shape
    if q < 2:
        raise ValueError("lidar needs two views of each image at least")
    x = x.cpu().double()
    means = x.mean(0)  # (n, D): mu_i
    between = _centred(means)  # (n, D)
    within = (x - means).flatten(0, 1)  # (qn, D)
    sigma_b = between.T @ between / (n - 1)
    sigma_w = within.T @ within / (n * (q - 1)) + delta * torch.eye(width, dtype=x.dtype)
    # L^-1 S_b L^-T with L L^T = S_w has the eigenvalues of S_w^-1/2 S_b S_w^-1/2.
    root = torch.linalg.cholesky(sigma_w)
    half = torch.linalg.solve_triangular(root, sigma_b, upper=False)
    return _effective_rank(torch.linalg.eigvalsh(torch.linalg.solve_triangular(root, half.T, upper=False)))


def uniformity(features: Tensor) -> float:
    """Log mean Gaussian potential of all pairs on the sphere (Wang and Isola, arXiv 2005.10242, sec. 4.1, t = 2).

    Args:
        features: (n, D), n >= 2; L2-normalised here, not centred.

    Returns:
        0 where all are equal, about -4 for directions spread over the sphere, -8 at least; lower is better.
    """
    x = _prepared(features, 2)
    if x is None:
        return math.nan
    if len(x) < 2:
        raise ValueError("uniformity needs two images at least")
    directions, total = _directions(x), 0.0
    for rows, similarity in _similarities(directions):  # (r,), (r, n)
        squares = directions[rows].square().sum(1)[:, None] + directions.square().sum(1) - 2 * similarity  # (r, n)
        total += float(torch.exp(-2 * squares).scatter(1, rows[:, None], 0.0).sum())
    return math.log(total / (len(x) * (len(x) - 1)))


def alignment(views: Tensor) -> float:
    """Mean squared distance of two views on the sphere (Wang and Isola, arXiv 2005.10242, sec. 4.1, alpha = 2).

    Args:
        views: (2, n, D); L2-normalised here, not centred.

    Returns:
        In [0, 4]; lower is better, but 0 for collapsed features: only together with `uniformity` does it say anything.
    """
    x = _prepared(views, 3, 2)
    if x is None:
        return math.nan
    a, b = _directions(x)  # (n, D) each
    return float((a - b).square().sum(1).mean())


def feature_std(features: Tensor) -> float:
    """Spread of the L2-normalised features, times the square root of D (SimSiam, arXiv 2011.10566, section 4.1).

    Args:
        features: (n, D); not centred, so the common part of features that are never negative (ReLU) lowers it.

    Returns:
        In [0, 1]: 1 for directions without a common part that use all dimensions alike, 0 when collapsed.
    """
    x = _prepared(features, 2)
    if x is None:
        return math.nan
    directions = _directions(x)  # (n, D)
    return float(_centred(directions).square().mean(0).sqrt().mean()) * math.sqrt(x.shape[1])


def _prepared(features: Tensor, dimensions: int, views: int | None = None) -> Tensor | None:
    """Features without a graph in float32 at least; None if one is not finite. Raises ValueError for a wrong shape."""
    if features.ndim != dimensions or 0 in features.shape or (views is not None and features.shape[0] != views):
        wanted = "(n, D)" if dimensions == 2 else f"({views or 'q'}, n, D)"
        raise ValueError(f"expected features of shape {wanted}, got {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        return None
    features = features.detach()
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _centred(x: Tensor) -> Tensor:
    """x (n, D) minus its mean; exactly zero where what is left is rounding."""
    left = x - x.mean(0)
    size = x.square().sum(1).mean().sqrt()
    return left.masked_fill(torch.linalg.vector_norm(left, dim=1, keepdim=True) <= _ROUNDING * size, 0.0)


def _directions(x: Tensor) -> Tensor:
    """x (..., D) L2-normalised; a zero stays zero, and no size is too small."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1.0)


def _similarities(directions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of row numbers (r,) and their similarities (r, n) to all n directions."""
    for rows in torch.arange(len(directions), device=directions.device).split(_ROWS):
        with torch.autocast(directions.device.type, enabled=False):  # whatever the caller does
            similarity = directions[rows] @ directions.T
        yield rows, similarity


def _effective_rank(spectrum: Tensor) -> float:
    """exp(entropy) of a spectrum (K,) that is normalised to sum 1, RankMe's equations 1 and 2; of zeros, 1."""
    spectrum = spectrum.clamp(min=0)  # eigenvalues may be negative by rounding
    total = spectrum.sum()
    if total == 0:
        return 1.0
    p = spectrum / total + _EPSILON
    return float(torch.exp(-(p * p.log()).sum()))
