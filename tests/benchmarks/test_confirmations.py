"""Shorter confirmations out of the whole one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from confirmations import RULES, dropping, first, shortened

from phenoscape_tune.config import build_config
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.record import COMPLETED, TrialRecord
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.study import Study
from phenoscape_tune.search.verdict import decide

NAMES = ("base", "a", "b", "c")


def runs(values: dict[str, Sequence[float]]) -> list[TrialRecord]:
    """Repeats with seeds from 1 on, seed by seed."""
    count = len(next(iter(values.values())))
    return [
        TrialRecord(f"{name}-{seed}", "confirm", 0, {}, COMPLETED, (value,), seconds=10.0, of=name, seed=seed + 1)
        for seed in range(count)
        for name, value in ((name, own[seed]) for name, own in values.items())
    ]  # fmt: skip


def told(records: Sequence[TrialRecord]) -> list[tuple[str | None, int | None]]:
    return [(record.of, record.seed) for record in records]


def test_fewer_candidates_or_seeds_are_the_first_of_them() -> None:
    whole = runs({"base": [0.1, 0.1, 0.1], "a": [0.2, 0.2, 0.2], "b": [0.3, 0.3, 0.3], "c": [0.1, 0.1, 0.1]})
    one = first(candidates=1)(whole, NAMES, "base", 1)
    assert told(one.ran) == told(one.decides) == [(name, seed) for seed in (1, 2, 3) for name in ("base", "a")]
    two = first(seeds=2)(whole, NAMES, "base", 1)
    assert told(two.ran) == [(name, seed) for seed in (1, 2) for name in NAMES]


@pytest.mark.parametrize("sign", [1, -1])
def test_dropping_takes_the_worst_so_far_after_each_seed_and_never_the_defaults(sign: int) -> None:
    # b is worst at first; a leads, and is behind c in the mean of two.
    values = {"base": [0.0, 0.0, 0.0], "a": [0.3, 0.1, 0.9], "b": [0.1, 0.9, 0.9], "c": [0.2, 0.4, 0.3]}
    whole = runs({name: [sign * value for value in own] for name, own in values.items()})
    kept = dropping(whole, NAMES, "base", sign)
    assert told(kept.ran) == [
        *[(name, 1) for name in ("base", "a", "b", "c")],
        *[(name, 2) for name in ("base", "a", "c")],
        *[(name, 3) for name in ("base", "c")],
    ]
    assert told(kept.decides) == [(name, seed) for seed in (1, 2, 3) for name in ("base", "c")]


def searched(folder: Path, **confirm: object) -> Conductor:
    """A search whose trials differ by their temperature, and by their seed in another order."""
    space = build_space({
        "parameters": {"temperature": {"type": "uniform", "low": 0.05, "high": 0.5}},
        "budget": {"trials": 8}, "confirm": {"top_k": 3, "seeds": 3, **confirm},
    })  # fmt: skip
    folder.mkdir()
    plan = make_plan(space, build_config({"warmup_epochs": 0}), 9, folder, METRICS["knn_accuracy"])
    conductor = Conductor(plan, Study(folder / "study.journal", space.parameters, 0))
    while (task := conductor.next_task()) is not None:
        epoch, goes_on = 0, True
        while goes_on:
            epoch += 1
            value = task.config.temperature * (1 if task.config.seed in (0, 3) else 0.5 - task.config.temperature)
            row = {"epoch": epoch, "objective": value, "seconds": 1.0}
            goes_on = conductor.report(task.record.name, {**row, "test_objective": value} if task.test else row)
    return conductor


@pytest.mark.parametrize(("name", "trainings"), [("top_k 1", 6), ("top_k 2", 9), ("seeds 2", 8), ("drop", 9)])
def test_a_shorter_confirmation_is_what_a_search_that_asks_for_it_comes_to(
    name: str, trainings: int, tmp_path: Path
) -> None:
    asked = {"top_k 1": {"top_k": 1}, "top_k 2": {"top_k": 2}, "seeds 2": {"seeds": 2}, "drop": {"drop": True}}[name]
    whole, short = (searched(tmp_path / folder, **own) for folder, own in (("whole", {}), ("short", asked)))
    outcome, seconds = shortened(whole, RULES[name])
    expected = decide(short)
    assert expected is not None and expected.candidate is not None and outcome.candidate is not None
    assert seconds == sum(record.seconds for record in short.records() if record.of) == trainings * 9
    assert outcome.candidate.record.values == expected.candidate.record.values
    assert (outcome.gain, outcome.verdict) == (expected.gain, expected.verdict)
