"""The runner on real Ray, with training functions that only report."""

from __future__ import annotations

import itertools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.cloudpickle import register_pickle_by_value

from phenoscape_tune.config import build_config
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.display import Display
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.runner import run_search
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.study import Study

pytestmark = pytest.mark.slow

# Ray's workers cannot import a test module.
register_pickle_by_value(sys.modules[__name__])

EPOCHS = 4


def search(
    folder: Path,
    trial: Any,
    trials: int = 5,
    concurrent: int = 1,
    cpus: int = 1,
    epochs: int = EPOCHS,
    **scheduler: Any,
) -> list[TrialRecord]:
    """Run a search over lr whose trials do what `trial` does; returns its records."""
    space = build_space({
        "parameters": {"lr": {"type": "loguniform", "low": 1e-4, "high": 1e-1}},
        "scheduler": {"grace_epochs": 2, "reduction_factor": 2, **scheduler},
        "budget": {"trials": trials},
        "confirm": None,
    })  # fmt: skip
    plan = make_plan(space, build_config({"warmup_epochs": 0}), epochs, folder, METRICS["knn_accuracy"])
    conductor = Conductor(plan, Study(folder / "study.journal", space.parameters, seed=0))
    with Display(conductor, quiet=True, concurrent=concurrent) as display:
        assert run_search(conductor, display, concurrent, cpus=cpus, gpus=0.0, trial=trial)
    return conductor.records()


def report_falling(task: dict[str, Any], unwind: float = 0.0) -> None:
    """Each trial is worse than the one before, so that all but the first and the exempt one are stopped."""
    from ray import tune

    number = int(task["name"].split("-")[1]) + (task["name"].startswith("lr"))
    try:
        for epoch in range(1, EPOCHS + 1):
            tune.report({"epoch": epoch, "objective": 1.0 - number / 10, "seconds": float(os.getpid())})
    finally:
        time.sleep(unwind)


def test_trials_run_one_after_the_other_in_one_process(tmp_path: Path, ray_session: None) -> None:
    records = search(tmp_path, report_falling)
    assert len(records) == 5
    assert {record.status for record in records} == {"completed", "pruned"}
    assert [len(record.curve) for record in records if record.status == "pruned"].count(2) >= 2
    processes = {record.seconds / len(record.curve) for record in records}
    assert len(processes) == 1


def test_a_dead_process_an_error_and_a_silent_return_each_fail_one_trial(tmp_path: Path, ray_session: None) -> None:
    def trial(task: dict[str, Any]) -> None:
        from ray import tune

        if task["name"].startswith("lr-00"):
            os._exit(9)
        if task["name"].startswith("lr-01"):
            raise RuntimeError("a fault of the program")
        if task["name"].startswith("lr-02"):
            return
        for epoch in range(1, EPOCHS + 1):
            tune.report({"epoch": epoch, "objective": 0.5, "seconds": 1.0})

    records = {record.name[:5]: record for record in search(tmp_path, trial)}
    assert {name: record.status for name, record in records.items()} == {
        "defau": "completed", "lr-00": "failed", "lr-01": "failed", "lr-02": "failed", "lr-03": "completed"
    }  # fmt: skip
    assert records["lr-02"].reason == "its training function returned before its last epoch"
    assert all(record.reason for record in records.values() if record.status == "failed")
    # The leaderboard on disk knows them all.
    assert (tmp_path / "leaderboard.csv").read_text().count("failed") == 3


def test_trials_that_span_two_devices_leave_nothing_behind(tmp_path: Path, birds: Path, ray_session: None) -> None:
    """Six in a row, most of them stopped early: when the next one starts, the ranks of the one before are gone."""

    def trial(task: dict[str, Any]) -> None:
        import psutil
        from ray import tune

        from phenoscape_tune.training.launch import launch

        # What stays is the process that ranks are forked from, with its resource tracker.
        ranks = [p for p in psutil.Process().children(recursive=True) if p.parent() != psutil.Process()]
        alive = [p for p in ranks if p.status() != psutil.STATUS_ZOMBIE]
        with (tmp_path / "starts").open("a") as file:
            file.write(f"{task['name']} {time.time()} {len(alive)}\n")
        small = {"backbone": "test_resnet.r160_in1k", "input_size": 32, "stem": "standard", "projection_dim": 16}
        data = {"data_dir": str(birds), "batch_size": 8, "num_workers": 1, "accelerator": "cpu", "devices": 2}
        config = build_config({**task["config"], **small, **data, "transforms": {"input_size": 32}})
        worse = (int(task["name"].split("-")[1]) + task["name"].startswith("lr")) / 10
        launch(config, lambda row: tune.report({**row, "objective": 1 - worse}))

    records = search(tmp_path, trial, trials=6, cpus=2)
    assert {record.status for record in records} <= {"completed", "pruned"}
    assert [record.status for record in records].count("pruned") >= 3
    starts = [line.split() for line in (tmp_path / "starts").read_text().splitlines()]
    assert len(starts) == 6
    assert [int(alive) for _, _, alive in starts] == [0] * 6
    for (name, _, _), (_, following, _) in itertools.pairwise(starts):
        # Its checkpoints are gone by now where it is not among the best; its log ends with its last epoch.
        last = tmp_path / "trials" / name / "logs" / "training.log"
        assert float(following) - last.stat().st_mtime < 10


def test_a_trial_that_waited_at_the_ceiling_goes_on_from_its_checkpoint(
    tmp_path: Path, birds: Path, ray_session: None
) -> None:
    """Who leads after two epochs is last after four, so the ceiling rises from 4 epochs to 8."""
    small = {"backbone": "test_resnet.r160_in1k", "input_size": 32, "stem": "standard", "projection_dim": 16}
    data = {"data_dir": str(birds), "batch_size": 8, "num_workers": 1, "accelerator": "cpu"}

    def trial(task: dict[str, Any]) -> None:
        from ray import tune

        from phenoscape_tune.search.trial import _train

        config = build_config({**task["config"], **small, **data, "transforms": {"input_size": 32}})
        # Each is better early and worse late than the one before.
        early = 0.4 + 0.01 * int(task["name"].split("-")[1])

        def report(row: dict[str, Any]) -> None:
            tune.report({**row, "objective": early if row["epoch"] <= 2 else 1 - early} if "epoch" in row else row)

        _train(task, config, report)

    records = search(tmp_path, trial, concurrent=2, epochs=9, pasha=True)
    assert {record.status for record in records} <= {"completed", "capped", "pruned"}
    exempt = {record.name for record in records if record.status == "completed"}
    assert max(len(record.curve) for record in records if record.name not in exempt) == 8
    logs = {r.name: (tmp_path / "trials" / r.name / "logs" / "training.log").read_text() for r in records}
    gone_on = [r for r in records if "goes on after epoch 4" in logs[r.name]]
    assert gone_on
    for record in gone_on:
        assert len(record.curve) == 8
        epochs = re.findall(r"epoch (\d+)/9 ", logs[record.name])
        assert epochs == [str(epoch) for epoch in range(1, 9)]  # each once
