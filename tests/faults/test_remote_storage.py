"""A search whose results are copied to S3, and whose trials lose the machine that they ran on."""

from __future__ import annotations

import json
import shutil
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from lives import Search, lost

from phenoscape_tune.search.study import read_trials
from phenoscape_tune.storage import Storage
from phenoscape_tune.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def names(server: str, bucket: str) -> set[str]:
    """The objects of a bucket, as S3 itself lists them."""
    with urllib.request.urlopen(f"{server}/{bucket.removeprefix('s3://')}?list-type=2&max-keys=1000") as answer:
        listing = ET.fromstring(answer.read())
    return {str(key.text) for key in listing.iter() if key.tag.endswith("}Key")}


def test_a_search_on_s3_goes_on_without_the_local_checkpoints(
    birds: Path, tmp_path: Path, bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(tmp_path / "search", birds, trials=3, epochs=4)
    monkeypatch.setattr("lives.TINY", [*_tiny(), f"storage={bucket}/search"])

    def kill_in_a_later_trial(process: object) -> None:
        search.after_reports(process, 6)  # type: ignore[arg-type]
        process.kill()  # type: ignore[attr-defined]

    search.live(kill_in_a_later_trial)
    before = search.known()
    running = [name for name, record in before.items() if not record.ended and record.curve]
    assert len(running) == 1
    own = search.folder / "trials" / running[0]
    shutil.rmtree(own)  # with the disk of the machine that it ran on
    ended = search.live()
    assert ended.code == 0, ended.printed
    assert f"{running[0]}: goes on from {bucket}/search/trials/{running[0]}, epoch" in " ".join(ended.printed.split())
    assert lost(before, search.known()) == []
    found = names(s3_server, bucket)
    for name in ("search.yaml", "study.journal", "leaderboard.csv", "best.yaml", "summary.json", "report.html"):
        assert f"search/{name}" in found
        assert Storage(f"{bucket}/search").download(name, tmp_path / "copy" / name)
        assert (tmp_path / "copy" / name).read_bytes() == (search.folder / name).read_bytes(), name
    assert {r.name: r.curve for r in read_trials(tmp_path / "copy" / "study.journal")} == {
        name: record.curve for name, record in search.known().items()
    }
    # There as here: checkpoints of the trials that are kept, logs of all.
    winner = json.loads((search.folder / "summary.json").read_text())["winner"]["trial"]
    for name in search.known():
        assert f"search/trials/{name}/config.yaml" in found and f"search/trials/{name}/logs/training.log" in found
        here = {path.name for path in (search.folder / "trials" / name / "checkpoints").glob("*.ckpt")}
        there = {key.rsplit("/", 1)[1] for key in found if key.startswith(f"search/trials/{name}/checkpoints/")}
        assert there == here, name
    assert checkpoint.find_fault(search.folder / "trials" / winner / "checkpoints" / "best.ckpt") is None


def _tiny() -> list[str]:
    import lives

    return list(lives.TINY)


def test_a_search_whose_storage_is_out_of_reach_is_refused_before_its_first_trial(
    birds: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("lives.TINY", [*_tiny(), f"storage={bucket}/search"])
    search = Search(tmp_path / "search", birds, trials=3, epochs=4)
    ended = search.live()
    assert ended.code == 2
    assert "cannot be written and read" in ended.printed and "Traceback" not in ended.printed
    assert not search.folder.exists()
