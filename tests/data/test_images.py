"""What is read of a large memory map does not stay in the process that read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from phenoscape_tune.data import images
from phenoscape_tune.data.batches import Batches

MIB = 2**20


def mapped_bytes() -> int:
    """Pages of files that this process has mapped, and read (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process has mapped")
def test_a_pass_over_a_large_map_keeps_a_batch_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", np.arange(48 * MIB // 2, dtype=np.uint16).reshape(24, 64, 128, 128))
    pixels = np.load(tmp_path / "images.npy", mmap_mode="r")
    order = np.arange(24)

    def grown() -> int:
        before = mapped_bytes()
        batches = Batches(pixels, 2, torch.device("cpu")).in_order(order)
        firsts = [int(batch[0, 0, 0, 0].to(torch.int32)) for batch in batches]
        after = mapped_bytes() - before
        assert firsts == [int(pixels[i, 0, 0, 0]) for i in range(0, 24, 2)]
        return after

    monkeypatch.setattr(images, "LARGE_BYTES", 1024 * MIB)
    assert grown() > 40 * MIB
    monkeypatch.setattr(images, "LARGE_BYTES", MIB)
    assert grown() < -32 * MIB  # what was read before goes, too
