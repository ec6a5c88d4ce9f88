"""The copy on remote storage, kept up while something runs."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from phenoscape_tune.mirror import Mirror
from phenoscape_tune.storage import Storage


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class Slow(Storage):
    """A folder to which uploads take as long as a test likes, or fail."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"file://{folder}")
        self.goes_on = threading.Event()
        self.uploaded: list[str] = []
        self.broken = False
        self.tried = 0

    def upload(self, source: Path, name: str) -> None:
        self.tried += 1
        if self.broken:
            raise OSError("AWS Error NETWORK_CONNECTION")
        content = source.read_text()
        self.goes_on.wait(30)
        super().upload(source, name)
        self.uploaded.append(f"{name}: {content}")


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "local"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_version_that_waits_is_superseded_and_none_overtakes_another(local: Path, tmp_path: Path) -> None:
    storage = Slow(tmp_path / "remote")
    with Mirror(storage, local) as mirror:
        for version in range(1, 6):
            (local / "last.ckpt").write_text(f"epoch {version}")
            (local / "best.ckpt").write_text(f"epoch {version}")
            started = time.monotonic()
            mirror.put("last.ckpt", "best.ckpt")
            assert time.monotonic() - started < 0.5  # training does not wait
            if version == 1:
                while not storage.tried:
                    time.sleep(0.01)
        storage.goes_on.set()
    assert storage.uploaded[0] == "last.ckpt: epoch 1"
    assert storage.uploaded.count("last.ckpt: epoch 5") == 1 and storage.uploaded.count("best.ckpt: epoch 5") == 1
    assert len(storage.uploaded) == 3
    assert (tmp_path / "remote" / "last.ckpt").read_text() == "epoch 5"


def put_until_it_is_said(mirror: Mirror, storage: Slow, local: Path, said: list[str]) -> None:
    """A checkpoint that a broken storage does not take, up to the line that says so."""
    storage.goes_on.set()
    storage.broken = True
    (local / "last.ckpt").write_text("epoch 1")
    mirror.put("last.ckpt")
    while not said:
        time.sleep(0.01)


