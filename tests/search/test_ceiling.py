"""PASHA's rule, apart from what it wins or loses."""

from __future__ import annotations

from pathlib import Path

import pytest
from pasha import PashaConductor, noise, stable

from phenoscape_tune.config import build_config
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.study import Study


def test_noise_is_the_distance_of_curves_that_change_places_twice() -> None:
    steady = [[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]]
    once = [[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.2, 0.3]]
    # Means of up to three: 0.1, 0.15, 0.23, 0.40 and 0.2, 0.1, 0.27, 0.31.
    twice = [[0.1, 0.2, 0.4, 0.6], [0.2, 0.0, 0.6, 0.33]]
    assert noise(steady) == noise(once) == 0.0
    assert noise(twice) == pytest.approx(0.4 - 0.31)
    # Evaluations that change places while their means do not are no noise of what is ranked.
    assert noise([[0.1, 0.2, 0.31, 0.3, 0.31], [0.0, 0.1, 0.32, 0.29, 0.32]]) == 0.0
    assert noise([[0.5] * 4, [0.5] * 4]) == 0.0


def test_a_ranking_is_stable_where_it_stays() -> None:
    rising = [[level] * 9 for level in (0.1, 0.2, 0.3)]
    assert stable(rising, 3, 9, 1)
    assert stable(rising, 3, 9, -1)
    crossing = [[0.1] * 3 + [0.4] * 6, [0.2] * 9]
    assert not stable(crossing, 3, 9, 1)
    assert stable([*rising, [0.9] * 3], 3, 9, 1)  # what has not reached the upper rung says nothing


def test_a_swap_within_the_noise_is_none() -> None:
    one, other = [0.50, 0.53] * 4, [0.53, 0.50] * 4  # means of the last three: 0.51 and 0.52, then 0.52 and 0.51
    assert noise([one, other]) == pytest.approx(0.01)
    assert stable([one, other], 3, 8, 1)
    # The same swap of curves that cross once only is one.
    assert not stable([[0.51] * 3 + [0.52] * 5, [0.52] * 3 + [0.51] * 5], 3, 8, 1)
    # A swap by more than the noise, too.
    assert not stable([[0.1] * 3 + [0.9] * 5, one, other], 3, 8, 1)


def search(folder: Path, swapping: bool) -> PashaConductor:
    """A search with one key, the larger the better; the defaults, worst at first, may be best later."""
    space = build_space({
        "parameters": {"temperature": {"type": "uniform", "low": 0.05, "high": 0.5}},
        "scheduler": {"grace_epochs": 3, "reduction_factor": 3}, "budget": {"trials": 12}, "confirm": None,
    })  # fmt: skip
    plan = make_plan(space, build_config({"warmup_epochs": 0}), 30, folder, METRICS["knn_accuracy"])
    conductor = PashaConductor(plan, Study(folder / "study.journal", space.parameters, 0))
    while (task := conductor.next_task()) is not None:
        level = task.config.temperature
        epoch, goes_on = 0, True
        while goes_on:
            epoch += 1
            value = 0.9 if swapping and epoch > 3 and task.record.stage == "defaults" else level
            goes_on = conductor.report(task.record.name, {"epoch": epoch, "objective": value, "seconds": 1.0})
    return conductor


def test_trials_end_at_the_second_rung_while_the_ranking_stays(tmp_path: Path) -> None:
    conductor = search(tmp_path, swapping=False)
    baseline, *searched = conductor.records()
    assert len(baseline.curve) == 30
    exempt = [record for record in searched if conductor.is_exempt(record)]
    assert len(exempt) == 1 and len(exempt[0].curve) == 30
    assert {len(record.curve) for record in searched if record not in exempt} <= {3, 9}
    assert conductor.ceilings == {}
    best = max(searched, key=lambda record: record.values["temperature"])
    assert conductor.ranked()[0].name == best.name  # compared at equal epochs, though it was not trained to the end


def test_the_ceiling_rises_where_the_ranking_changes(tmp_path: Path) -> None:
    conductor = search(tmp_path, swapping=True)
    assert conductor.ceilings == {"temperature": 2}  # from 9 to 27 epochs, between which it stays
    searched = [record for record in conductor.records()[1:] if not conductor.is_exempt(record)]
    assert max(len(record.curve) for record in searched) == 27
