"""Searches with an outcome: with trials of every end, with scores of a test part, and where less is better."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import EPOCHS, Driver, learn, make_plan, open_conductor, search

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.report import write_leaderboard, write_summary
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.verdict import Outcome, decide

LABELS = ["crow", "finch", "robin"] * 30
DROPPING = {"top_k": 3, "seeds": 3, "drop": True}


def mixed(config: TrainConfig, epoch: int) -> float:
    """As `learn`, but the largest learning rates diverge in their second epoch."""
    return math.nan if config.lr > 0.02 and epoch == 2 else learn(config, epoch)


def finished_search(folder: Path) -> Conductor:
    """A search that has run to its end, with completed, pruned and failed trials and a confirmation."""
    plan = make_plan(folder, rungs=Rungs(2, 2, EPOCHS))
    return Driver(open_conductor(plan, Spending(plan.space.budget, gpus=0.5)), mixed).run()


def is_baseline(config: TrainConfig) -> bool:
    return (config.lr, config.temperature) == (0.001, 0.1)


def write_scores(folder: Path, right: int) -> None:
    """Scores of the test part of which the first `right` specimens have 1, and the others 0."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "test_scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "group", "label", "predicted", "score"])
        for i, label in enumerate(LABELS):
            writer.writerow([f"{i}.jpg", f"{i}", label, label if i < right else "wren", float(i < right)])


Conduct = Callable[..., Conductor]


def conducting(tmp_path_factory: pytest.TempPathFactory) -> Conduct:
    """A confirmed search; how many of 90 test specimens winner and baseline had right, and their costs, are told."""
    runs: dict[str, Path] = {}

    def conduct(
        winner: int | None = None, baseline: int | None = None, key: str = "lr", slower: float = 1.0
    ) -> Conductor:
        parameters = {
            "lr": {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1}},
            "batch_size": {"batch_size": {"type": "choice", "values": [16, 64, 128]}},
        }[key]
        changes: dict[str, Any] = {
            "parameters": parameters,
            "budget": {"trials": 4},
            "confirm": {"top_k": 1, "seeds": 2},
        }
        name = f"{key}-{slower}"
        if name not in runs:
            runs[name] = tmp_path_factory.mktemp(name)
            conductor = open_conductor(make_plan(runs[name], rungs=Rungs(1, 2, 2), **changes))
            while (task := conductor.next_task()) is not None:
                base = is_baseline(task.config) and task.config.batch_size == 32
                for epoch in (1, 2):
                    row = {"epoch": epoch, "objective": 0.5 if base else 0.6, "seconds": 1.0 if base else slower}
                    if not conductor.report(task.record.name, row):
                        break
        folder = tmp_path_factory.mktemp("copy") / "search"
        shutil.copytree(runs[name], folder)
        conductor = open_conductor(make_plan(folder, rungs=Rungs(1, 2, 2), **changes))
        assert conductor.settle()
        for record in conductor.records():
            if record.of and winner is not None and baseline is not None:
                write_scores(folder / "trials" / record.name, winner if record.values else baseline)
        return conductor

    return conduct


def outcome_of(conductor: Conductor) -> Outcome:
    outcome = decide(conductor)
    assert outcome is not None
    assert outcome.baseline is not None
    assert outcome.candidate is not None
    assert outcome.candidate.record.values
    return outcome


def minimised_search(folder: Path) -> Conductor:
    """A confirmed search without labels: every specimen of the test part has a loss."""
    conductor = search(folder, lambda config, epoch: 5 - learn(config, epoch), metric_name="reference_contrast")
    rng = np.random.default_rng(0)
    for record in conductor.records():
        if record.of and record.objective is not None:
            path = folder / "trials" / record.name / "test_scores.csv"
            path.parent.mkdir(parents=True)
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["filename", "group", "label", "predicted", "score"])
                losses = record.objective + rng.normal(0, 0.05, 60)
                writer.writerows([f"{i}.jpg", f"{i}", "", "", loss] for i, loss in enumerate(losses))
    return conductor


def summary_of(conductor: Conductor, outcome: Outcome | None) -> dict[str, Any]:
    write_summary(conductor, outcome)
    text = (conductor.plan.folder / "summary.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return content


def leaderboard(conductor: Conductor) -> tuple[list[str], list[dict[str, str]]]:
    write_leaderboard(conductor)
    with (conductor.plan.folder / "leaderboard.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames is not None
    return list(reader.fieldnames), rows
