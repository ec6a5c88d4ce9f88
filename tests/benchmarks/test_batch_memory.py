"""The ways to train on a large batch, on a small one: that each computes what it is measured for."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import batch_memory
import torch

CPU = torch.device("cpu")
TINY = argparse.Namespace(backbone="test_resnet.r160_in1k", size=32, batch=32, micro=4, steps=1, agreement=32)


def test_ours_has_the_whole_batchs_gradient_and_accumulation_another() -> None:
    torch.manual_seed(0)
    found = batch_memory.agreement(TINY, CPU)
    assert (found["batch"], found["micro_batch"]) == (32, 2)
    assert found["ours"]["relative_difference"] < 1e-4 and found["ours"]["cosine"] > 0.9999
    assert found["accumulation"]["relative_difference"] > 0.05


def test_accumulation_is_the_mean_of_its_parts_losses() -> None:
    config, encoder = batch_memory.set_up(TINY, 4, 4, CPU)
    encoder.eval()
    parts = [batch_memory.make_views(8, 32, CPU) for _ in range(3)]
    batch_memory.accumulate(encoder, iter(parts).__next__, 3, config.temperature, nullcontext)
    found = [p.grad.clone() for p in encoder.parameters() if p.grad is not None]
    encoder.zero_grad()
    sum(batch_memory.nt_xent(encoder(part)[1], config.temperature) for part in parts).div(3).backward()
    for a, b in zip(found, (p.grad for p in encoder.parameters() if p.grad is not None), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_each_way_tells_its_peak_and_the_share_of_the_views() -> None:
    told = {way: batch_memory.measure(way, TINY, CPU) for way in batch_memory.WAYS}
    views = {way: found["views_mib"] for way, found in told.items()}
    # 64 views of 3 x 32 x 32 float32 are 0.75 MiB, 8 of them 0.09.
    assert views == {"ours": 1, "accumulation": 0, "whole batch": 1}
    assert all(found["seconds"] > 0 for found in told.values())


def test_a_peer_that_ran_out_of_memory_is_no_ratio() -> None:
    def way(peak: int, views: int, seconds: float) -> batch_memory.Measured:
        return {"peak_mib": peak, "views_mib": views, "seconds": seconds}

    fits = {"ours": way(120, 20, 4.0), "accumulation": way(102, 2, 2.0), "whole batch": way(420, 20, 3.0)}
    fails = fits | {"whole batch": {"failed": batch_memory.OUT_OF_MEMORY}}
    accumulation, whole = batch_memory.compare([fits, fails])
    assert accumulation["peak_ratio_without_views"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert accumulation["time_ratio"]["median"] == 2.0 and accumulation["failed"] == 0
    assert whole["peak_ratio"]["median"] == round(120 / 420, 3) and whole["failed"] == 1
    _, never = batch_memory.compare([fails])
    assert "peak_ratio" not in never
