import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from strategies import ranges

from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.priority import Stage
from phenoscape_tune.search.record import COMPLETED
from phenoscape_tune.search.sampler import StageSampler, derive_seed, distribution, spread_points, start_within
from phenoscape_tune.search.study import Study

LR = Parameter(type="loguniform", low=1e-5, high=1e-1)
TEMPERATURE = Parameter(type="uniform", low=0.05, high=0.5)
BATCH = Parameter(type="choice", values=[16, 32, 64, 128])


# The first points


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_each_stratum_of_a_continuous_range_is_hit_once(count: int, seed: int) -> None:
    points = spread_points({"lr": LR, "temperature": TEMPERATURE}, count, seed)
    shares = {
        "lr": [math.log(point["lr"] / 1e-5) / math.log(1e4) for point in points],
        "temperature": [(point["temperature"] - 0.05) / 0.45 for point in points],
    }
    for key, values in shares.items():
        assert sorted(int(share * count) for share in values) == list(range(count)), key


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_each_value_of_a_grid_is_hit_equally_often(seed: int) -> None:
    grids = {
        "choice": (BATCH, [16, 32, 64, 128]),
        "int": (Parameter(type="int", low=3, high=6), [3, 4, 5, 6]),
        "stepped int": (Parameter(type="int", low=10, high=44, step=10), [10, 20, 30, 40]),
        "stepped": (Parameter(type="uniform", low=0.1, high=0.4, step=0.1), [0.1, 0.2, 0.3, 0.4]),
    }
    points = spread_points({key: parameter for key, (parameter, _) in grids.items()}, 8, seed)
    for key, (_, values) in grids.items():
        counted = Counter(round(point[key], 9) for point in points)
        assert counted == dict.fromkeys(values, 2), key
    assert all(type(point["int"]) is type(point["stepped int"]) is int for point in points)


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_whole_numbers_are_spread_evenly_in_the_logarithm(seed: int) -> None:
    points = spread_points({"n": Parameter(type="logint", low=2, high=512)}, 8, seed)
    values = sorted(point["n"] for point in points)
    assert all(type(value) is int for value in values)
    edges = np.exp(np.linspace(math.log(1.5), math.log(512.5), 9))
    assert all(math.floor(low) <= v <= math.ceil(high) for v, low, high in zip(values, edges, edges[1:], strict=False))


def test_the_first_points_follow_from_the_seed() -> None:
    parameters = {"lr": LR, "batch_size": BATCH}
    assert spread_points(parameters, 6, 1) == spread_points(parameters, 6, 1)
    assert spread_points(parameters, 6, 1) != spread_points(parameters, 6, 2)


