import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.search.journal import JournalLock
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.record import COMPLETED, FAILED, INFEASIBLE, PRUNED, RUNNING, TrialRecord
from phenoscape_tune.search.study import Study, confirm_stage

PARAMETERS = {
    "lr": Parameter(type="loguniform", low=1e-5, high=1e-1),
    "batch_size": Parameter(type="choice", values=[16, 32, 64]),
    "temperature": Parameter(type="uniform", low=0.05, high=0.5),
}
LR = Stage(1, "lr", ("lr",), 6)
BATCH = Stage(2, "batch_size", ("batch_size",), 4)


def open_study(folder: Path, stage: Stage = LR, taken_over: TrialRecord | None = None, seed: int = 0) -> Study:
    study = Study(folder / "study.journal", PARAMETERS, seed)
    study.open_stage(stage, taken_over, taken_over.values if taken_over else None)
    return study


def storage(folder: Path) -> JournalStorage:
    """The journal as Optuna itself opens it; under our lock, as its own would wait 30 s for ours to go."""
    journal = folder / "study.journal"
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalLock(journal)))  # type: ignore[arg-type]


def stored(folder: Path, stage: Stage = LR) -> list[FrozenTrial]:
    """What the journal holds, as Optuna itself reads it."""
    return optuna.load_study(study_name=stage.study_name, storage=storage(folder)).get_trials()


def report_all(study: Study, record: TrialRecord, values: list[float]) -> TrialRecord:
    for epoch, value in enumerate(values, start=len(record.curve) + 1):
        record = study.report(record, {"epoch": epoch, "objective": value, "objective_error": 0.01, "seconds": 2.0})
    return record


# States


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