def test_uploads_that_fail_are_tried_again_and_said_once_and_at_the_end(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phenoscape_tune.mirror.WAITS", (0.01, 0.01))
    storage, said = Slow(tmp_path / "remote"), []
    with Mirror(storage, local, said.append) as mirror:
        put_until_it_is_said(mirror, storage, local, said)
        assert storage.tried == 3
        mirror.put("last.ckpt")
    assert len(said) == 2
    assert "last.ckpt: upload failed (AWS Error NETWORK_CONNECTION); training goes on without" in said[0]
    assert f"lacks last.ckpt; they are in {local}" in said[1]


def test_what_arrives_later_is_not_said_to_lack(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phenoscape_tune.mirror.WAITS", (0.01, 0.01))
    storage, said = Slow(tmp_path / "remote"), []
    with Mirror(storage, local, said.append) as mirror:
        put_until_it_is_said(mirror, storage, local, said)
        storage.broken = False
        mirror.put("last.ckpt")
        mirror.put("gone.ckpt")  # removed before its turn came
    assert len(said) == 1
    assert names(tmp_path / "remote") == ["last.ckpt"]


def test_uploads_come_before_removals_and_removals_lack_nothing(local: Path, tmp_path: Path) -> None:
    class Refusing(Slow):
        def remove_folder(self, name: str) -> None:
            self.uploaded.append(f"removal of {name}")
            raise OSError("AWS Error ACCESS_DENIED")

    storage, said = Refusing(tmp_path / "remote"), []
    (tmp_path / "remote" / "trials" / "a").mkdir(parents=True)
    (tmp_path / "remote" / "trials" / "a" / "last.ckpt").write_text("old")
    for name in ("study.journal", "summary.json"):
        (local / name).write_text("{}")
    with pytest.MonkeyPatch.context() as patch, Mirror(storage, local, said.append) as mirror:
        patch.setattr("phenoscape_tune.mirror.WAITS", ())
        mirror.put("study.journal")
        while not storage.tried:
            time.sleep(0.01)
        mirror.remove_folder("trials/a")
        mirror.put("summary.json")
        storage.goes_on.set()
        mirror.close()
    assert storage.uploaded == ["study.journal: {}", "summary.json: {}", "removal of trials/a"]
    assert len(said) == 1 and "trials/a: removal failed (AWS Error ACCESS_DENIED)" in said[0]


def test_what_is_asked_last_of_a_folder_counts(local: Path, tmp_path: Path) -> None:
    storage = Slow(tmp_path / "remote")
    (local / "first").write_text("1")
    for name in ("a", "b"):
        (local / name).mkdir()
        (local / name / "last.ckpt").write_text(name)
    with Mirror(storage, local) as mirror:
        mirror.put("first")
        while not storage.tried:
            time.sleep(0.01)
        mirror.put("a/last.ckpt")
        mirror.remove_folder("a")
        mirror.remove_folder("b")
        mirror.put("b/last.ckpt")
        storage.goes_on.set()
    assert names(tmp_path / "remote") == ["b/last.ckpt", "first"]


def test_of_what_may_be_there_already_only_what_lacks_is_uploaded(
    storage_url: str, local: Path, tmp_path: Path
) -> None:
    def seal(epoch: int) -> bytes:
        return bytes(1000) + bytes([epoch]) * 32

    own = Storage(storage_url)
    contents = {"same.log": b"one", "longer.log": b"one", "same.ckpt": seal(1), "newer.ckpt": seal(1)}
    for name, content in contents.items():
        (local / name).write_bytes(content)
        own.upload(local / name, f"t/{name}")
        (local / "t").mkdir(exist_ok=True)
        (local / name).rename(local / "t" / name)
    assert own.sizes() == {f"t/{name}": len(content) for name, content in contents.items()}
    (local / "t" / "longer.log").write_bytes(b"one, two")
    (local / "t" / "newer.ckpt").write_bytes(seal(2))
    (local / "t" / "new.log").write_bytes(b"new")
    uploaded: list[str] = []

    class Noting(Storage):
        def upload(self, source: Path, name: str) -> None:
            uploaded.append(name)
            super().upload(source, name)

    with Mirror(Noting(storage_url), local) as mirror:
        mirror.put_lacking("t/same.log", "t/longer.log", "t/new.log")
        mirror.put_lacking("t/same.ckpt", "t/newer.ckpt", sealed=True)
    assert uploaded == ["t/longer.log", "t/new.log", "t/newer.ckpt"]
    for path in (local / "t").iterdir():
        assert (
            own.download(f"t/{path.name}", tmp_path / "back") and path.read_bytes() == (tmp_path / "back").read_bytes()
        )


def test_at_the_end_a_folder_that_is_not_there_is_not_removed_again(local: Path, tmp_path: Path) -> None:
    removed: list[str] = []

    class Noting(Storage):
        def remove_folder(self, name: str) -> None:
            removed.append(name)
            super().remove_folder(name)

    (tmp_path / "remote" / "b").mkdir(parents=True)
    (tmp_path / "remote" / "b" / "last.ckpt").write_text("of a trial that was cut off")
    (tmp_path / "remote" / "summary.json").write_text("{}")
    mirror = Mirror(Noting(f"file://{tmp_path}/remote"), local)
    with mirror._changed:  # nothing begins before the end has
        mirror._ends = True
        mirror._removals.update(dict.fromkeys(["a", "b"]))
    mirror.close()
    assert removed == ["b"]
    assert names(tmp_path / "remote") == ["summary.json"]


@pytest.mark.parametrize("to_the_end", [True, False])
def test_the_end_of_a_search_waits_as_long_as_files_arrive(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_the_end: bool
) -> None:
    class Paced(Storage):
        def upload(self, source: Path, name: str) -> None:
            time.sleep(0.3)
            super().upload(source, name)

    monkeypatch.setattr("phenoscape_tune.mirror.PATIENCE", 1.5)
    said: list[str] = []
    for number in range(10):  # 3 s
        (local / f"{number}.log").write_text("log")
    with Mirror(Paced(f"file://{tmp_path}/remote"), local, said.append, to_the_end) as mirror:
        mirror.put_folder(".")
    if to_the_end:
        assert not said and len(names(tmp_path / "remote")) == 10
    else:
        assert len(said) == 1 and "lacks" in said[0] and "9.log" not in names(tmp_path / "remote")


def test_the_end_of_a_search_does_not_wait_for_an_upload_that_hangs(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phenoscape_tune.mirror.PATIENCE", 0.5)
    storage, said = Slow(tmp_path / "remote"), []
    (local / "best.ckpt").write_text("1")
    (local / "report.html").write_text("1")
    started = time.monotonic()
    with Mirror(storage, local, said.append, to_the_end=True) as mirror:
        mirror.put("best.ckpt", "report.html")
    assert time.monotonic() - started < 10
    assert len(said) == 1 and "lacks best.ckpt, report.html; they are in" in said[0]
    storage.goes_on.set()
    mirror._thread.join(30)


def test_without_storage_nothing_happens(local: Path) -> None:
    with Mirror(None, local) as mirror:
        mirror.put("last.ckpt")
        mirror.put_folder("logs")
        mirror.remove_folder("logs")
