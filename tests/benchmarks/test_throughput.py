"""What the throughput's record says of turns that were measured; the contestants themselves are timed, not tested."""

from __future__ import annotations

import sys
import warnings

import pytest
import throughput
import torch


def test_ratios_are_of_the_same_turn() -> None:
    turns = [
        {"ours": {"images_per_second": rate, "waiting_share": 0.1}, "peer": {"images_per_second": peer}}
        for rate, peer in ((100.0, 50.0), (40.0, 10.0), (90.0, 90.0))
    ]
    row = throughput.row_of("peer", turns, goal=1.15)
    assert (row["ours_times_as_fast"], row["least"], row["most"]) == (2.0, 1.0, 4.0)
    assert row["images_per_second"] == 50.0 and row["reached"]
    assert "waiting_share" not in row and throughput.row_of("ours", turns, None)["waiting_share"] == 0.1
    assert not throughput.row_of("peer", turns, goal=2.5)["reached"]


def test_waits_for_a_gpu_are_counted_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def epoch() -> throughput.Measured:
        for _ in range(3):
            warnings.warn(throughput.SYNCHRONISES, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        return {}

    (place, count), *others = throughput.synchronisations(epoch).items()
    assert not others and count == 3 and place.startswith("benchmarks/test_throughput.py:")
    assert modes == ["warn", "default"]


def test_without_a_gpu_its_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--gpu"])
    with pytest.raises(SystemExit) as ended:
        throughput.main()
    assert ended.value.code == 2 and "throughput.py: needs a GPU" in capsys.readouterr().err