def suggest(parameters: dict[str, Parameter], trials: int, seed: int, values: list[float]) -> list[dict[str, Any]]:
    """The suggestions of a stage whose trials end with `values` in turn."""
    sampler = StageSampler(parameters, trials, seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    points = []
    for number in range(trials):
        sampler.begin(number)
        trial = study.ask({key: distribution(parameter) for key, parameter in parameters.items()})
        points.append(trial.params)
        study.tell(trial, values[number % len(values)])
    return points


# What is recommended comes first


def batches(points: list[dict[str, Any]]) -> list[int]:
    return [point["batch_size"] for point in points]


@pytest.mark.parametrize("seed", range(5))
def test_the_first_points_lie_in_the_recommended_part_and_are_the_same_ones(seed: int) -> None:
    parameters = {"batch_size": BATCH, "lr": LR}
    points = spread_points(parameters, 8, seed)
    ordered = start_within(points, parameters, {"batch_size": (64, 128), "lr_of_another_stage": (0, 1)})
    assert all(batch in (64, 128) for batch in batches(ordered)[:4])
    assert all(batch in (16, 32) for batch in batches(ordered)[4:])
    assert sorted(map(str, ordered)) == sorted(map(str, points))


@pytest.mark.parametrize(
    ("parameter", "points", "expected"),
    [
        (BATCH, [16, 128], 64),
        (Parameter(type="logint", low=8, high=512), [9, 300], 45),
        (Parameter(type="logint", low=50, high=512), [90, 300], 64),
        (Parameter(type="int", low=8, high=512, step=8), [8, 504], 48),
    ],
)
def test_where_no_point_lies_there_the_first_takes_such_a_value(
    parameter: Parameter, points: list[int], expected: int
) -> None:
    made = start_within(
        [{"batch_size": point} for point in points], {"batch_size": parameter}, {"batch_size": (32, 64)}
    )
    assert parameter.contains(batches(made)[0])
    assert batches(made)[1:] == points[1:]
    assert batches(made)[0] == expected


def test_a_range_without_recommended_values_is_left_as_it_is() -> None:
    points = [{"batch_size": 16}, {"batch_size": 128}]
    assert start_within(points, {"batch_size": BATCH}, {"batch_size": (256, 512)}) == points
    assert start_within([], {"batch_size": BATCH}, {"batch_size": (32, 64)}) == []


@pytest.mark.parametrize("seed", range(3))
def test_what_the_spaces_author_thinks_best_wins(seed: int) -> None:
    sampler = StageSampler({"batch_size": BATCH.model_copy(update={"default": 16})}, 4, seed, {"batch_size": (64, 128)})
    study = optuna.create_study(sampler=sampler)
    tried = []
    for number in range(4):
        sampler.begin(number)
        trial = study.ask({"batch_size": distribution(BATCH)})
        tried.append(trial.params["batch_size"])
        study.tell(trial, 0.5)
    assert tried[0] == 16
    assert sorted(tried) == [16, 32, 64, 128]


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), ranges(), min_size=1),
    st.integers(1, 7),
    st.integers(0, 2**32 - 1),
    st.lists(st.floats(0, 1), min_size=3, max_size=5),
)
def test_every_suggestion_lies_in_its_range_and_on_its_grid(
    parameters: dict[str, Parameter], trials: int, seed: int, values: list[float]
) -> None:
    with warnings.catch_warnings():
        # A step that does not divide the range: Optuna says that it lowers the upper bound.
        warnings.simplefilter("ignore")
        points = suggest(parameters, trials, seed, values)
    for point in points:
        assert point.keys() == parameters.keys()
        for key, parameter in parameters.items():
            assert parameter.contains(point[key]), (key, parameter, point[key])


# Values that can be counted


GRIDS: dict[str, tuple[Parameter, set[Any]]] = {
    "choice": (BATCH, {16, 32, 64, 128}),
    "int": (Parameter(type="int", low=3, high=7), {3, 4, 5, 6, 7}),
    "logint": (Parameter(type="logint", low=3, high=7), {3, 4, 5, 6, 7}),
    "steps": (Parameter(type="int", low=16, high=80, step=16), {16, 32, 48, 64, 80}),
}


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_value_is_tried_twice_before_all_were(kind: str, seed: int) -> None:
    parameter, values = GRIDS[kind]
    points = [point["x"] for point in suggest({"x": parameter}, len(values) + 2, seed, [0.5, 0.7, 0.3])]
    assert set(points[: len(values)]) == values
    assert len(points) == len(values) + 2


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_no_combination_of_choices_is_tried_twice(a: int, b: int, seed: int, values: list[float]) -> None:
    parameters = {
        "a": Parameter(type="choice", values=list("wxyz")[:a]),
        "b": Parameter(type="int", low=0, high=b),
    }
    trials = a * (b + 1)
    points = suggest(parameters, trials, seed, values)
    assert len({tuple(point.items()) for point in points}) == trials


@pytest.mark.parametrize(("low", "step", "count"), [(0.05, 0.11, 8), (0.2, 0.07, 9)])
def test_steps_are_suggested_as_they_are_written_and_once(low: float, step: float, count: int) -> None:
    written = {round(low + i * step, 2) for i in range(count)}
    parameter = Parameter(type="uniform", low=low, high=max(written), step=step)
    for seed in range(6):
        points = suggest({"x": parameter}, count, seed, [0.5, 0.7, 0.3])
        assert {point["x"] for point in points} == written


@pytest.mark.parametrize("seed", range(8))
def test_trials_asked_for_before_any_has_ended_differ(seed: int) -> None:
    """Many side by side, more than the stratified first points."""
    parameters = {"x": BATCH, "y": BATCH}
    sampler = StageSampler(parameters, 16, seed)
    study = optuna.create_study(sampler=sampler)
    points = []
    for number in range(16):
        sampler.begin(number)
        trial = study.ask({key: distribution(parameter) for key, parameter in parameters.items()})
        points.append((trial.params["x"], trial.params["y"]))
    assert len(set(points)) == 16


