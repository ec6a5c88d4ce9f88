import math
from pathlib import Path

import pytest
from driver import search
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.search.importance import FEWEST_TRIALS, importances
from phenoscape_tune.search.rungs import Rungs

TO_THE_END = Rungs(9, 2, 9)


def only_lr(config: TrainConfig, epoch: int) -> float:
    return -abs(math.log10(config.lr) + 3)


def test_the_key_that_acts_is_the_important_one_and_shares_add_up_to_one(tmp_path: Path) -> None:
    (found,) = importances(
        search(tmp_path, only_lr, order="joint", budget={"trials": 31}, confirm=None, rungs=TO_THE_END)
    )
    assert (found.title, found.trials) == ("Stage 1: joint", 30)
    assert found.shares["lr"] > 0.9
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.remark == ""


def test_a_logarithmic_range_is_weighed_on_its_own_scale(tmp_path: Path) -> None:
    """All of the effect lies below a hundredth of the range: on a linear scale it would hardly count."""

    def low_end(config: TrainConfig, epoch: int) -> float:
        return (config.lr < 1e-4) + 0.1 * (config.temperature > 0.3)

    (found,) = importances(
        search(tmp_path, low_end, order="joint", budget={"trials": 41}, confirm=None, rungs=TO_THE_END)
    )
    assert found.shares["lr"] > 0.8


@settings(max_examples=6, deadline=None)
@given(trials=st.integers(2, 14))
def test_few_trials_are_not_weighed_but_counted(trials: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    conductor = search(
        tmp_path_factory.mktemp("few"),
        only_lr,
        order="joint",
        budget={"trials": trials},
        confirm=None,
        rungs=TO_THE_END,
    )
    (found,) = importances(conductor)
    assert found.trials == trials - 1
    assert bool(found.shares) == (found.trials >= FEWEST_TRIALS)
    assert found.remark


def test_a_staged_search_is_weighed_over_all_its_stages(tmp_path: Path) -> None:
    (found,) = importances(search(tmp_path, only_lr, budget={"trials": 15}, confirm=None, rungs=TO_THE_END))
    assert (found.title, found.trials) == ("All stages together", 15)
    assert found.shares["lr"] > found.shares["temperature"]
    assert "stood still" in found.remark


def test_equal_trials_tell_nothing(tmp_path: Path) -> None:
    (found,) = importances(
        search(tmp_path, lambda config, epoch: 0.5, budget={"trials": 15}, confirm=None, rungs=TO_THE_END)
    )
    assert found.shares == {}
    assert "same objective" in found.remark


def test_one_key_has_nothing_to_be_weighed_against(tmp_path: Path) -> None:
    parameters = {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1}}
    assert importances(search(tmp_path, only_lr, parameters=parameters, confirm=None)) == []


def test_choices_of_any_kind_can_be_weighed(tmp_path: Path) -> None:
    parameters = {
        "weights": {"type": "choice", "values": [None, "DEFAULT", "<b>"]},
        "batch_size": {"type": "logint", "low": 8, "high": 64},
    }
    conductor = search(
        tmp_path,
        lambda config, epoch: float(config.weights == "DEFAULT"),
        parameters=parameters,
        order="joint",
        budget={"trials": 25},
        confirm=None,
        rungs=TO_THE_END,
    )
    (found,) = importances(conductor)
    assert found.shares["weights"] > 0.8
