from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies import LR, open_study, report_all, snapshot, stored

from phenoscape_tune.errors import NoSpaceLeft
from phenoscape_tune.search.journal import drop_torn_line


def test_a_full_disk_takes_a_half_written_line_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.journal"
    study = open_study(tmp_path)
    record = study.ask(LR, {})
    before, sync = path.read_bytes(), os.fsync

    def half(number: int) -> None:
        os.truncate(path, len(before) + 20)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", half)
    with pytest.raises(NoSpaceLeft, match=f"No space left on the disk of {tmp_path}"):
        study.report(record, {"epoch": 1, "objective": 0.5, "seconds": 1.0})
    assert path.read_bytes() == before
    # Once there is space, the same study goes on.
    monkeypatch.setattr(os, "fsync", sync)
    assert study.report(record, {"epoch": 1, "objective": 0.5, "seconds": 1.0}).curve == (0.5,)


def test_a_journal_whose_last_line_was_cut_off_opens_and_goes_on(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = report_all(study, study.ask(LR, {}), [0.1, 0.2])
    with (tmp_path / "study.journal").open("ab") as file:  # a disk that was full, a power cut
        file.write(b'{"op_code":8,"worker_id":"x","trial_')
    again = open_study(tmp_path)
    assert again.trials(LR) == [record]
    report_all(again, record, [0.3])
    (last,) = snapshot(tmp_path)
    assert last.curve == (0.1, 0.2, 0.3)


@pytest.mark.timeout(10)
def test_the_lock_of_a_killed_process_does_not_hold_up_a_resume(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = study.ask(LR, {})
    journal = tmp_path / "study.journal"
    # A process that is killed while it writes a report.
    script = "import os, sys; from filelock import FileLock; FileLock(sys.argv[1]).acquire(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, f"{journal}.lock"], check=False)
    assert Path(f"{journal}.lock").exists()
    started = time.monotonic()
    again = open_study(tmp_path)
    report_all(again, record, [0.1])
    assert time.monotonic() - started < 5


REPORTER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import studies as t
study = t.open_study(Path(sys.argv[1]))
record = study.ask(t.LR, {})
for epoch in range(1, 100_000):
    record = study.report(record, {"epoch": epoch, "objective": epoch / 100_000})
    print(epoch, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    epochs = 40
    process = subprocess.Popen(
        [sys.executable, "-c", REPORTER, tmp_path, Path(__file__).parent], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if int(line) >= epochs:
                break
    finally:
        process.send_signal(signal.SIGKILL)
    rest = [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    reported = max([epochs, *rest])
    # Read without the lock that the process may have left.
    (trial,) = stored(tmp_path)
    assert trial.state == TrialState.RUNNING
    assert "name" in trial.user_attrs
    written = trial.intermediate_values
    assert len(written) in (reported, reported + 1)
    assert all(written[epoch] == epoch / 100_000 for epoch in range(1, reported + 1))


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b\n', b'{"a": 1}\n'),  # its end was written, what stood before it was not
        (b'{"a": 1}\n\x00\x00\n\x00', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b\n{"c": 2}\n', b'{"a": 1}\n{"b\n{"c": 2}\n'),  # in the middle: not for this to mend
        (b'{"a', b""),
    ],
)
def test_torn_lines_at_the_end_are_cut_off(content: bytes, left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    drop_torn_line(path)
    assert path.read_bytes() == left


def test_a_journal_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    drop_torn_line(tmp_path / "study.journal")
    assert list(tmp_path.iterdir()) == []
