import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import TrialState
from studies import BATCH, LR, PARAMETERS, open_study, report_all, snapshot, storage, stored

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.record import COMPLETED, FAILED, INFEASIBLE, PRUNED, RUNNING, TrialRecord
from phenoscape_tune.search.study import Study, confirm_stage

# States


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
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import studies as t;"
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
