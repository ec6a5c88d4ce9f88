"""The figure of replayed searches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import replay_figure
from PIL import Image
from replay_figure import OTHERS, OURS, RESULTS, STUDY, TITLES, paid, rows_of
from replay_ratios import GRID


def test_what_is_drawn_is_in_the_record() -> None:
    """A strategy that is renamed, or no longer replayed, would silently be missing from the figure."""
    objectives = json.loads(RESULTS.read_text(encoding="utf-8"))[STUDY]["objectives"]
    assert set(objectives) == set(TITLES)
    for found in objectives.values():
        assert all(rows_of(found, strategy) for strategy in (*OTHERS, *OURS))
        assert all("clear_share" in row for strategy in OURS for row in rows_of(found, strategy))
        assert not any("clear_share" in row for strategy in OTHERS for row in rows_of(found, strategy))


def test_the_figure_is_redrawn_from_the_record_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["replay_figure.py"])
    monkeypatch.setattr(replay_figure, "PICTURE", tmp_path / "replay.png")
    replay_figure.main()
    pixels = np.asarray(Image.open(tmp_path / "replay.png").convert("RGB"))
    assert pixels.shape[1] > 1.5 * pixels.shape[0]  # two panels
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # lines in colours, not an empty frame


def test_a_curve_ends_where_its_search_does() -> None:
    row = {"strategy": "random", "budget": 256, "cost": 5.0}
    curve = [None if cost < 2 else 0.1 for cost in GRID]
    drawn = np.array(paid({"anytime": {"random (256)": curve}}, row))
    assert np.isnan(drawn).tolist() == ((GRID < 2) | (GRID > 5)).tolist()
