from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from two_ranks import run_two_ranks

from phenoscape_tune import nt_xent as module
from phenoscape_tune.nt_xent import nt_xent


def paper_nt_xent(z: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1 and algorithm 1, one pair at a time."""
    n = len(z) // 2

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return torch.dot(a, b) / (a.norm() * b.norm())

    def loss(i: int, j: int) -> Tensor:
        numerator = torch.exp(similarity(z[i], z[j]) / temperature)
        denominator = sum(torch.exp(similarity(z[i], z[k]) / temperature) for k in range(2 * n) if k != i)
        return -torch.log(numerator / denominator)

    return sum(loss(k, k + n) + loss(k + n, k) for k in range(n)) / (2 * n)


@settings(deadline=None, max_examples=25)
@given(pairs=st.integers(1, 6), width=st.integers(2, 9), temperature=st.floats(0.05, 1.0), seed=st.integers(0, 2**31))
def test_equals_the_paper_in_value_and_gradient(pairs: int, width: int, temperature: float, seed: int) -> None:
    z = torch.randn(2 * pairs, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ours, slow = z.clone().requires_grad_(), z.clone().requires_grad_()
    a, b = nt_xent(ours, temperature), paper_nt_xent(slow, temperature)
    assert float(a) == pytest.approx(float(b), rel=1e-9, abs=1e-9)
    a.backward()
    b.backward()
    assert torch.allclose(ours.grad, slow.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_aligned_positives_and_orthogonal_negatives_give_the_closed_form(temperature: float) -> None:
    n = 8
    z = torch.eye(n, dtype=torch.float64).repeat(2, 1)
    expected = math.log(1 + (2 * n - 2) * math.exp(-1 / temperature))
    assert float(nt_xent(z, temperature)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_half_precision_projections_do_not_overflow_at_a_small_temperature() -> None:
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z.bfloat16(), 0.01)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_an_odd_number_of_projections_is_refused() -> None:
    with pytest.raises(ValueError, match="2B"):
        nt_xent(torch.zeros(3, 4), 0.1)


@pytest.mark.parametrize(
    ("values", "dtype"), [(1, torch.float64), (50, torch.float64), (196, torch.float64), (50, torch.float32)]
)
def test_blocks_of_anchors_give_the_same_loss_and_gradient(
    values: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.randn(14, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    whole, blocks = z.clone().requires_grad_(), z.clone().requires_grad_()
    expected = nt_xent(whole, 0.1)
    monkeypatch.setattr(module, "BLOCK_VALUES", values)
    found = nt_xent(blocks, 0.1)
    (3 * expected).backward()
    (3 * found).backward()
    rtol = 1e-10 if dtype == torch.float64 else 1e-4
    assert torch.allclose(found, expected, rtol=rtol)
    assert torch.allclose(blocks.grad, whole.grad, rtol=rtol, atol=rtol / 100)


def test_the_memory_of_a_large_batch_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    class Largest(TorchDispatchMode):
        values = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor):
                self.values = max(self.values, made.numel())
            return made

    def largest() -> int:
        z = torch.randn(64, 4, requires_grad=True)
        with Largest() as seen:
            nt_xent(z, 0.1).backward()
        return seen.values

    assert largest() == 64 * 64
    monkeypatch.setattr(module, "BLOCK_VALUES", 64 * 8)
    assert largest() == 64 * 8


@pytest.mark.slow
@pytest.mark.parametrize("values", [2**22, 60])
def test_two_real_ranks_equal_one_process_with_the_global_batch(tmp_path: Path, values: int) -> None:
    torch.manual_seed(0)
    batch = torch.randn(2, 6, 7, dtype=torch.float64)
    layer = torch.nn.Linear(7, 5, dtype=torch.float64)
    results = run_two_ranks(
        tmp_path,
        batch,
        layer,
        imports=f"from phenoscape_tune import nt_xent as module; module.BLOCK_VALUES = {values}",
        loss="loss = module.nt_xent(ddp(own), 0.2)\nloss.backward()",
    )
    loss = nt_xent(layer(batch.reshape(-1, 7)), 0.2)
    loss.backward()
    for result in results:
        assert torch.allclose(result["loss"], loss.detach(), rtol=1e-10)
        assert torch.allclose(result["weight"], layer.weight.grad, rtol=1e-8, atol=1e-12)
        assert torch.allclose(result["bias"], layer.bias.grad, rtol=1e-8, atol=1e-12)
    # The negatives of the other rank matter: a loss of the local batch alone is another number.
    local = torch.stack([nt_xent(layer(part.reshape(-1, 7)), 0.2) for part in batch.chunk(2, dim=1)]).mean()
    assert not torch.allclose(local, loss, rtol=1e-3)


def test_normalises_the_projections() -> None:
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(nt_xent(z, 0.3), nt_xent(F.normalize(z, dim=1) * 7, 0.3), rtol=1e-5)
