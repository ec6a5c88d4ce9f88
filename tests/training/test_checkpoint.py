from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.training import checkpoint


def state(epoch: int) -> checkpoint.State:
    history = [{"epoch": e, "objective": e / 10} for e in range(1, epoch + 1)]
    return checkpoint.State({"w": torch.full((4,), float(epoch))}, {"lr": 0.1}, {"seed": 1}, epoch, history)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(state(3), tmp_path, best=True)
    loaded = checkpoint.load(tmp_path / "last.ckpt")
    assert torch.equal(loaded.model["w"], torch.full((4,), 3.0))
    assert (loaded.optimizer, loaded.config, loaded.epoch) == ({"lr": 0.1}, {"seed": 1}, 3)
    assert loaded.history[-1] == {"epoch": 3, "objective": 0.3}


def test_best_stays_when_a_later_epoch_is_worse(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, best=True)
    checkpoint.save(state(2), tmp_path, best=False)
    assert checkpoint.load(tmp_path / "best.ckpt").epoch == 1
    assert checkpoint.load(tmp_path / "last.ckpt").epoch == 2


def test_the_last_two_and_the_best_are_kept_and_nothing_else(tmp_path: Path) -> None:
    for epoch in range(1, 5):
        checkpoint.save(state(epoch), tmp_path, best=epoch == 2)
    assert {path.name: checkpoint.load(path).epoch for path in tmp_path.iterdir()} == {
        "last.ckpt": 4, "previous.ckpt": 3, "best.ckpt": 2
    }  # fmt: skip


def test_where_files_cannot_have_two_names_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError("a file system without hard links")

    monkeypatch.setattr(os, "link", refuse)
    for epoch in (1, 2):
        checkpoint.save(state(epoch), tmp_path, best=True)
    assert {path.name: checkpoint.load(path).epoch for path in tmp_path.iterdir()} == {
        "last.ckpt": 2, "previous.ckpt": 1, "best.ckpt": 2
    }  # fmt: skip


WRITER = """
import sys, torch
from pathlib import Path
from phenoscape_tune.training import checkpoint
for epoch in range(1, 10**6):
    model = {"w": torch.full((500_000,), float(epoch))}
    checkpoint.save(checkpoint.State(model, {}, {}, epoch, []), Path(sys.argv[1]), best=epoch % 2 == 0)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_checkpoints(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / "best.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1234)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        loaded = checkpoint.load(tmp_path / name)
        assert (loaded.model["w"] == loaded.epoch).all()


def test_a_truncated_a_foreign_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    checkpoint.save(state(1), tmp_path, best=False)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.ckpt")
    checkpoint.write({"w": torch.zeros(1)}, tmp_path / "other.ckpt")
    faults = {"cut": "no checksum", "foreign": "no checksum", "other": "not a checkpoint", "none": "no such"}
    for name, message in faults.items():
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path / f"{name}.ckpt")


def test_a_checkpoint_of_an_earlier_version_is_named_as_such_and_not_as_damaged(tmp_path: Path) -> None:
    """Format 1 had no checksum. A file of this format that lost its own is damaged all the same."""
    content = vars(state(2))
    torch.save({"format": 1, **content}, tmp_path / "last.ckpt")
    torch.save({"format": checkpoint.FORMAT, **content}, tmp_path / "cut.ckpt")
    told = r"is of an earlier version of this project \(format 1\)"
    with pytest.raises(UserError, match=rf"last\.ckpt: {told}, which cannot be read"):
        checkpoint.load(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=rf"last\.ckpt.*it {told}.*previous\.ckpt \(it is missing\); start anew"):
        checkpoint.recover(tmp_path)
    assert "no checksum" in str(checkpoint.find_fault(tmp_path / "cut.ckpt"))
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path / "cut.ckpt")


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "executed",)

    # Whoever writes code into a file can write its checksum too.
    checkpoint.write({"format": checkpoint.FORMAT, "model": Touch()}, tmp_path / "code.ckpt")
    torch.save({"format": checkpoint.FORMAT, "model": Touch()}, tmp_path / "plain.ckpt")
    for name, message in (
        ("code", r"not a whole checkpoint.*\(UnpicklingError\)"),
        ("plain", "not a whole checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "executed").exists()


def test_no_flipped_byte_is_read_as_another_value(tmp_path: Path) -> None:
    """Every byte of a small file: zip's own checksums let some through, with which torch reads other values."""
    path = tmp_path / "last.ckpt"
    checkpoint.save(state(3), tmp_path, best=False)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        assert checkpoint.find_fault(path) is not None, position
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        checkpoint.load(path)


