"""Faults of single trials: they are told, or the trial goes on, and the search goes on without losing a slot."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.cloudpickle import register_pickle_by_value

from phenoscape_tune.cli import tune as tune_command
from phenoscape_tune.config import build_config
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.display import Display
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.runner import run_search
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Ray's workers cannot import a test module.
register_pickle_by_value(sys.modules[__name__])

EPOCHS = 4
TINY = {
    **{"backbone": "test_resnet.r160_in1k", "input_size": 32, "stem": "standard", "batch_size": 8},
    **{"projection_dim": 16, "num_workers": 1, "accelerator": "cpu", "warmup_epochs": 0},
}


Searched = tuple[Path, dict[str, TrialRecord]]


def search(folder: Path, trial: Any, data: Path | None = None, **space: Any) -> dict[str, TrialRecord]:
    """Run a search over lr whose trials do what `trial` does, one at a time; its records by stage and number."""
    built = build_space({
        "parameters": {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
        "scheduler": {"grace_epochs": 2, "reduction_factor": 2},
        "budget": {"trials": 3},
        "confirm": None,
        **space,
    })  # fmt: skip
    config = build_config({**TINY, "data_dir": str(data)} if data else {"warmup_epochs": 0})
    plan = make_plan(built, config, EPOCHS, folder, METRICS["knn_accuracy"])
    conductor = Conductor(plan, Study(folder / "study.journal", built.parameters, seed=0))
    with Display(conductor, quiet=True, concurrent=1) as display:
        assert run_search(conductor, display, 1, cpus=1, gpus=0.0, trial=trial)
    return {"-".join(record.name.split("-")[:2]): record for record in conductor.records()}


def starts(folder: Path, task: dict[str, Any] | None = None) -> list[str]:
    """The trials that were started so far, one added where a task is given."""
    path = folder / "starts"
    if task is not None:
        with path.open("a") as file:
            file.write("-".join(task["name"].split("-")[:2]) + "\n")
    return path.read_text().split()


def report_all(task: dict[str, Any], report: Any) -> None:
    for epoch in range(1, EPOCHS + 1):
        report({"epoch": epoch, "objective": 0.5, "seconds": 0.01})


def leaderboard(folder: Path) -> list[dict[str, str]]:
    with (folder / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


# ---- row 5: SIGKILL of a trial's process ----


@pytest.fixture(scope="module")
def killed(birds: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search of which two trials lose a process: one its own, when its checkpoint is ahead of the journal, the next
    that of a rank."""
    folder = tmp_path_factory.mktemp("killed")

    def trial(task: dict[str, Any]) -> None:
        from phenoscape_tune.search import trial as trials
        from phenoscape_tune.training import launch
        from phenoscape_tune.training.rank_group import RankDied

        own = "-".join(task["name"].split("-")[:2])
        first = starts(folder, task).count(own) == 1
        report, train = trials.tune.report, launch.launch

        def report_and_die(row: dict[str, Any]) -> None:
            if row["epoch"] == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            report(row)

        def lose_a_rank(*ignored: Any) -> None:
            raise RankDied("the process of rank 1 ended without a word (exit code -9)")

        trials.tune.report = report_and_die if first and own == "lr-00" else report
        launch.launch = lose_a_rank if first and own == "lr-01" else train
        try:
            trials.run_trial(task)
        finally:
            trials.tune.report, launch.launch = report, train

    # All goes on whatever it reports, so that the trial has an epoch to die in.
    return folder, search(folder, trial, birds, scheduler={"grace_epochs": EPOCHS})


def test_a_killed_trial_goes_on_from_its_last_checkpoint(killed: Searched) -> None:
    folder, records = killed
    assert {record.status for record in records.values()} == {"completed"}
    assert starts(folder) == ["defaults-00", "lr-00", "lr-00", "lr-01", "lr-01"]
    record = records["lr-00"]
    assert record.failures == 1
    assert len(record.curve) == EPOCHS
    log = (folder / "trials" / record.name / "logs" / "training.log").read_text()
    assert "goes on after epoch 3" in log
    # Nothing was trained twice, not even the epoch that had not been reported.
    assert [log.count(f"epoch {n}/{EPOCHS} ") for n in range(1, EPOCHS + 1)] == [1] * EPOCHS


def test_a_killed_rank_is_the_trials_own_death(killed: Searched) -> None:
    _, records = killed
    assert (records["lr-01"].status, records["lr-01"].failures) == ("completed", 1)


