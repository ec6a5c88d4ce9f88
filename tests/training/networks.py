"""A network of a few layers, and its gradient by the whole batch, by parts with all graphs kept, and by the cache."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from phenoscape_tune.nt_xent import nt_xent
from phenoscape_tune.training.gradient_cache import backpropagate, split_rows

TAU = 0.2


class Network(nn.Module):
    """Images (n, 3, 4, 4) to features (n, 6) and projections (n, 5)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), *layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layers(images)
        return h, self.head(h)


def network(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    return Network(*layers).to(dtype)


def views(batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2 * batch, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


def whole_gradient(encoder: nn.Module, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    encoder.zero_grad()
    loss = nt_xent(encoder(pixels)[1], TAU)
    loss.backward()
    return loss.detach(), [p.grad for p in encoder.parameters()]


def chunked_gradient(
    encoder: nn.Module, pixels: Tensor, micro_batch: int, autocast: Any = nullcontext
) -> tuple[Tensor, list[Tensor]]:
    """As the cached one, with the graphs of all parts kept: what memory would not allow."""
    encoder.zero_grad()
    z: Tensor | None = None
    for rows in split_rows(len(pixels) // 2, micro_batch):
        with autocast():
            part = encoder(pixels[rows])[1]
        z = part.new_zeros(len(pixels), part.shape[1]) if z is None else z.clone()
        z[rows] = part
    assert z is not None
    loss = nt_xent(z, TAU)
    loss.backward()
    return loss.detach(), [p.grad for p in encoder.parameters()]


def cached_gradient(
    encoder: nn.Module, pixels: Tensor, micro_batch: int, autocast: Any = nullcontext
) -> tuple[Tensor, list[Tensor]]:
    encoder.zero_grad()
    return backpropagate(encoder, pixels, TAU, micro_batch, autocast), [p.grad for p in encoder.parameters()]


def assert_same(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], rtol: float) -> None:
    assert torch.allclose(ours[0], theirs[0], rtol=rtol, atol=0)
    a, b = (torch.cat([gradient.flatten() for gradient in gradients]) for gradients in (ours[1], theirs[1]))
    assert float((a - b).norm()) <= rtol * float(b.norm())
