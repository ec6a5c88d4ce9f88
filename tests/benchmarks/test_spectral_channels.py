"""The benchmark of channels, with a few tiny images: each change is trained once, and the table is of the record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import spectral_channels
import tifffile
from spectral_channels import EPOCHS, RESULTS, RUNS, main, read, table

TINY = ("input_size=16", "batch_size=8", "projection_dim=8", "num_workers=1", "accelerator=cpu")


@pytest.fixture
def tiffs(tmp_path: Path) -> Path:
    """2 x 16 images of 7 channels: classes differ in the ultraviolet."""
    rng = np.random.default_rng(0)
    for name, bright in (("dark", 20), ("bright", 200)):
        (tmp_path / "tiffs" / name).mkdir(parents=True)
        for number in range(16):
            pixels = rng.integers(0, 255, (7, 12, 12), np.uint8)
            pixels[3:6] = bright
            path = tmp_path / "tiffs" / name / f"{number}.tif"
            tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="separate", metadata=None)
    return tmp_path / "tiffs"


@pytest.mark.slow
def test_each_change_is_trained_once_and_told(
    tiffs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(spectral_channels, "EPOCHS", dict.fromkeys(EPOCHS, 1))
    words = ["--seeds", "0", "--only", "multispectral", "--results", str(results), f"data_dir={tiffs}", *TINY]
    monkeypatch.setattr("sys.argv", ["spectral_channels.py", *words])
    main()
    rows = read(results)
    assert [(row["change"]["channels"], row["channels"]) for row in rows] == [
        ("rgb_only", 3), ("uv_only", 3), ("full", 6),
    ]  # fmt: skip
    assert all(0 <= row["objective"] <= 1 and len(row["curve"]) == 1 for row in rows)
    assert all(row["images"] == {"train": 16, "val": 8} for row in rows)
    shown = capsys.readouterr().out
    assert f"| multispectral | channels: uv_only | 3 | {rows[1]['objective']:.3f} | 1 |" in shown
    main()
    assert read(results) == rows  # what is there is not trained again


def test_the_table_has_the_mean_and_its_standard_error() -> None:
    row = {"config": "multispectral", "change": {"channels": "full"}, "channels": 6, "processor_seconds": 4}
    told = table([{**row, "objective": value} for value in (0.5, 0.6, 0.7)])
    assert told.splitlines()[-1] == "| multispectral | channels: full | 6 | 0.600 ± 0.058 | 3 | 4 |"


def test_the_record_has_every_change_with_three_seeds() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    for name, change in RUNS:
        assert len({row["seed"] for row in rows if (row["config"], row["change"]) == (name, change)}) == 3
