"""Faults of the search's own process, its files, and what is asked of it again: real processes, real signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lives import PATIENCE, Life, Search, lost

from phenoscape_tune.cli import tune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("SOAK_KILLS", "3"))  # `make soak`: 20
AT_START = 0.25  # share of the kills that fall into the start of the process, before its first report


# ---- row 8: SIGKILL of the driver, at any moment ----


@pytest.mark.timeout(300 * (KILLS + 1))
def test_killed_at_random_moments_a_search_loses_nothing_and_does_nothing_twice(tmp_path: Path, birds: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 10**6))
    print(f"SOAK_SEED={seed}")
    moments = random.Random(seed)
    search = Search(tmp_path / "killed", birds, trials=5 + KILLS, epochs=8, concurrent=2)
    missing: list[str] = []
    kills = 0
    while kills < KILLS:
        # The first is never in the start: there has to be something to lose.
        early = kills > 0 and moments.random() < AT_START

        def kill(process: subprocess.Popen[str], early: bool = early) -> None:
            if not early:
                search.after_reports(process, 1)
            try:
                process.wait(moments.uniform(0.0, 12.0 if early else 1.5))
            except subprocess.TimeoutExpired:
                process.kill()

        before = search.known()
        life = search.live(kill)
        missing += lost(before, search.known())
        if life.code != -signal.SIGKILL:
            break  # the search was done before its process could be killed
        kills += 1
    assert kills >= min(KILLS, 3), f"the search ended after {kills} kills; it is too short for this test"
    before = search.known()
    last = search.live()
    assert last.code == 0, last.printed
    after = search.known()
    missing += lost(before, after)
    assert missing == []
    # All trials of the plan, each ended once; every report is in the leaderboard.
    rows = {row["trial"]: row for row in search.leaderboard()}
    assert set(rows) == set(after)
    assert all(record.status in ("completed", "pruned") for record in after.values())
    assert {name: int(row["epochs"]) for name, row in rows.items()} == {n: len(r.curve) for n, r in after.items()}
    stages = [record.stage for record in after.values()]
    assert (stages.count("confirm"), len(stages) - stages.count("confirm")) == (2, search.trials)
    # No epoch was trained to its end twice: what the journal lacked was in the checkpoint.
    trained = search.trained()
    twice = {name: epochs for name, epochs in trained.items() if len(set(epochs)) != len(epochs)}
    assert twice == {}
    assert set(trained) == set(after)
    print(f"kills {kills}, trials {len(after)}, reports {search.reported()}, lost {len(missing)}, twice {len(twice)}")


# ---- one search, stopped in other ways, one after the other ----


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, birds: Path) -> tuple[Search, dict[str, Life], list[str]]:
    """A search that was stopped by SIGTERM, by one to Ray's processes too, then by two Ctrl-C; then its journal was
    torn and a broken snapshot of Tune's laid beside it; and then it ended. Returns it with its lives, and what any of
    them lost."""
    search = Search(tmp_path_factory.mktemp("stopped") / "birds", birds, trials=4, epochs=8)
    lives: dict[str, Life] = {}
    missing: list[str] = []

    def terminate(process: subprocess.Popen[str]) -> None:
        search.after_reports(process, 2)
        process.send_signal(signal.SIGTERM)

    def terminate_all(process: subprocess.Popen[str]) -> None:
        search.after_reports(process, 1)
        os.killpg(process.pid, signal.SIGTERM)  # Ray's processes too, as `timeout` and systemd do
        process.wait(30)

    def press_twice(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGINT)
        time.sleep(1.0)  # two that come at once may count as one
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
        took.append(time.monotonic() - pressed)

    def interrupt_training(process: subprocess.Popen[str]) -> None:
        search.after_reports(process, 2)
        press_twice(process)

    def interrupt_the_start(process: subprocess.Popen[str]) -> None:
        search.after_words(process, "starting Ray")
        time.sleep(2.0)
        press_twice(process)

    took: list[float] = []
    ends = {
        "SIGTERM": terminate,
        "SIGTERM to all": terminate_all,
        "Ctrl-C twice": interrupt_training,
        "at the start": interrupt_the_start,
    }
    for name, end in ends.items():
        before = search.known()
        lives[name] = search.live(end)
        missing += lost(before, search.known())
    with search.journal.open("ab") as file:
        file.write(b'{"op_code": 6, "worker_id": "torn')
    for snapshot in (search.folder / "trials", search.folder):
        (snapshot / "experiment_state-2026-01-01_00-00-00.json").write_text('{"checkpoints": [')
    # Row 10: "ends within 5 s". A busy machine may take longer to hand a signal to Python, in its start above all.
    assert min(took) < 5
    before = search.known()
    lives["resumed"] = search.live()
    missing += lost(before, search.known())
    return search, lives, missing


Stopped = tuple[Search, dict[str, Life], list[str]]


def test_sigterm_is_the_same_orderly_end_as_ctrl_c(stopped: Stopped) -> None:
    search, lives, _ = stopped
    life = lives["SIGTERM"]
    assert life.code == 130, life.printed
    assert f"--resume --out {search.folder}" in life.printed
    assert "Traceback" not in life.printed
    assert life.reported >= 2


def test_sigterm_to_rays_processes_too_ends_with_the_command_that_resumes(stopped: Stopped) -> None:
    search, lives, _ = stopped
    life = lives["SIGTERM to all"]
    assert life.code == 130, life.printed
    assert f"--resume --out {search.folder}" in life.printed
    assert "Traceback" not in life.printed


def test_ctrl_c_twice_ends_within_five_seconds_and_the_state_is_readable(stopped: Stopped) -> None:
    search, lives, _ = stopped
    life = lives["Ctrl-C twice"]
    assert life.code in (130, -signal.SIGINT), life.printed
    assert f"--resume --out {search.folder}" in life.printed
    assert "Traceback" not in life.printed
    assert life.reported > lives["SIGTERM"].reported
    early = lives["at the start"]
    # In its very last moments the interpreter has given its handlers back, and the signal itself ends it.
    assert early.code in (130, -signal.SIGINT), early.printed
    assert "interrupted" in early.printed
    assert "Traceback" not in early.printed


def test_a_torn_last_line_is_dropped_and_said_and_a_broken_snapshot_does_not_matter(stopped: Stopped) -> None:
    search, lives, missing = stopped
    life = lives["resumed"]
    assert life.code == 0, life.printed
    assert "study.journal: dropped a torn last line of 33 bytes" in life.printed
    assert missing == []
    rows = search.leaderboard()
    assert len(rows) == search.trials + 2
    assert {row["status"] for row in rows} <= {"completed", "pruned"}
    assert all(len(set(epochs)) == len(epochs) for epochs in search.trained().values())


def test_the_same_name_again_is_refused(stopped: Stopped, birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search, _, _ = stopped
    space = str(search.folder.with_suffix(".yaml"))
    assert tune.main(["--space", space, "--out", str(search.folder), f"data_dir={birds}"]) == 2
    told = capsys.readouterr().err
    assert f"{search.folder}: exists already" in told
    assert "--resume" in told
    assert "--overwrite" in told


def test_a_changed_space_or_configuration_is_refused_with_the_difference(
    stopped: Stopped, birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search, _, _ = stopped
    space = search.folder.parent / "changed.yaml"
    space.write_text(search.folder.with_suffix(".yaml").read_text().replace("0.5", "0.4"))
    arguments = ["--space", str(space), "--out", str(search.folder), "--max-epochs", "8", f"data_dir={birds}"]
    assert tune.main([*arguments, "--resume", "batch_size=16"]) == 2
    told = capsys.readouterr().err
    assert "space.parameters.temperature.high: was 0.5, is 0.4" in told
    assert "config.batch_size: was 8, is 16" in told
