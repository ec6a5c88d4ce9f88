"""The benchmark of large cubes, with tiny ones: what it writes can be searched, and what a process holds is seen.

The search itself takes minutes and gigabytes; that one over cubes goes through is in tests/cli/test_tune.py.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import ray  # noqa: F401  (brings the psutil that cube_memory imports)

import cube_memory  # isort: skip
from cube_memory import BANDS, CLASSES, watch, write_cubes  # isort: skip
from phenoscape_tune.cli import tune
from phenoscape_tune.data.parts import open_parts
from phenoscape_tune.layers import load_config


def test_what_is_written_is_cubes_in_classes(tmp_path: Path) -> None:
    assert write_cubes(tmp_path / "cubes", 16, 4) == 16 * BANDS * 4 * 4 * 2
    config = load_config("hyperspectral").model_copy(update={"data_dir": str(tmp_path / "cubes"), "batch_size": 4})
    parts = open_parts(config)
    assert parts.channels == BANDS
    assert len(parts.images.pixels) == 16
    assert len(parts.classes) == CLASSES


def test_the_most_that_a_process_holds_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    hold = "import time; held = bytearray(b'x') * 300_000_000; time.sleep(1.5); print('held')"
    found = watch([sys.executable, "-c", hold], dict(os.environ))
    assert 0.28 < found["peaks_gib"]["driver"]["anonymous"] <= found["peaks_gib"]["driver"]["resident"] < 0.5
    assert found["seconds"] >= 1.5
    assert "held" in capsys.readouterr().out


def test_a_search_that_fails_is_no_measurement() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 3:\nno room"):
        watch([sys.executable, "-c", "print('no room'); raise SystemExit(3)"], dict(os.environ))


def test_the_search_is_one_that_can_be_planned_and_the_record_has_its_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
        assert tune.main([*command[2:], "--dry-run", "--quiet"]) == 0
        search, cache = Path(command[command.index("--out") + 1]), Path(environment["PHENOSCAPE_CACHE"])
        for file in (search / "leaderboard.csv", cache / "packed-0" / "images.npy"):
            file.parent.mkdir(parents=True)
            file.write_text("rank\n1\n")
        return {"seconds": 1.0, "peaks_gib": {"driver": {"resident": 0.5, "anonymous": 0.4}}}

    monkeypatch.setattr(cube_memory, "watch", plan)
    words = ["--cubes", "8", "--side", "4", "--input-size", "16", "--out", str(tmp_path / "record.json")]
    monkeypatch.setattr("sys.argv", ["cube_memory.py", *words])
    cube_memory.main()
    (record,) = json.loads((tmp_path / "record.json").read_text())
    assert record["shape"] == [BANDS, 4, 4]
    assert record["largest_process_gib"] == 0.5
    assert record["trials"] == ["rank", "1"]
    assert record["ratio_to_float32"] > 100  # 8 cubes of 4 x 4 pixels are next to nothing