def test_a_trial_that_dies_again_and_again_has_failed(tmp_path: Path, ray_session: None) -> None:
    def trial(task: dict[str, Any]) -> None:
        from ray import tune

        starts(tmp_path, task)
        if task["name"].startswith("lr-00"):
            os.kill(os.getpid(), signal.SIGKILL)
        report_all(task, tune.report)

    records = search(tmp_path, trial, max_failures=1)
    assert starts(tmp_path) == ["defaults-00", "lr-00", "lr-00", "lr-01"]
    assert records["lr-00"].status == "failed"
    assert records["lr-00"].reason == "its process ended without a word, 2 times (max_failures: 1)"
    assert records["lr-01"].status == "completed"
    assert [row["status"] for row in leaderboard(tmp_path)].count("failed") == 1


# ---- row 6: a trial that hangs ----


def test_a_hung_trial_is_ended_by_its_own_deadline(tmp_path: Path, birds: Path, ray_session: None) -> None:
    def trial(task: dict[str, Any]) -> None:
        import ctypes

        from phenoscape_tune.search import trial as trials

        starts(tmp_path, task)

        def hang(*ignored: Any) -> None:
            # Holding the interpreter's lock: no thread of Python's can end this.
            ctypes.PyDLL(None).sleep(1000)

        train = trials._train
        if task["name"].startswith("lr-00"):
            trials._train = hang
        try:
            trials.run_trial({**task, "report_timeout": 4 if task["name"].startswith("lr-00") else 60})
        finally:
            trials._train = train

    records = search(tmp_path, trial, birds, report_timeout=4)
    record = records["lr-00"]
    assert (record.status, record.reason) == ("failed", "no report for 4 s (where it hung: logs/training.log)")
    assert record.objective is None
    assert starts(tmp_path) == ["defaults-00", "lr-00", "lr-01"]
    assert records["lr-01"].status in ("completed", "pruned")
    assert "in hang" in (tmp_path / "trials" / record.name / "logs" / "training.log").read_text()


def test_without_a_timeout_of_its_own_a_search_waits_many_epochs(tmp_path: Path) -> None:
    space = build_space({"parameters": {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}}})
    plan = make_plan(space, build_config({}), EPOCHS, tmp_path, METRICS["knn_accuracy"])
    conductor = Conductor(plan, Study(tmp_path / "study.journal", space.parameters, seed=0))
    assert conductor.report_timeout == 6 * 3600
    task = conductor.next_task()
    assert task is not None
    conductor.report(task.record.name, {"epoch": 1, "objective": 0.5, "seconds": 10.0})
    assert conductor.report_timeout == 1800
    conductor.report(task.record.name, {"epoch": 2, "objective": 0.5, "seconds": 1000.0})
    assert conductor.report_timeout == 20 * 505


# ---- row 7: a slow unwind after an early stop ----


def test_a_slow_unwind_after_an_early_stop_loses_no_slot(tmp_path: Path, ray_session: None) -> None:
    def trial(task: dict[str, Any]) -> None:
        from ray import tune

        number = int(task["name"].split("-")[1]) + task["name"].startswith("lr")
        try:
            for epoch in range(1, EPOCHS + 1):
                tune.report({"epoch": epoch, "objective": 1.0 - number / 10, "seconds": 0.01})
        except SystemExit:  # it was stopped early
            time.sleep(4)
            raise

    records = search(tmp_path, trial, budget={"trials": 4})
    assert [record.status for record in records.values()].count("pruned") >= 1
    assert {record.status for record in records.values()} == {"completed", "pruned"}


def test_an_unwind_that_hangs_costs_no_trial(tmp_path: Path, ray_session: None) -> None:
    """Its process is ended before Tune would give the slot up, and the next trial has a fresh one."""

    def trial(task: dict[str, Any]) -> None:
        from phenoscape_tune.search import trial as trials

        starts(tmp_path, task)
        number = int(task["name"].split("-")[1]) + task["name"].startswith("lr")
        trials.Deadline.UNWIND = 3.0
        with trials.Deadline(tmp_path / "logs" / task["name"], 60) as deadline:
            try:
                for epoch in range(1, EPOCHS + 1):
                    deadline.report({"epoch": epoch, "objective": 1.0 - number / 10, "seconds": 0.01})
            except SystemExit:
                if number == 2:
                    time.sleep(1000)
                raise

    # The death of a process that another trial left behind is not the next one's failure.
    records = search(tmp_path, trial, budget={"trials": 5}, max_failures=0)
    assert len(records) == 5
    assert {record.status for record in records.values()} == {"completed", "pruned"}


# ---- rows 1 and 2: divergence ----


def run(*arguments: object) -> int:
    return tune_command.main([str(argument) for argument in arguments])


def settings(birds: Path) -> list[str]:
    values = (f"{key}={value}" for key, value in TINY.items() if key != "warmup_epochs")
    return ["--concurrent=1", f"data_dir={birds}", *values]