def test_a_completed_trial_has_the_mean_of_its_last_three_evaluations(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = study.tell(report_all(study, study.ask(LR, {}), [0.1, 0.4, 0.5, 0.6]), COMPLETED)
    assert (record.status, record.curve, record.ended) == (COMPLETED, (0.1, 0.4, 0.5, 0.6), True)
    assert record.objective == pytest.approx(0.5)
    assert (record.error, record.seconds) == (0.01, 8.0)
    (trial,) = stored(tmp_path)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == pytest.approx(0.5)
    assert trial.intermediate_values == {1: 0.1, 2: 0.4, 3: 0.5, 4: 0.6}
    assert trial.params == {"lr": record.values["lr"]}


def test_a_shorter_trial_has_the_mean_of_what_it_ran(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert study.tell(report_all(study, study.ask(LR, {}), [0.2, 0.4]), COMPLETED).objective == pytest.approx(0.3)
    assert stored(tmp_path)[0].value == pytest.approx(0.3)


def test_a_pruned_trial_is_pruned_with_its_intermediate_values(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = study.tell(report_all(study, study.ask(LR, {}), [0.2, 0.1]), PRUNED, "not among the best")
    assert (record.status, record.reason) == (PRUNED, "not among the best")
    (trial,) = stored(tmp_path)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: 0.2, 2: 0.1}


@pytest.mark.parametrize(("status", "constraint"), [(FAILED, "training"), (INFEASIBLE, "memory")])
@pytest.mark.parametrize("curve", [[], [0.2]])
def test_a_trial_that_cannot_be_judged_is_a_violated_constraint_and_no_score(
    status: str, constraint: str, curve: list[float], tmp_path: Path
) -> None:
    study = open_study(tmp_path, BATCH)
    record = study.tell(report_all(study, study.ask(BATCH, {}), curve), status, "why")
    assert (record.status, record.reason, record.curve) == (status, "why", tuple(curve))
    (trial,) = stored(tmp_path, BATCH)
    # Of one in Optuna's state FAIL the samplers would learn nothing.
    assert trial.state == TrialState.PRUNED
    assert trial.constraints == {constraint: 1.0}
    assert open_study(tmp_path, BATCH).trials(BATCH) == [record]


@pytest.mark.parametrize("status", [FAILED, INFEASIBLE])
@pytest.mark.parametrize("upwards", [True, False])
def test_the_sampler_keeps_away_from_what_could_not_be_judged(status: str, upwards: bool, tmp_path: Path) -> None:
    stage = Stage(1, "temperature", ("temperature",), 24)
    study = Study(tmp_path / "study.journal", PARAMETERS, 0, upwards)
    study.open_stage(stage, None)
    for _ in range(stage.trials):
        record = study.ask(stage, {})
        away = abs(record.values["temperature"] - 0.2)
        if record.values["temperature"] > 0.3:
            study.tell(record, status, "why")
        else:
            study.tell(study.report(record, {"epoch": 1, "objective": -away if upwards else away}), COMPLETED)
    # At random it would be five of the last twelve; told as a failure all of them, as nothing is known there.
    assert sum(record.values["temperature"] > 0.3 for record in study.trials(stage)[12:]) <= 2


@pytest.mark.parametrize("upwards", [True, False])
def test_the_direction_of_the_study_is_the_objectives(upwards: bool, tmp_path: Path) -> None:
    study = Study(tmp_path / "study.journal", PARAMETERS, 0, upwards)
    study.open_stage(LR, None)
    for value in (0.4, 0.6, 0.5):
        study.tell(report_all(study, study.ask(LR, {}), [value]), COMPLETED)
    found = optuna.load_study(study_name=LR.study_name, storage=storage(tmp_path))
    assert found.direction == (StudyDirection.MAXIMIZE if upwards else StudyDirection.MINIMIZE)
    assert found.best_trial.number == (1 if upwards else 0)


def test_a_trial_may_end_before_its_first_epoch(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = study.tell(study.ask(LR, {}), FAILED, "out of memory")
    assert (record.status, record.objective, record.curve) == (FAILED, None, ())


def test_a_running_trial_is_running(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = report_all(study, study.ask(LR, {"temperature": 0.2}, {"gpus": 0.5}), [0.3])
    assert (record.status, record.ended, record.gpus) == (RUNNING, False, 0.5)
    assert record.values == {"temperature": 0.2, "lr": record.values["lr"]}
    assert stored(tmp_path)[0].state == TrialState.RUNNING


def test_each_report_is_in_the_file_when_it_returns(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = study.ask(LR, {})
    for epoch in range(1, 6):
        record = study.report(record, {"epoch": epoch, "objective": epoch / 10})
        assert len(stored(tmp_path)[0].intermediate_values) == epoch


def test_an_epoch_that_is_reported_again_changes_nothing(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = report_all(study, study.ask(LR, {}), [0.1, 0.2, 0.3])
    size = (tmp_path / "study.journal").stat().st_size
    again = study.report(record, {"epoch": 2, "objective": 0.9, "seconds": 5.0})
    assert again == record
    assert study.trials(LR) == [record]
    assert (tmp_path / "study.journal").stat().st_size == size


def test_the_test_objective_of_the_last_epoch_is_kept(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    record = report_all(study, study.ask(LR, {}), [0.1, 0.2])
    record = study.report(record, {"epoch": 3, "objective": 0.3, "test_objective": 0.25})
    assert study.tell(record, COMPLETED).test_objective == 0.25


# Names


def test_trials_are_named_by_stage_and_number_and_an_id_of_the_seed(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    names = [study.ask(LR, {}).name for _ in range(3)]
    parts = [name.split("-") for name in names]
    assert [part[:2] for part in parts] == [["lr", "00"], ["lr", "01"], ["lr", "02"]]
    assert len({part[2] for part in parts}) == 3
    (tmp_path / "again").mkdir()
    assert [open_study(tmp_path / "again").ask(LR, {}).name] == names[:1]
    (tmp_path / "other").mkdir()
    assert open_study(tmp_path / "other", seed=1).ask(LR, {}).name != names[0]


# The winner of the stage before


def winner_of(values: dict[str, Any], curve: tuple[float, ...] = (0.3, 0.5, 0.7)) -> TrialRecord:
    return TrialRecord("lr-02-abcde", "lr", 2, values, COMPLETED, curve)


def test_the_winner_taken_over_stands_in_the_study_and_is_no_trial_of_the_stage(tmp_path: Path) -> None:
    study = open_study(tmp_path, BATCH, winner_of({"lr": 0.01, "batch_size": 32}))
    assert study.trials(BATCH) == []
    (trial,) = stored(tmp_path, BATCH)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, {"batch_size": 32})
    assert trial.value == pytest.approx(0.5)
    assert trial.intermediate_values == {1: 0.3, 2: 0.5, 3: 0.7}
    record = study.ask(BATCH, {"lr": 0.01})
    assert (record.number, record.name[:14]) == (0, "batch_size-00-")
    assert [r.name for r in study.trials(BATCH)] == [record.name]


def test_the_winner_is_taken_over_once(tmp_path: Path) -> None:
    winner = winner_of({"batch_size": 32})
    for _ in range(3):
        open_study(tmp_path, BATCH, winner)
    assert len(stored(tmp_path, BATCH)) == 1


@pytest.mark.parametrize("values", [{}, {"batch_size": 48}, {"batch_size": None}, {"lr": 0.01}])
def test_a_winner_outside_of_the_range_is_not_added(values: dict[str, Any], tmp_path: Path) -> None:
    study = open_study(tmp_path, BATCH, winner_of(values))
    assert stored(tmp_path, BATCH) == []
    assert study.ask(BATCH, values).values["batch_size"] in (16, 32, 64)


# Resume


def snapshot(folder: Path) -> list[TrialRecord]:
    return open_study(folder).trials(LR)


def test_a_study_opened_again_has_equal_records(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.tell(report_all(study, study.ask(LR, {}, {"gpus": 1.0}), [0.1, 0.2, 0.3]), COMPLETED)
    study.tell(report_all(study, study.ask(LR, {}), [0.1]), PRUNED, "pruned")
    study.tell(study.ask(LR, {}), FAILED, "diverged")
    report_all(study, study.ask(LR, {"temperature": 0.1}), [0.4, 0.5])
    assert snapshot(tmp_path) == study.trials(LR)
    assert [record.status for record in snapshot(tmp_path)] == [COMPLETED, PRUNED, FAILED, RUNNING]


def test_another_process_reads_equal_records(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.tell(report_all(study, study.ask(LR, {}), [0.1, 0.2, 0.3]), COMPLETED)
    report_all(study, study.ask(LR, {}), [1 / 3])
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_study as t;"
        "print(json.dumps([[r.name, r.values, r.status, r.curve] for r in t.snapshot(Path(sys.argv[1]))]))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, tmp_path, Path(__file__).parent], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(out) == [[r.name, r.values, r.status, list(r.curve)] for r in study.trials(LR)]


def test_a_running_trial_goes_on_after_reopening(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    first = report_all(study, study.ask(LR, {}), [0.1, 0.2])
    again = open_study(tmp_path)
    (record,) = again.trials(LR)
    assert record == first
    ended = again.tell(report_all(again, record, [0.3]), COMPLETED)
    assert ended.curve == (0.1, 0.2, 0.3)
    assert snapshot(tmp_path) == [ended]


def test_a_trial_cut_off_before_it_had_a_name_is_failed_and_not_counted(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    study.ask(LR, {})
    opened = storage(tmp_path)
    opened.create_new_trial(opened.get_study_id_from_name(LR.study_name))
    assert [trial.state for trial in stored(tmp_path)] == [TrialState.RUNNING, TrialState.RUNNING]
    again = open_study(tmp_path)
    assert [trial.state for trial in stored(tmp_path)] == [TrialState.RUNNING, TrialState.FAIL]
    assert [record.number for record in again.trials(LR)] == [0]
    assert again.ask(LR, {}).number == 1


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_a_stop_anywhere_while_a_trial_is_asked_for_loses_no_trial(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = open_study(folder)
        kept = [study.tell(report_all(study, study.ask(LR, {}), [0.1 * i]), COMPLETED) for i in range(1, 3)]
        before = (folder / "study.journal").read_bytes()
        asked = study.ask(LR, {})
        lines = (folder / "study.journal").read_bytes()[len(before) :].splitlines(keepends=True)
        written = data.draw(st.integers(0, len(lines)))
        (folder / "study.journal").write_bytes(before + b"".join(lines[:written]))
        again = open_study(folder)
        records = again.trials(LR)
        assert records[:2] == kept
        if len(records) == 2:
            records.append(again.ask(LR, {}))
        # Asked for again it is the same trial.
        assert records[2] == asked


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_value_whose_trial_was_cut_off_is_tried_all_the_same(lines: int, tmp_path: Path) -> None:
    study = open_study(tmp_path, BATCH)
    before = (tmp_path / "study.journal").read_bytes()
    asked = study.ask(BATCH, {})
    written = (tmp_path / "study.journal").read_bytes()[len(before) :].splitlines(keepends=True)
    (tmp_path / "study.journal").write_bytes(before + b"".join(written[:lines]))
    again = open_study(tmp_path, BATCH)
    values = [again.ask(BATCH, {}).values["batch_size"] for _ in range(3)]
    assert values[0] == asked.values["batch_size"]
    assert sorted(values) == [16, 32, 64]


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
import test_study as t
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


# Confirmation


def test_confirmations_carry_whom_they_repeat_and_their_seed(tmp_path: Path) -> None:
    stage = confirm_stage(3, 4)
    assert (stage.name, stage.number, stage.keys, stage.trials) == ("confirm", 3, (), 4)
    study = open_study(tmp_path, stage)
    record = study.ask(stage, {"lr": 0.01}, {"of": "lr-02-abcde", "seed": 43})
    assert (record.of, record.seed, record.values) == ("lr-02-abcde", 43, {"lr": 0.01})
    (again,) = open_study(tmp_path, stage).trials(stage)
    assert again == record


def test_a_stage_that_was_not_opened_has_no_trials(tmp_path: Path) -> None:
    assert open_study(tmp_path).trials(BATCH) == []


def test_a_damaged_line_is_a_message_and_no_traceback(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    report_all(study, study.ask(LR, {}), [0.1, 0.2])
    journal = tmp_path / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"\xff\xfe{\n", *lines[3:]]))
    with pytest.raises(UserError, match=r"study\.journal: a line of it is damaged.*--overwrite"):
        open_study(tmp_path)