def test_running_and_pruned_trials_are_not_tried_again_either() -> None:
    sampler = StageSampler({"x": BATCH}, 4, 0)
    study = optuna.create_study(sampler=sampler)
    points = []
    for number, state in enumerate([None, TrialState.PRUNED, TrialState.PRUNED, None]):
        sampler.begin(number)
        trial = study.ask({"x": distribution(BATCH)})
        points.append(trial.params["x"])
        if state is not None:
            study.tell(trial, state=state)
    assert sorted(points) == [16, 32, 64, 128]


# The value that the author thinks best


@pytest.mark.parametrize("trials", [1, 2, 5, 9])
def test_the_default_of_a_range_is_tried_first_and_once(trials: int) -> None:
    lr = Parameter(type="loguniform", low=1e-5, high=1e-1, default=0.02)
    batch = Parameter(type="choice", values=[16, 32, 64, 128], default=64)
    points = suggest({"lr": lr, "batch_size": batch, "temperature": TEMPERATURE}, trials, 0, [0.3, 0.6])
    assert (points[0]["lr"], points[0]["batch_size"]) == (0.02, 64)
    assert TEMPERATURE.contains(points[0]["temperature"])
    assert all(point["lr"] != 0.02 for point in points[1:])


@pytest.mark.parametrize("parameter", [LR, BATCH])
def test_a_default_that_the_standing_winner_has_is_not_run_again(parameter: Parameter) -> None:
    value = (parameter.values or [0.001])[-1]
    sampler = StageSampler({"x": parameter.model_copy(update={"default": value})}, 4, 0)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    known = {"x": distribution(parameter)}
    study.add_trial(optuna.trial.create_trial(params={"x": value}, distributions=known, value=0.5))
    for number in range(3):
        sampler.begin(number)
        study.tell(study.ask(known), 0.4)
    points = [trial.params["x"] for trial in study.trials]
    assert len(set(points)) == 4


def test_what_an_earlier_search_with_the_same_seed_tried_is_not_tried_again() -> None:
    first = suggest({"lr": LR}, 8, 5, [0.1, 0.4, 0.2])
    sampler = StageSampler({"lr": LR}, 8, 5)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    known = {"lr": distribution(LR)}
    for point in first:
        study.add_trial(optuna.trial.create_trial(params=point, distributions=known, value=0.4))
    for number in range(8):
        sampler.begin(number)
        study.tell(study.ask(known), 0.3)
    assert len({trial.params["lr"] for trial in study.trials}) == 16


# Wider ranges