def _damage(whole: bytes, cuts: tuple[int, int], flips: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(whole)
    for position, bits in flips:
        damaged[position % len(whole)] ^= bits
    first, last = sorted(cut % (len(whole) + 1) for cut in cuts)
    return bytes(damaged[:first] + damaged[last:])


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("sealed")
    checkpoint.save(state(3), folder, best=False)
    return (folder / "last.ckpt").read_bytes()


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=5),
    st.booleans(),
)
def test_a_damaged_file_is_refused_or_holds_the_very_same(
    sealed: bytes, cuts: tuple[int, int], flips: list[tuple[int, int]], cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        path.write_bytes(_damage(sealed, cuts if cut else (0, 0), flips))
        try:
            loaded = checkpoint.load(path)
        except UserError:
            return
        assert torch.equal(loaded.model["w"], state(3).model["w"])
        assert (loaded.epoch, loaded.history, loaded.optimizer) == (3, state(3).history, state(3).optimizer)


def _saved(folder: Path, epochs: int = 3) -> Path:
    for epoch in range(1, epochs + 1):
        checkpoint.save(state(epoch), folder, best=epoch == 1)
    return folder / "last.ckpt"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # not in place: `best` may be the same file
    path.write_bytes(content)


def test_a_damaged_last_one_gives_way_to_the_one_before(tmp_path: Path) -> None:
    last = _saved(tmp_path)
    assert checkpoint.recover(tmp_path) is None
    _flip(last)
    said = checkpoint.recover(tmp_path)
    told = "damaged (its content does not match its checksum)"
    assert said == f"last.ckpt is {told}: goes on from previous.ckpt, epoch 2"
    assert checkpoint.load(last).epoch == 2
    # What is saved next does not push the damaged one into the place of the whole one.
    checkpoint.save(state(3), tmp_path, best=False)
    assert [checkpoint.load(tmp_path / f"{name}.ckpt").epoch for name in ("last", "previous")] == [3, 2]


def test_a_missing_last_one_gives_way_to_the_one_before(tmp_path: Path) -> None:
    _saved(tmp_path).unlink()
    assert checkpoint.recover(tmp_path) == "last.ckpt is missing: goes on from previous.ckpt, epoch 2"


def test_where_both_are_damaged_it_is_said_and_a_trial_starts_anew(tmp_path: Path) -> None:
    assert checkpoint.find_last(tmp_path) == (None, None)
    last = _saved(tmp_path)
    assert checkpoint.find_last(tmp_path) == (last, None)
    for path in (last, tmp_path / "previous.ckpt"):
        _flip(path)
    with pytest.raises(
        UserError, match=r"last\.ckpt.*neither is previous\.ckpt.*go on from .*best\.ckpt, or start anew"
    ):
        checkpoint.recover(tmp_path)
    found, said = checkpoint.find_last(tmp_path)
    assert found is None
    assert said is not None and said.startswith("starts anew from epoch 0: ") and "checksum" in said


@pytest.mark.parametrize("left", ["nothing", "a half", "all but the checksum's end", "no second name"])
def test_a_full_disk_leaves_what_was_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """Wherever the space ends: in the middle of torch's writing, in the checksum, or in the copies."""
    size = _saved(tmp_path).stat().st_size
    room = {"nothing": 0, "a half": size // 2}.get(left, size - 20)
    open_ = Path.open

    class Full(io.BytesIO):
        written = 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            if self.written > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data)

    def open_full(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode != "wb":
            return open_(path, mode, *rest, **more)
        open_(path, mode).close()
        return Full()

    def refuse(*names: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if left == "no second name":
        monkeypatch.setattr(os, "link", refuse)
        monkeypatch.setattr(shutil, "copyfile", refuse)
    else:
        monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(NoSpaceLeft, match=f"No space left on the disk of {tmp_path}"):
        checkpoint.save(state(4), tmp_path, best=True)
    monkeypatch.undo()
    assert {path.name: checkpoint.load(path).epoch for path in tmp_path.iterdir()} == {
        "last.ckpt": 3, "previous.ckpt": 2, "best.ckpt": 1
    }  # fmt: skip
