"""Rows 15 and 16 of the faults: a disk that is full, and checkpoints that are damaged; through the commands."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lives
import pytest

from phenoscape_tune.cli.train import main
from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.study import Study, read_trials
from phenoscape_tune.training import checkpoint
from phenoscape_tune.yaml_file import load_mapping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
SMALL = (
    "backbone=test_resnet.r160_in1k",
    *("input_size=32", "stem=standard", "projection_dim=16", "batch_size=8", "num_workers=1", "accelerator=cpu"),
)
SPACE = """
parameters:
  lr: {type: loguniform, low: 1.0e-4, high: 1.0e-1}
scheduler: {grace_epochs: 3, reduction_factor: 2}
budget: {trials: 4, max_epochs: 4}
confirm: null
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many megabytes; asked again, another size of the same one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def size(megabytes: int) -> Path:
        nonlocal mounted
        options = f"size={megabytes}m" + (",remount" if mounted else "")
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"mounting a small disk is refused here: {made.stderr.strip()}")
        mounted = True
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    yield size
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def tune(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "tune.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)


Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(capfd: pytest.CaptureFixture[str]) -> Train:
    """Runs train.py in this process, which has loaded torch; returns its exit code and what it said of faults."""

    def run(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        code = main([*map(str, arguments), "--quiet"])
        return code, capfd.readouterr().err

    return run


def fill(folder: Path, left: int) -> Path:
    """Fill a disk up to `left` bytes; what it is filled with can be removed."""
    filler = folder / "filler"
    free = shutil.disk_usage(folder).free
    with filler.open("wb") as file:
        file.write(b"\0" * max(0, free - left))
    return filler


def test_a_run_on_a_full_disk_says_so_keeps_its_checkpoints_and_goes_on(
    birds: Path, small_disk: Callable[[int], Path], train: Train
) -> None:
    disk = small_disk(40)
    folder = disk / "run"
    start = (f"data_dir={birds}", f"out_dir={folder}", *SMALL)
    assert train(*start, "max_epochs=3")[0] == 0
    checkpoints = folder / "checkpoints"
    kept = {path.name: checkpoint.load(path).epoch for path in checkpoints.iterdir()}
    size = (checkpoints / "last.ckpt").stat().st_size
    filler = fill(disk, left=size // 2)
    # Room for logs, and none for a whole checkpoint.
    code, error = train("--resume", checkpoints / "last.ckpt", "max_epochs=5")
    assert code == 1
    assert "Traceback" not in error and "Exception" not in error
    assert error.count("No space left") == 1
    assert f"No space left on the disk of {checkpoints}" in error
    assert f"python scripts/train.py --resume {checkpoints / 'last.ckpt'}" in error
    assert {path.name: checkpoint.load(path).epoch for path in checkpoints.iterdir()} == kept
    assert load_mapping(folder / "config.yaml")["max_epochs"] == 5
    filler.unlink()
    assert train("--resume", checkpoints / "last.ckpt")[0] == 0
    assert checkpoint.load(checkpoints / "last.ckpt").epoch == 5


def test_a_run_on_a_disk_without_room_for_its_log_says_so(
    birds: Path, small_disk: Callable[[int], Path], train: Train
) -> None:
    disk = small_disk(40)
    folder = disk / "run"
    start = (f"data_dir={birds}", f"out_dir={folder}", *SMALL)
    assert train(*start, "max_epochs=1")[0] == 0
    filler = fill(disk, left=0)
    configuration = (folder / "config.yaml").read_text()
    code, error = train("--resume", folder / "checkpoints" / "last.ckpt", "max_epochs=2")
    assert code == 1
    assert "Traceback" not in error and error.count("No space left") == 1
    assert str(folder) in error
    assert (folder / "config.yaml").read_text() == configuration
    filler.unlink()
    assert checkpoint.load(folder / "checkpoints" / "last.ckpt").epoch == 1


def test_a_run_without_the_disk_that_it_needs_is_refused(
    birds: Path, small_disk: Callable[[int], Path], train: Train
) -> None:
    folder = small_disk(2) / "run"
    code, error = train(f"data_dir={birds}", f"out_dir={folder}", *SMALL, "backbone=resnet18")
    assert code == 2
    assert re.search(r"the run needs about \d+ MB of disk, and 2\.\d+ MB are free; free some", error)
    assert not folder.exists()


def test_a_search_without_the_disk_that_it_needs_is_refused_before_its_first_trial(
    birds: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    space = tmp_path / "lr.yaml"
    space.write_text(SPACE)
    out = small_disk(2) / "search"
    ended = tune("--space", space, "--out", out, f"data_dir={birds}", *SMALL, "backbone=resnet18")
    assert ended.returncode == 2
    refused = (
        r"the search needs about [\d.]+ .B of disk, and 2\.\d+ MB are free; .*\(--out\), or lower keep or --concurrent"
    )
    assert re.search(refused, ended.stderr), ended.stderr
    assert not out.exists()


def test_a_journal_on_a_full_disk_is_whole_and_goes_on(small_disk: Callable[[int], Path]) -> None:
    """Not a byte is left for it: what a search says then is the same as of its checkpoints."""
    disk = small_disk(2)
    journal, stage = disk / "study.journal", Stage(1, "lr", ("lr",), 1)
    study = Study(journal, {"lr": Parameter(type="loguniform", low=1e-4, high=1e-1)}, 0, True)
    study.open_stage(stage, None)
    record = study.ask(stage, {})
    filler = fill(disk, left=0)

    def report_until_full() -> None:
        nonlocal record
        for epoch in range(1, 200):  # the last page that it has is filled first
            record = study.report(record, {"epoch": epoch, "objective": epoch / 200, "seconds": 1.0})

    with pytest.raises(NoSpaceLeft, match=f"No space left on the disk of {disk}"):
        report_until_full()
    assert record.curve
    lines = journal.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and json.loads(line) for line in lines)
    assert read_trials(journal)[0].curve[: len(record.curve)] == record.curve
    filler.unlink()
    next_epoch = len(record.curve) + 1
    record = study.report(record, {"epoch": next_epoch, "objective": 1.0, "seconds": 1.0})
    assert (len(record.curve), record.curve[-1]) == (next_epoch, 1.0)
    assert read_trials(journal) == [record]


def trials_of(folder: Path) -> dict[str, tuple[str, int]]:
    return {record.name: (record.status, len(record.curve)) for record in read_trials(folder / "study.journal")}


def test_a_search_on_a_full_disk_stops_whole_and_goes_on(
    birds: Path, tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """Its disk is filled after the first trial's end: checkpoints do not fit; full, it does not start again."""
    disk = small_disk(60)
    out, space = disk / "search", tmp_path / "lr.yaml"
    space.write_text(SPACE)
    command = [sys.executable, ROOT / "scripts" / "tune.py", "--space", space, "--out", out, "--concurrent", "1"]
    command += [f"data_dir={birds}", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as search:
        assert search.stdout is not None
        for line in search.stdout:
            if re.search(r"defaults-00-\w+ .*completed", line):
                break
        filler = fill(disk, left=100_000)
        told, error = search.communicate(timeout=400)
    assert search.returncode == 1, told + error
    assert "Traceback" not in error and error.count("No space left") == 1, error
    assert str(disk) in error and f"python scripts/tune.py --resume --out {out}" in error
    before = trials_of(out)
    assert ("completed", 4) in before.values() and "running" in {status for status, _ in before.values()}
    for path in out.glob("trials/*/checkpoints/*.ckpt"):
        assert checkpoint.find_fault(path) is None, path
    ended = tune("--resume", "--out", out, "--concurrent", "1")
    assert ended.returncode == 2, ended.stderr
    refused = rf"{out}: the search needs about [\d.]+ MB of disk, and [\d.]+ (bytes|kB) are free; free some"
    assert re.search(refused, ended.stderr) and "Traceback" not in ended.stderr, ended.stderr
    assert trials_of(out) == before
    filler.unlink()
    assert tune("--resume", "--out", out, "--concurrent", "1").returncode == 0
    after = trials_of(out)
    assert {status for status, _ in after.values()} <= {"completed", "pruned"}
    assert len(after) == 4 and set(before) <= set(after)
    assert all(after[name] == known for name, known in before.items() if known[0] == "completed")
    with (out / "leaderboard.csv").open() as file:
        assert {row["trial"] for row in csv.DictReader(file)} == set(after)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.unlink()
    path.write_bytes(content)


def test_a_run_with_a_damaged_last_checkpoint_goes_on_from_the_one_before(
    birds: Path, tmp_path: Path, train: Train
) -> None:
    folder = tmp_path / "run"
    start = (f"data_dir={birds}", f"out_dir={folder}", *SMALL)
    assert train(*start, "max_epochs=3")[0] == 0
    last = folder / "checkpoints" / "last.ckpt"
    whole = checkpoint.load(last).history
    damage(last)
    code, error = train("--resume", last)
    assert code == 0, error
    line = r"last\.ckpt is damaged \(its content does not match its checksum\): goes on from previous\.ckpt, epoch 2"
    assert re.search(line, error)
    assert re.search(line, (folder / "logs" / "training.log").read_text())
    history = checkpoint.load(last).history
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert history[-1]["train_loss"] == pytest.approx(whole[-1]["train_loss"], rel=1e-4)
    damage(last)
    damage(last.with_name("previous.ckpt"))
    code, error = train("--resume", last)
    assert code == 2
    assert "Traceback" not in error
    assert "neither is previous.ckpt" in error and "best.ckpt" in error


def test_a_search_with_damaged_checkpoints_goes_on_and_says_how(
    birds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is cut off by SIGKILL twice; it loses its last checkpoint, then both."""
    monkeypatch.setattr("lives.SPACE", lives.SPACE.replace("grace_epochs: 3", "grace_epochs: 8"))
    search = lives.Search(tmp_path / "search", birds, trials=3, epochs=9)

    def killed_after(reports: int) -> Callable[[subprocess.Popen[str]], None]:
        def end(process: subprocess.Popen[str]) -> None:
            search.after_reports(process, reports)
            process.kill()

        return end

    search.live(killed_after(9 + 4))
    name = next(name for name, record in search.known().items() if not record.ended)
    checkpoints = search.folder / "trials" / name / "checkpoints"
    wait_until_still(checkpoints)  # its process ends with the driver's
    before = search.known()
    damage(checkpoints / "last.ckpt")
    second = search.live(killed_after(2))
    told = rf"{name}: last\.ckpt is damaged \(.*?\): goes on from previous\.ckpt, epoch \d"
    assert re.search(told, re.sub(r"\s+", " ", second.printed)), second.printed
    wait_until_still(checkpoints)
    for file in ("last.ckpt", "previous.ckpt"):
        damage(checkpoints / file)
    third = search.live()
    assert third.code == 0, third.printed
    told = rf"{name}: starts anew from epoch 0: .*neither is previous\.ckpt"
    assert re.search(told, re.sub(r"\s+", " ", third.printed)), third.printed
    assert "starts anew" in (search.folder / "trials" / name / "logs" / "training.log").read_text()
    assert lives.lost(before, search.known()) == []
    assert {record.status for record in search.known().values()} <= {"completed", "pruned"}
    assert len(search.known()[name].curve) >= 8


def wait_until_still(folder: Path) -> None:
    seen, since = None, time.monotonic()
    while time.monotonic() - since < 3:
        now = {path.name: path.stat().st_mtime_ns for path in folder.glob("*")}
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.1)
