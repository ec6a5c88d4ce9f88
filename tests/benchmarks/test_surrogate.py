"""The recorded curves between their points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import surrogate
from surrogate import KEYS, Process, Surrogate, even_seconds, fit_curves, read_repeats, seed_noise


def test_a_process_predicts_a_smooth_function_between_its_points() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((60, 2))
    process = Process(x, np.sin(3 * x[:, 0]) + x[:, 1])
    at = rng.random((50, 2)) * 0.8 + 0.1
    assert np.abs(process(at) - (np.sin(3 * at[:, 0]) + at[:, 1])).max() < 0.05


def test_what_is_left_out_is_predicted_by_the_others_alone() -> None:
    rng = np.random.default_rng(1)
    x = rng.random((20, 2))
    y = np.sin(3 * x[:, 0]) + 0.3 * rng.standard_normal(20)
    process = Process(x, y)
    # With the kernel held, the textbook way: without the row, by the rows that are left.
    kernel = process._kernel(x) + np.eye(20) * process.noise
    for i in (0, 7):
        rest = np.delete(np.arange(20), i)
        weights = np.linalg.solve(kernel[np.ix_(rest, rest)], (y[rest] - y.mean()) / y.std())
        predicted = y.mean() + y.std() * kernel[i, rest] @ weights
        assert process.left_out[i] == pytest.approx(y[i] - predicted)


def test_curves_that_are_left_out_are_missed_by_more_than_those_that_are_not() -> None:
    rng = np.random.default_rng(1)
    x = rng.random((30, 2))
    curves = np.cumsum(rng.random((30, 8)), axis=1) + 4 * x[:, :1]
    fitted = fit_curves(x, curves)
    fit = curves - np.stack([fitted(row) for row in x])
    assert fitted.left_out.shape == (30, 8)
    assert np.square(fitted.left_out).mean() > np.square(fit).mean()


def test_noise_is_what_repeats_differ_by_from_their_mean() -> None:
    rng = np.random.default_rng(2)
    covariance = np.array([[1.0, 0.6], [0.6, 2.0]])
    groups = [level + rng.multivariate_normal([0, 0], covariance, size=4) for level in np.linspace(0, 9, 500)]
    noise = seed_noise(groups)
    np.testing.assert_allclose(noise.deviations.T @ noise.deviations, covariance, atol=0.15)
    drawn = np.stack([noise.draw(rng) for _ in range(2000)])
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.25)
    # Two of one configuration: the variance of one seed is half the square of their difference.
    assert np.square(seed_noise([np.array([[1.0], [3.0]])]).deviations).sum() == pytest.approx(2.0)


def test_a_process_explains_no_more_than_the_noise_leaves() -> None:
    rng = np.random.default_rng(3)
    x = rng.random((60, 2))
    y = np.sin(3 * x[:, 0]) + x[:, 1] + 0.05 * rng.standard_normal(60)
    free, held = Process(x, y), Process(x, y, noise=0.05)
    assert held.noise * y.var() >= 0.05 * 0.999 > free.noise * y.var()
    assert np.std(y - held(x)) > np.std(y - free(x))
    assert Process(x, y, noise=100.0)(x).std() < y.std()  # nothing but noise is a fit too


def test_the_parts_of_the_table_are_brought_to_one_load() -> None:
    rows = [
        {"index": index, "seconds": seconds, "configuration": {"batch_size": size}}
        for index, seconds, size in [
            (0, 4.0, 32),
            (1, 6.0, 32),
            (2, 9.0, 64),
            (48, 2.0, 32),
            (49, 3.0, 32),
            (50, 3.0, 64),
        ]
    ]
    np.testing.assert_allclose(even_seconds(rows), [2.0, 3.0, 3.0, 2.0, 3.0, 3.0])
    # A size that the last part has not keeps what was recorded.
    np.testing.assert_allclose(even_seconds([*rows, {**rows[0], "configuration": {"batch_size": 128}}])[-1], 4.0)


def test_the_recorded_parts_are_told_apart_by_their_batches(rows: list[dict[str, Any]]) -> None:
    seconds = even_seconds(surrogate.read_rows("cifar-long"))
    sizes = np.array([row["configuration"]["batch_size"] for row in surrogate.read_rows("cifar-long")])
    small, large = seconds[sizes == 32], seconds[sizes == 256]
    assert small.min() > large.max()
    assert np.median(small[:12]) == pytest.approx(np.median(small[12:]), rel=0.05)


def test_repeats_are_of_one_configuration() -> None:
    groups = read_repeats("cifar-long")
    assert [len(group) > 1 for group in groups] == [True] * 4
    for group in groups:
        assert group[0]["study"] == "cifar-long" and {row["study"] for row in group[1:]} == {"cifar-long-seeds"}
        assert len({str(row["configuration"]) for row in group}) == 1
        assert len({row["probe"] for row in group}) > 1
    assert read_repeats("fashion") == []


def test_a_surrogate_without_repeats_or_with_an_unknown_noise_says_so(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="cifar-long: no configuration was recorded with several seeds"):
        Surrogate("cifar-long", rows, ("knn",), [])
    with pytest.raises(ValueError, match="noise: 'fit' is none of seeds, left out"):
        Surrogate("cifar-long", rows, ("knn",), read_repeats("cifar-long"), "fit")


def test_the_noise_of_seeds_is_less_than_what_the_processes_do_not_know(known: Surrogate) -> None:
    errors = known.noise_errors()
    assert 0 < errors["objective_by_seed"] < errors["objective_left_out"]
    assert errors["probe_by_seed"] > 0
    rng = np.random.default_rng(0)
    drawn = np.stack([known.curve(known.x[0], rng) for _ in range(2000)])
    assert drawn[:, -3:].mean(1).std() == pytest.approx(errors["objective_by_seed"], rel=0.1)


def test_the_best_is_no_less_than_any_point(known: Surrogate) -> None:
    points = known.random_points(50_000, np.random.default_rng(9))
    assert known.best() >= known.probe(points).max()


def test_the_ends_of_the_ranges_are_the_ends_of_the_cube(known: Surrogate) -> None:
    low = {
        "lr": 1e-5,
        "temperature": 0.05,
        "batch_size": 32,
        "transforms.cj_strength": 0.0,
        "transforms.min_scale": 0.05,
    }
    high = {
        "lr": 1e-1,
        "temperature": 0.5,
        "batch_size": 256,
        "transforms.cj_strength": 1.0,
        "transforms.min_scale": 0.8,
    }
    np.testing.assert_allclose(known.point(low), 0, atol=1e-12)
    np.testing.assert_allclose(known.point(high), 1)
    assert known.point({**low, "lr": 1e-3})[KEYS.index("lr")] == pytest.approx(0.5)
    assert known.point({**low, "batch_size": 64})[KEYS.index("batch_size")] == pytest.approx(1 / 3)


def test_random_points_are_configurations(known: Surrogate) -> None:
    points = known.random_points(500, np.random.default_rng(0))
    assert points.shape == (500, 5)
    sizes = np.unique(np.round(32 * 8 ** points[:, KEYS.index("batch_size")]))
    assert sizes.tolist() == list(surrogate.BATCH_SIZES)


def test_the_surrogate_follows_its_table(known: Surrogate, rows: list[dict[str, Any]]) -> None:
    predicted = np.array([known.true_probe(x) for x in known.x])
    recorded = np.array([row["probe"] for row in rows])
    assert np.corrcoef(predicted, recorded)[0, 1] > 0.8
    assert known.best() >= predicted.max() - 0.01
    assert known.epochs == 32
    assert known.training_seconds == pytest.approx(32 * np.mean(even_seconds(rows)))
    curve = known.curve(known.x[0], np.random.default_rng(0))
    assert curve.shape == (32,)
    assert not np.array_equal(curve, known.curve(known.x[0], np.random.default_rng(3)))  # other noise
