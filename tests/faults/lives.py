"""A search as its user runs it: `scripts/tune.py` in a process of its own, ended in the middle, and gone on with."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.study import read_trials

ROOT = Path(__file__).parents[2]
SPACE = """
parameters:
  lr: {{type: loguniform, low: 1.0e-4, high: 1.0e-2}}
  temperature: {{type: uniform, low: 0.05, high: 0.5}}
scheduler: {{grace_epochs: 3, reduction_factor: 2}}
budget: {{trials: {trials}, max_epochs: {epochs}}}
confirm: {{top_k: 1, seeds: 1}}
"""
TINY = [
    *("backbone=test_resnet.r160_in1k", "input_size=32", "stem=standard", "batch_size=8", "projection_dim=16"),
    *("num_workers=1", "accelerator=cpu", "max_epochs=50"),
]
PATIENCE = 600  # seconds for what a busy machine may take to start Ray


def _hear_ctrl_c() -> None:
    """As in a user's terminal: tests that run in the background of a shell hand on that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Life:
    """One process of a search: how it ended, what it printed, and how many reports the journal had then."""

    code: int
    printed: str
    reported: int


@dataclass(frozen=True)
class Search:
    """A search over a folder of images, as a user starts it and goes on with it."""

    folder: Path
    data: Path
    trials: int
    epochs: int
    concurrent: int = 1

    @property
    def journal(self) -> Path:
        return self.folder / "study.journal"

    def reported(self) -> int:
        """Epochs that the journal has, of all trials."""
        return self.journal.read_bytes().count(b'"intermediate_value"') if self.journal.exists() else 0

    def known(self) -> dict[str, TrialRecord]:
        """The trials that the journal has, by name."""
        return {record.name: record for record in read_trials(self.journal)} if self.journal.exists() else {}

    def command(self, *more: str) -> list[str]:
        """The command that starts the search, or goes on with it where it has begun."""
        start = [sys.executable, str(ROOT / "scripts" / "tune.py"), "--out", str(self.folder), *more]
        if (self.folder / "search.yaml").exists():
            return [*start, "--resume"]
        space = self.folder.with_suffix(".yaml")
        space.write_text(SPACE.format(trials=self.trials, epochs=self.epochs))
        own = ["--space", str(space), "--max-epochs", str(self.epochs), "--concurrent", str(self.concurrent)]
        return [*start, *own, f"data_dir={self.data}", *TINY]

    def live(self, end: Callable[[subprocess.Popen[str]], None] | None = None) -> Life:
        """One process, to its own end or until `end` has ended it."""
        output = self.folder.with_suffix(".printed")
        with output.open("w") as file:
            process = subprocess.Popen(
                self.command(), stdout=file, stderr=subprocess.STDOUT, text=True, cwd=self.folder.parent,
                preexec_fn=_hear_ctrl_c, start_new_session=True,
            )  # fmt: skip
            try:
                if end is not None:
                    end(process)
                process.wait(PATIENCE)
            finally:
                process.kill()
        return Life(process.returncode, output.read_text(), self.reported())

    def after_words(self, process: subprocess.Popen[str], words: str) -> None:
        """Wait until the process has printed some words; it may end before."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.folder.with_suffix(".printed").read_text() and process.poll() is None:
            assert time.monotonic() < deadline, f"'{words}' was not printed in {PATIENCE} s"
            time.sleep(0.02)

    def after_reports(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait until the process has had `count` more epochs reported; it may end before."""
        wanted, deadline = self.reported() + count, time.monotonic() + PATIENCE
        while self.reported() < wanted and process.poll() is None:
            assert time.monotonic() < deadline, f"no report in {PATIENCE} s"
            time.sleep(0.02)

    def leaderboard(self) -> list[dict[str, str]]:
        with (self.folder / "leaderboard.csv").open() as file:
            return list(csv.DictReader(file))

    def trained(self) -> dict[str, list[int]]:
        """The epochs that each trial's log tells of, in its order."""
        found: dict[str, list[int]] = {}
        for path in sorted((self.folder / "trials").glob("*/logs/training.log")):
            lines = path.read_text(errors="replace").splitlines()
            ends = [line.split(" epoch ")[1] for line in lines if f"/{self.epochs}  train_loss" in line]
            found[path.parts[-3]] = [int(each.split("/")[0]) for each in ends]
        return found


def lost(before: dict[str, TrialRecord], after: dict[str, TrialRecord]) -> list[str]:
    """What was known before and is not known now: reports that are gone or changed, ends that are open again."""
    gone = []
    for name, record in before.items():
        now = after.get(name)
        if now is None or now.curve[: len(record.curve)] != record.curve:
            gone.append(f"{name}: reports {record.curve}, now {now and now.curve}")
        elif record.ended and (now.status, now.curve) != (record.status, record.curve):
            gone.append(f"{name}: was {record.status}, is {now.status}")
    return gone