def widened(parameters: dict[str, Parameter], wide: dict[str, Parameter], added: dict[str, Parameter]) -> list[Any]:
    """The suggestions of a stage of nine trials whose ranges are widened after its sixth."""
    sampler = StageSampler(parameters, 9, 0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    points = []
    for number in range(9):
        if number == 6:
            sampler.widen(wide, added, 6, 9)
        sampler.begin(number)
        ranges = wide if number >= 6 else parameters
        trial = study.ask({key: distribution(parameter) for key, parameter in ranges.items()})
        points.append(trial.params)
        study.tell(trial, 0.1 * number)
    return points


def test_after_a_range_was_widened_what_was_added_is_covered_first() -> None:
    narrow = {"lr": Parameter(type="loguniform", low=1e-4, high=1e-2)}
    wide = {"lr": Parameter(type="loguniform", low=1e-4, high=1e-1)}
    added = {"lr": Parameter(type="loguniform", low=1e-2, high=1e-1)}
    points = [point["lr"] for point in widened(narrow, wide, added)]
    assert points[:6] == [point["lr"] for point in suggest(narrow, 9, 0, [0.1 * i for i in range(9)])[:6]]
    # Two of three are spread over what was added, one in each half.
    assert sorted(int(math.log10(value / 1e-2) // 0.5) for value in points[6:8]) == [0, 1]
    assert all(wide["lr"].contains(value) for value in points)


def test_a_key_that_was_not_widened_keeps_its_range() -> None:
    narrow = {"lr": Parameter(type="loguniform", low=1e-4, high=1e-2), "temperature": TEMPERATURE}
    wide = {**narrow, "lr": Parameter(type="loguniform", low=1e-5, high=1e-2)}
    added = {**narrow, "lr": Parameter(type="loguniform", low=1e-5, high=1e-4)}
    points = widened(narrow, wide, added)
    assert all(TEMPERATURE.contains(point["temperature"]) for point in points)
    assert all(point["lr"] <= 1e-4 for point in points[6:8])


# Which sampler, and with which seed


def stage_of(trials: int) -> Stage:
    return Stage(1, "lr", ("lr", "temperature"), trials)


def open_study(path: Path, stage: Stage, seed: int = 0) -> Study:
    study = Study(path, {"lr": LR, "temperature": TEMPERATURE}, seed)
    study.open_stage(stage, None)
    return study


def go_on(study: Study, stage: Stage, until: int) -> list[dict[str, Any]]:
    """Ask for trials up to number `until`, each told how near its values are to lr 0.01 and temperature 0.1."""
    while len(study.trials(stage)) < until:
        record = study.ask(stage, {})
        value = -abs(math.log10(record.values["lr"]) + 2) - abs(record.values["temperature"] - 0.1)
        study.tell(study.report(record, {"epoch": 1, "objective": value}), COMPLETED)
    return [record.values for record in study.trials(stage)]


@pytest.mark.parametrize(("trials", "first"), [(1, 1), (2, 2), (3, 3), (5, 3), (8, 4), (9, 5)])
def test_about_half_the_trials_are_spread_and_at_least_three(trials: int, first: int, tmp_path: Path) -> None:
    stage = stage_of(trials)
    values = go_on(open_study(tmp_path / "journal", stage), stage, trials)
    parameters = {key: {"lr": LR, "temperature": TEMPERATURE}[key] for key in stage.keys}
    points = spread_points(parameters, first, derive_seed(0, "lr"))
    assert values[:first] == points
    assert all(value not in points for value in values[first:])


def test_after_the_first_points_tpe_learns_from_what_was_told(tmp_path: Path) -> None:
    parameters = {"lr": LR}
    low = suggest(parameters, 8, 0, [0.0, 0.0, 0.0, 1.0])
    high = suggest(parameters, 8, 0, [1.0, 0.0, 0.0, 0.0])
    assert low[:4] == high[:4]
    assert low[4:] != high[4:]
    # With one clearly best point TPE stays nearer to it than the spread points are on average.
    stage = stage_of(30)
    values = go_on(open_study(tmp_path / "journal", stage), stage, 30)
    far = [abs(math.log10(value["lr"]) + 2) for value in values]
    assert np.mean(far[15:]) < 0.7 * np.mean(far[:15])


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_study_reopened_midway_suggests_what_an_unbroken_one_would(stop: int, tmp_path: Path) -> None:
    stage = stage_of(8)
    unbroken = go_on(open_study(tmp_path / "unbroken", stage), stage, 8)
    go_on(open_study(tmp_path / "broken", stage), stage, stop)
    assert go_on(open_study(tmp_path / "broken", stage), stage, 8) == unbroken


def test_suggestions_follow_from_seed_and_stage(tmp_path: Path) -> None:
    stage = stage_of(6)
    one = go_on(open_study(tmp_path / "one", stage, seed=0), stage, 6)
    assert go_on(open_study(tmp_path / "same", stage, seed=0), stage, 6) == one
    assert go_on(open_study(tmp_path / "other", stage, seed=1), stage, 6) != one
    other = Stage(1, "joint", stage.keys, 6)
    assert go_on(open_study(tmp_path / "stage", other, seed=0), other, 6) != one


def test_two_trials_of_a_stage_never_share_their_stream() -> None:
    points = suggest({"lr": LR}, 12, 3, [0.5])
    assert len({point["lr"] for point in points}) == 12


def test_derived_seeds_differ_and_stay_the_same() -> None:
    # Trials are named by it: another value would orphan the searches of earlier versions.
    assert derive_seed(0, "lr") == 2_913_203_273
    seeds = {derive_seed(seed, stage, number) for seed in range(5) for stage in ("lr", "joint") for number in range(20)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**32 for seed in seeds)
