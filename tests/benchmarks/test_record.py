"""What the benchmarks' results files say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import record
import torch


def test_a_record_is_added_to_the_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "results" / "new.json"
    record.append(path, {"n": 1})
    record.append(path, {"n": 2})
    assert json.loads(path.read_text()) == [{"n": 1}, {"n": 2}]
    assert [file.name for file in path.parent.iterdir()] == ["new.json"]


def test_a_file_of_one_record_becomes_the_first_of_a_list(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"n": 0}\n')
    record.append(path, {"n": 1})
    assert json.loads(path.read_text()) == [{"n": 0}, {"n": 1}]


def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "torn.json"
    path.write_text('[{"n": 0},')
    with pytest.raises(json.JSONDecodeError):
        record.append(path, {"n": 1})
    assert path.read_text() == '[{"n": 0},'


RECORDS = sorted(path for path in record.RESULTS.glob("*.json") if path.name != "replay.json")  # by study, no list


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_the_committed_results_can_be_added_to(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    record.append(copy, record.describe("cpu"))
    assert json.loads(copy.read_text())[-1]["machine"]["gpu"] == "not run on a GPU"


def test_the_spread_of_ratios() -> None:
    assert record.spread([3.0, 1.0, 2.0004]) == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert record.told([1.2, 1.1]) == "1.15 (1.10 to 1.20)"
    with pytest.raises(statistics.StatisticsError):
        record.spread([])


def test_a_record_names_the_machine_and_the_versions() -> None:
    about = record.describe("cpu")
    assert set(about) == {"date", "machine", "versions"}
    machine = about["machine"]
    assert machine["cores"] >= 1 and machine["memory_gib"] > 0 and machine["processor"]
    assert machine["threads"] == torch.get_num_threads()
    assert len(machine["load_average"]) == 3
    assert {"python", "torch", "phenoscape-tune"} <= set(about["versions"])


def test_without_a_gpu_a_benchmark_of_one_ends_with_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        record.need_gpu()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "needs a GPU" in told and "--doctor" in told