def test_a_trial_that_diverges_is_told_and_the_search_goes_on(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text(
        "parameters: {lr: {type: choice, values: [0.001, 0.002, 1.0e+30]}}\n"
        "budget: {trials: 4, max_epochs: 1}\nconfirm: null\n"
    )
    folder = tmp_path / "wild"
    assert run("--space", path, "--out", folder, "--max-epochs", 1, *settings(birds), "optimizer=sgd") == 0
    statuses = {float(row["lr"]): (row["status"], row["reason"]) for row in leaderboard(folder)}
    done = ("completed", "")
    assert statuses == {0.001: done, 0.002: done, 1e30: ("failed", "diverged at epoch 1")}
    assert len(leaderboard(folder)) == 3  # no value is tried twice, whatever the budget
    assert "not confirmed" in capsys.readouterr().out


def test_where_every_trial_diverges_the_search_says_so(
    birds: Path, ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wild.yaml"
    path.write_text("parameters: {lr: {type: loguniform, low: 1e28, high: 1e30}}\nbudget: {trials: 2, max_epochs: 1}\n")
    folder = tmp_path / "wild"
    assert run("--space", path, "--out", folder, *settings(birds), "optimizer=sgd", "lr=1e30") == 1
    printed = capsys.readouterr().out
    assert "no valid trial" in printed
    assert "Try smaller values, above all of lr" in printed
    assert {row["reason"] for row in leaderboard(folder)} == {"diverged at epoch 1"}


# ---- row 4: out of memory ----


@pytest.fixture(scope="module")
def short_of_memory(birds: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search whose second trial finds no room for the micro-batch that it was given, and whose third none for its
    batch."""
    folder = tmp_path_factory.mktemp("memory")

    def trial(task: dict[str, Any]) -> None:
        from phenoscape_tune.search.trial import run_trial

        with (folder / "processes").open("a") as file:
            file.write(f"{task['name'].split('-')[0]}-{os.getpid()}\n")
        # The hook for tests: no machine has to run out of memory.
        os.environ["PHENOSCAPE_TUNE_OOM_ABOVE"] = "100" if task["name"].startswith("defaults") else "4"
        micro = "auto" if task["name"].startswith("lr-01") else 8
        try:
            run_trial({**task, "config": {**task["config"], "micro_batch_size": micro}})
        finally:
            del os.environ["PHENOSCAPE_TUNE_OOM_ABOVE"]

    return folder, search(folder, trial, birds)


def test_out_of_memory_is_infeasible_and_its_process_is_not_used_again(short_of_memory: Searched) -> None:
    folder, records = short_of_memory
    assert records["lr-00"].status == "infeasible"
    assert "out of memory" in records["lr-00"].reason
    assert "batch_size" in records["lr-00"].reason
    assert {records[name].status for name in ("defaults-00", "lr-01")} <= {"completed", "pruned"}
    assert "infeasible" in (folder / "leaderboard.csv").read_text()
    defaults, failed, fresh = (line.split("-")[1] for line in (folder / "processes").read_text().split())
    assert defaults == failed != fresh


def test_where_memory_runs_out_the_micro_batch_is_halved_and_the_batch_is_not(short_of_memory: Searched) -> None:
    folder, records = short_of_memory
    log = (folder / "trials" / records["lr-01"].name / "logs" / "training.log").read_text()
    assert "effective batch 8" in log
    assert "from here on 4 images go through the network at once instead of 8; batch_size 8 is unchanged" in log


MEMORY_SCRIPT = """
import json, sys, time
from pathlib import Path
from phenoscape_tune.config import build_config
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.cluster import start_ray
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.display import Display
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.runner import run_search
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.study import Study

folder = Path(sys.argv[1])
start_ray(1, verbose=False)
space = build_space({
    "parameters": {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2}},
    "budget": {"trials": 2}, "confirm": None, "max_failures": 0,
})
plan = make_plan(space, build_config({"warmup_epochs": 0}), 3, folder, METRICS["knn_accuracy"])
conductor = Conductor(plan, Study(folder / "study.journal", space.parameters, seed=0))
with Display(conductor, quiet=True, concurrent=1) as display:
    run_search(conductor, display, 1, cpus=1, gpus=0.0, trial=lambda task: time.sleep(60))
print(json.dumps([[record.status, record.reason] for record in conductor.records()]))
"""


def test_a_process_that_ray_ends_for_memory_is_infeasible(tmp_path: Path) -> None:
    # A Ray of its own, which takes a machine that uses a hundredth of its memory for one that runs out of it.
    environment = {**os.environ, "RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    told = "batch_size 32: the machine ran low on memory and Ray ended it, 1 time (max_failures: 0)"
    assert json.loads(ended.stdout.splitlines()[-1]) == [["infeasible", told]] * 2
