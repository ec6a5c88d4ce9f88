from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.config import EarlyStoppingConfig, TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.training.early_stopping import check_monitor, epochs_without_improvement
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.training.run import RunOptions

KNN, CONTRAST = METRICS["knn_accuracy"], METRICS["reference_contrast"]


def since(values: list[float], monitor: str = "val_loss", min_delta: float = 0.0) -> int:
    stopping = EarlyStoppingConfig(monitor=monitor, min_delta=min_delta)
    return epochs_without_improvement(stopping, KNN, [{monitor: value} for value in values])


def test_a_loss_improves_when_it_falls_and_a_score_when_it_rises() -> None:
    assert since([3.0, 2.0, 1.0]) == 0
    assert since([1.0, 2.0, 3.0]) == 2
    assert since([0.1, 0.2, 0.3], "objective") == 0
    assert since([0.3, 0.2, 0.1], "objective") == 2
    assert epochs_without_improvement(
        EarlyStoppingConfig(monitor="objective", min_delta=0), CONTRAST, [{"objective": v} for v in (3.0, 2.0)]
    ) == 0  # fmt: skip


def test_the_objective_is_known_by_its_own_name_too() -> None:
    stopping = EarlyStoppingConfig(monitor="knn_accuracy")
    check_monitor(stopping, KNN)
    assert epochs_without_improvement(stopping, KNN, [{"objective": 0.4}, {"objective": 0.3}]) == 1


def test_less_than_min_delta_is_no_improvement_and_small_steps_add_up() -> None:
    assert since([1.0, 0.95, 0.9], min_delta=0.1) == 2
    # Each step is below min_delta; from the best that counted they are above it in the third.
    assert since([1.0, 0.95, 0.9, 0.85], min_delta=0.12) == 0


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0, 1))
def test_it_is_the_distance_to_the_last_epoch_that_improved(values: list[float], min_delta: float) -> None:
    best, last = None, 0
    for epoch, value in enumerate(values):
        if best is None or value < best - min_delta:
            best, last = value, epoch
    assert since(values, min_delta=min_delta) == len(values) - 1 - last


def test_a_value_that_is_not_reported_is_refused_before_the_start(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny(early_stopping={"monitor": "val_los"})
    with pytest.raises(UserError, match=r"early_stopping.monitor: 'val_los' is not reported; did you mean 'val_loss'"):
        train_simclr(config, lambda row: None)
    assert not Path(config.out_dir).exists()


def test_a_run_stops_after_its_patience_and_so_does_a_resumed_one(
    tiny: Callable[..., TrainConfig], caplog: pytest.LogCaptureFixture
) -> None:
    # Nothing improves by so much.
    config = tiny(max_epochs=6, early_stopping={"monitor": "val_loss", "patience": 2, "min_delta": 100.0})
    with caplog.at_level(logging.INFO):
        rows = train_simclr(config, lambda row: None)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert "stopped early after epoch 3: val_loss has not improved by more than 100 for 2 epochs" in caplog.text
    last = Path(config.out_dir) / "checkpoints" / "last.ckpt"
    again = train_simclr(config, lambda row: None, RunOptions(resume=last))
    assert [row["epoch"] for row in again] == [1, 2, 3]
