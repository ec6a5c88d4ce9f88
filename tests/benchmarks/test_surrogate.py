"""The recorded curves between their points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import surrogate
from surrogate import KEYS, Process, Surrogate, fit_curves


def test_a_process_predicts_a_smooth_function_between_its_points() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((60, 2))
    process = Process(x, np.sin(3 * x[:, 0]) + x[:, 1])
    at = rng.random((50, 2)) * 0.8 + 0.1
    assert np.abs(process(at) - (np.sin(3 * at[:, 0]) + at[:, 1])).max() < 0.05


def test_prediction_and_residual_are_the_recorded_curve() -> None:
    rng = np.random.default_rng(1)
    x = rng.random((12, 5))
    curves = np.cumsum(rng.random((12, 8)), axis=1)
    fitted = fit_curves(x, curves)
    for row, curve, residual in zip(x, curves, fitted.residuals, strict=True):
        np.testing.assert_allclose(fitted(row) + residual, curve)


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
    assert known.training_seconds == pytest.approx(32 * np.mean([row["seconds"] for row in rows]))
    curve = known.curve(known.x[0], np.random.default_rng(0))
    assert curve.shape == (32,)
    assert not np.array_equal(curve, known.curve(known.x[0], np.random.default_rng(3)))  # other noise
