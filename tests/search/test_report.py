import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import EPOCHS, Driver, make_plan, open_conductor, search
from outcomes import (
    Conduct,
    leaderboard,
    outcome_of,
    summary_of,
)
from scipy.stats import rankdata

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.layers import load_config
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.record import COMPLETED, FAILED, PRUNED
from phenoscape_tune.search.report import (
    Agreement,
    early_agreement,
    grid_cost,
    write_best,
)
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.verdict import decide

COLUMNS = ["rank", "trial", "stage", "status", "epochs", "objective", "objective_sd", "seconds", "gpu_hours", "reason"]


# leaderboard.csv


def test_the_leaderboard_has_the_contracts_columns_then_one_a_searched_key(finished: Conductor) -> None:
    assert leaderboard(finished)[0] == [*COLUMNS, "lr", "temperature"]


def test_the_leaderboard_has_one_row_for_each_trial_that_was_started(finished: Conductor) -> None:
    rows = leaderboard(finished)[1]
    assert sorted(row["trial"] for row in rows) == sorted(record.name for record in finished.records())
    assert len(rows) == 11 + 6
    assert sum(row["stage"] == "confirm" for row in rows) == 6
    assert {row["status"] for row in rows} == {"completed", "pruned", "failed"}


def test_a_row_tells_what_the_study_knows(finished: Conductor) -> None:
    records = {record.name: record for record in finished.records()}
    for row in leaderboard(finished)[1]:
        record = records[row["trial"]]
        assert (row["stage"], row["status"], int(row["epochs"])) == (record.stage, record.status, len(record.curve))
        assert float(row["objective"]) == pytest.approx(record.objective, abs=1e-4)
        assert float(row["seconds"]) == record.seconds == len(record.curve)
        assert float(row["gpu_hours"]) == pytest.approx(record.seconds * 0.5 / 3600, abs=1e-4)
        assert float(row["lr"]) == record.values.get("lr", 0.001)
        assert float(row["temperature"]) == record.values.get("temperature", 0.1)
        if record.status != COMPLETED:
            assert row["reason"] == record.reason != ""


def test_the_standard_deviation_is_the_last_evaluations(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    task = conductor.next_task()
    assert task is not None
    conductor.report(task.record.name, {"epoch": 1, "objective": 0.5, "objective_error": 0.02})
    conductor.report(task.record.name, {"epoch": 2, "objective": 0.5, "objective_error": 0.03})
    assert leaderboard(conductor)[1][0]["objective_sd"] == "0.0300"


def test_ranks_count_completed_then_pruned_trials_and_no_others(finished: Conductor) -> None:
    rows = leaderboard(finished)[1]
    ranked = [row for row in rows if row["rank"]]
    assert [int(row["rank"]) for row in ranked] == list(range(1, len(ranked) + 1))
    assert rows[: len(ranked)] == ranked
    statuses = [row["status"] for row in ranked]
    assert statuses == sorted(statuses)  # completed, then pruned
    assert set(statuses) == {"completed", "pruned"}
    completed = [float(row["objective"]) for row in ranked if row["status"] == "completed"]
    assert completed == sorted(completed, reverse=True)
    epochs = [int(row["epochs"]) for row in ranked if row["status"] == "pruned"]
    assert epochs == sorted(epochs, reverse=True)
    assert {row["status"] for row in rows if not row["rank"] and row["stage"] != "confirm"} == {"failed"}


def test_confirmations_say_whom_they_repeat(finished: Conductor) -> None:
    confirmations = [row for row in leaderboard(finished)[1] if row["stage"] == "confirm"]
    assert [row["rank"] for row in confirmations] == [""] * 6
    assert finished.baseline is not None
    assert confirmations[0]["reason"] == f"repeats {finished.baseline.name} with seed 6"


def test_a_winner_that_a_stage_takes_over_is_no_new_row(tmp_path: Path) -> None:
    def only_defaults(config: TrainConfig, epoch: int) -> float:
        return 0.9 if (config.lr, config.temperature) == (0.001, 0.1) else 0.1

    conductor = Driver(open_conductor(make_plan(tmp_path, confirm=None)), only_defaults).run()
    rows = leaderboard(conductor)[1]
    assert len(rows) == 11
    assert len({row["trial"] for row in rows}) == 11


def test_a_trial_that_was_running_when_the_search_stopped_is_interrupted(tmp_path: Path) -> None:
    conductor = Driver(open_conductor(make_plan(tmp_path))).run(EPOCHS + 3)
    rows = leaderboard(conductor)[1]
    assert [row["status"] for row in rows] == ["completed", "interrupted", "interrupted"]
    assert [row["rank"] for row in rows] == ["1", "", ""]


def test_a_trial_that_never_reported_has_an_empty_objective(tmp_path: Path) -> None:
    conductor = open_conductor(make_plan(tmp_path))
    task = conductor.next_task()
    assert task is not None
    conductor.fail(task.record.name, 'out of "memory",\nreally')
    (row,) = leaderboard(conductor)[1]
    assert (row["status"], row["objective"], row["epochs"], row["rank"]) == (FAILED, "", "0", "")
    assert row["reason"] == 'out of "memory",\nreally'


def test_nested_keys_and_null_values_stand_in_their_columns(tmp_path: Path) -> None:
    parameters = {
        "transforms.cj_strength": {"type": "uniform", "low": 0, "high": 1},
        "weights": {"type": "choice", "values": [None, "DEFAULT"]},
    }
    plan = make_plan(tmp_path, parameters=parameters, order="joint", budget={"trials": 5}, confirm=None)
    conductor = Driver(open_conductor(plan)).run()
    header, rows = leaderboard(conductor)
    assert header[-2:] == ["transforms.cj_strength", "weights"]
    assert next(row for row in rows if row["stage"] == "defaults")["transforms.cj_strength"] == "0.5"
    assert {row["weights"] for row in rows} == {"", "DEFAULT"}


# best.yaml


def test_best_yaml_is_the_base_configuration_with_the_winners_values(finished: Conductor) -> None:
    outcome = outcome_of(finished)
    path = write_best(finished.plan, outcome)
    assert path == finished.plan.folder / "best.yaml"
    best, base = load_config(str(path)), finished.plan.base
    values = outcome.best.record.values
    assert values.keys() == {"lr", "temperature"}
    assert best.max_epochs == base.max_epochs == 50
    assert (best.lr, best.temperature) == (values["lr"], values["temperature"])
    assert Path(best.out_dir).parent == finished.plan.folder
    assert not Path(best.out_dir).exists()
    assert best == base.model_copy(update={**values, "out_dir": best.out_dir})


def test_best_yaml_names_the_trial_and_the_verdict_in_a_comment(finished: Conductor) -> None:
    outcome = outcome_of(finished)
    first = write_best(finished.plan, outcome).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# {outcome.best.record.name} of my search: ")
    assert outcome.verdict in first


def test_best_yaml_holds_nested_values_and_both_spellings_of_the_input_size(tmp_path: Path) -> None:
    parameters = {
        "transforms.cj_strength": {"type": "uniform", "low": 0, "high": 1},
        "transforms.input_size": {"type": "choice", "values": [32, 64]},
    }
    base = build_config({"max_epochs": 50, "input_size": 96, "T_max": 50})
    plan = make_plan(tmp_path, base=base, parameters=parameters, order="joint", budget={"trials": 5}, confirm=None)
    conductor = Driver(open_conductor(plan), lambda config, epoch: 1 / config.input_size).run()
    best = load_config(str(write_best(plan, outcome_of(conductor))))
    assert best.input_size == best.transforms.input_size == 32
    assert best.transforms.cj_strength != base.transforms.cj_strength
    assert best.schedule_epochs == 50


# summary.json


def test_the_summary_has_the_contracts_fields(confirmed: Conduct) -> None:
    conductor = confirmed(winner=72, baseline=36)
    outcome = outcome_of(conductor)
    summary = summary_of(conductor, outcome)
    assert outcome.baseline is not None and outcome.gain is not None
    assert summary["baseline"] == {"objective": outcome.baseline.objective, "sd": outcome.baseline.sd}
    assert summary["winner"] == {
        "trial": outcome.best.record.name,
        "values": outcome.best.record.values,
        "objective": outcome.best.objective,
        "sd": outcome.best.sd,
    }
    assert summary["gain"] == pytest.approx(0.4)
    assert summary["gain_ci95"] == [outcome.gain.low, outcome.gain.high]
    ended = {"widened": {}, "ended_by": "its trials"}
    assert summary["stages"] == [
        {"name": "defaults", "keys": [], "winner": conductor.records()[0].name, "trials": 1, **ended},
        {"name": "lr", "keys": ["lr"], "winner": outcome.best.record.name, "trials": 3, **ended},
        {"name": "confirm", "keys": [], "winner": None, "trials": 4, **ended},
    ]
    assert summary["objective"] == {"metric": "knn_accuracy", "higher_is_better": True}
    limits = {"hours": None, "device_hours": None, "gpu_hours": None}
    planned = {"trials": 4, "confirmations": 4, "epochs": 16, **limits}
    assert summary["budget"]["planned"] == planned
    used = summary["budget"]["used"]
    assert (used["trials"], used["confirmations"]) == (4, 4)
    assert used["epochs"] == sum(len(record.curve) for record in conductor.records())
    seconds = sum(record.seconds for record in conductor.records())
    assert used["device_hours"] == pytest.approx(seconds / 3600, abs=1e-4)
    assert {"python", "torch", "ray", "optuna", "phenoscape-tune"} <= summary["versions"].keys()


def test_the_summary_tells_what_became_of_each_stage(tmp_path: Path) -> None:
    def large_lr(config: TrainConfig, epoch: int) -> float:
        return config.lr + 0.0001 * config.batch_size if config.lr < 0.05 else 0.0

    parameters = {
        "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
        "batch_size": {"type": "choice", "values": [8, 16, 32]},
        "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
    }
    changes: dict[str, Any] = {"parameters": parameters, "budget": {"trials": 20, "hours": 50}, "extend": True}
    conductor = search(tmp_path, large_lr, confirm=None, **changes)
    summary = summary_of(conductor, decide(conductor))
    stages = {stage["name"]: stage for stage in summary["stages"]}
    assert stages["lr"]["widened"]["lr"]["high"] == 0.1
    assert stages["batch_size"]["widened"] == {}
    assert (stages["lr_recheck"]["trials"], stages["lr_recheck"]["ended_by"]) == (0, "not needed")
    assert summary["edges"] == []
    assert summary["budget"]["planned"]["hours"] == 50
    changes["extend"] = False
    conductor = search(tmp_path / "again", large_lr, confirm=None, **changes)
    summary = summary_of(conductor, decide(conductor))
    assert any("lr=" in edge and "upper edge of its range; try high: 0.1" in edge for edge in summary["edges"])


def test_where_the_defaults_are_kept_the_summary_tells_what_the_candidate_would_lose(confirmed: Conduct) -> None:
    conductor = confirmed(winner=36, baseline=72)
    outcome = outcome_of(conductor)
    summary = summary_of(conductor, outcome)
    assert summary["winner"]["values"] == {}
    assert summary["gain"] == pytest.approx(-0.4)
    assert summary["gain_ci95"][1] < 0
    assert outcome.candidate is not None
    assert summary["candidate"] == outcome.candidate.record.name


def test_device_time_is_told_in_hours_of_a_device(finished: Conductor) -> None:
    used = summary_of(finished, decide(finished))["budget"]["used"]
    assert used["gpu_hours"] == pytest.approx(used["device_hours"] * 0.5, abs=1e-4)


def test_a_summary_needs_no_outcome_of_pruned_trials(finished: Conductor) -> None:
    statuses = {record.status for record in finished.records()}
    assert statuses == {COMPLETED, PRUNED, FAILED}
    assert {record.status for record in finished.ranked()} == {COMPLETED}


def test_files_are_whole_and_nothing_is_left_beside_them(finished: Conductor) -> None:
    leaderboard(finished)
    outcome = outcome_of(finished)
    write_best(finished.plan, outcome)
    summary_of(finished, outcome)
    names = {path.name for path in finished.plan.folder.iterdir() if not path.name.startswith("study.journal")}
    assert names == {"best.yaml", "leaderboard.csv", "summary.json"}


# An objective of which less is better


def test_the_leaderboard_begins_with_the_lowest_loss(minimised: Conductor) -> None:
    rows = [row for row in leaderboard(minimised)[1] if row["rank"]]
    losses = [float(row["objective"]) for row in rows if row["status"] == "completed"]
    assert len(losses) > 2
    assert losses == sorted(losses)
    assert rows[0]["trial"] == minimised.ranked()[0].name
    pruned = [(row["epochs"], float(row["objective"])) for row in rows if row["status"] == "pruned"]
    assert pruned == sorted(pruned, key=lambda row: (-int(row[0]), row[1]))


def test_the_summary_names_the_objective_and_its_direction(minimised: Conductor) -> None:
    summary = summary_of(minimised, decide(minimised))
    assert summary["objective"] == {"metric": "reference_contrast", "higher_is_better": False}
    assert summary["gain"] > 0
    assert summary["winner"]["objective"] < summary["baseline"]["objective"]


# What early stopping risked


def test_the_early_ranks_are_compared_with_the_final_ones(finished: Conductor) -> None:
    agreements = early_agreement(finished)
    assert [agreement.epoch for agreement in agreements] == [2, 4, 8]
    # Confirmations are repeats of the best: the most selected of all, and no trials of their own.
    completed = [r for r in finished.records() if r.status == COMPLETED and r.stage != "confirm"]
    free = [r for r in completed if r.stage == "defaults" or finished.is_exempt(r)]
    assert 2 <= len(free) < len(completed)
    for agreement in agreements:
        assert (agreement.trials, agreement.unselected_trials) == (len(completed), len(free))
        # Recomputed from the definition: Pearson's correlation of the ranks.
        for told, records in ((agreement.completed, completed), (agreement.unselected, free)):
            if len(records) < 3:
                assert told is None
                continue
            if len(records) < 3:
                assert told is None
                continue
            early = rankdata([np.mean(record.curve[: agreement.epoch][-3:]) for record in records])
            assert told == pytest.approx(np.corrcoef(early, rankdata([r.objective for r in records]))[0, 1], abs=1e-4)


@pytest.mark.parametrize(("final", "expected"), [(1.0, 1.0), (-1.0, -1.0)])
def test_an_agreement_is_that_of_ranks(final: float, expected: float, tmp_path: Path) -> None:
    def at_epoch(config: TrainConfig, epoch: int) -> float:
        merit = math.log10(config.lr) - 10 * config.temperature
        return merit if epoch <= 2 else final * merit

    conductor = search(tmp_path, at_epoch, rungs=Rungs(2, 20, EPOCHS), confirm=None)
    assert len([r for r in conductor.records() if r.status == COMPLETED]) >= 3
    assert early_agreement(conductor)[0].completed == expected


def test_of_equal_values_no_agreement_can_be_told(tmp_path: Path) -> None:
    conductor = search(tmp_path, lambda config, epoch: 0.5)
    completed = sum(r.status == COMPLETED and r.stage != "confirm" for r in conductor.records())
    assert early_agreement(conductor) == [
        Agreement(level, None, completed, None, agreement.unselected_trials)
        for level, agreement in zip((2, 4, 8), early_agreement(conductor), strict=True)
    ]
    assert summary_of(conductor, decide(conductor))["early_stopping"][0]["completed"] is None


def test_of_two_trials_no_agreement_is_told(tmp_path: Path) -> None:
    parameters = {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1}}
    conductor = search(tmp_path, parameters=parameters, budget={"trials": 2}, confirm=None)
    assert [(a.completed, a.trials) for a in early_agreement(conductor)] == [(None, 2)] * 3


def test_a_search_without_rungs_has_nothing_to_compare(tmp_path: Path) -> None:
    conductor = search(tmp_path, rungs=Rungs(EPOCHS, 3, EPOCHS), budget={"trials": 4}, confirm=None)
    assert early_agreement(conductor) == []


def test_an_exhaustive_grid_costs_each_of_its_trials_to_the_end(finished: Conductor) -> None:
    # Five values of lr by five of the temperature, nine epochs of one second each.
    assert grid_cost(finished) == {"trials": 25, "device_hours": pytest.approx(25 * 9 / 3600, abs=1e-4)}
    assert summary_of(finished, decide(finished))["budget"]["exhaustive_grid"]["trials"] == 25


def test_before_the_first_epoch_the_cost_of_a_grid_is_not_known(tmp_path: Path) -> None:
    assert grid_cost(open_conductor(make_plan(tmp_path))) == {"trials": 25, "device_hours": 0.0}
