from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.training.advice import BUSY, LEAST_BATCH, Advisor

RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "learning_curves.jsonl"
HEALTHY = {"feature_std": 0.2, "rankme": 9.0}


def rows(losses: list[float], **values: float) -> list[dict[str, Any]]:
    return [{"epoch": i, "train_loss": loss, **HEALTHY, **values} for i, loss in enumerate(losses, start=1)]


def advise(history: list[dict[str, Any]], steps: int = 100, batch: int | None = None, **changes: Any) -> list[str]:
    """All that is said of a run as its epochs end."""
    config = build_config({"warmup_epochs": 2, "max_epochs": 50, **changes})
    advisor = Advisor(config, steps, batch or config.batch_size)
    return [line for n in range(1, len(history) + 1) for line in advisor.look(history[:n])]


def fall(start: float, end: float, epochs: int) -> list[float]:
    return [end + (start - end) * math.exp(-epoch / 4) for epoch in range(epochs)]


# Chance of 32 images is log(63) = 4.14; with aligned views and orthogonal others the loss is almost 0.
def test_a_healthy_run_is_left_alone() -> None:
    assert advise(rows(fall(4.0, 1.5, 50), utilisation=0.93, waiting_share=0.02)) == []
    assert advise(rows(fall(4.0, 3.4, 50))) == []


def test_a_run_that_learned_most_in_its_first_epoch_is_not_called_slow() -> None:
    assert advise(rows(fall(1.2, 1.15, 50)), steps=20_000) == []


def test_few_steps_tell_nothing() -> None:
    assert advise(rows([4.14] * 12), steps=2) == []


def test_a_loss_that_stays_at_chance_is_told_with_the_guides_remedies() -> None:
    (line,) = advise(rows([4.14, 4.15, 4.13, 4.14, 4.14, 4.13, 4.14, 4.14]), lr=1e-4, temperature=0.07)
    assert line.startswith("the loss is not decreasing: from 4.140 to ")
    for remedy in (
        "preprocessing",
        "positive pairs",
        "temperature (now 0.07",
        "batch_size",
        "62 negatives",
        "lr=0.0003",
    ):
        assert remedy in line


def test_a_loss_that_rises_back_to_chance_is_told() -> None:
    history = rows([*fall(4.1, 3.7, 10), 4.0, 4.1, 4.12, 4.13])
    assert len(advise(history[:10])) == 0
    assert "not decreasing" in advise(history)[0]


def test_slow_convergence_is_told_with_the_guides_four_remedies_and_the_runs_numbers() -> None:
    history = rows([4.10 - 0.02 * epoch for epoch in range(20)], waiting_share=0.31)
    (line,) = advise(history, lr=1e-5)
    assert line.startswith("slow convergence")
    for remedy in ("lr=3e-05", "temperature (now 0.1", "cj_strength 0.5, min_scale 0.08", "31% of the time", "tune.py"):
        assert remedy in line


def test_a_high_learning_rate_is_not_advised_to_rise_beyond_the_guides_range() -> None:
    (line,) = advise(rows([4.14] * 10), lr=0.05)
    assert "lower lr (now 0.05)" in line


def test_nothing_is_said_of_the_loss_before_the_warm_up_is_over() -> None:
    assert advise(rows([4.14] * 14), warmup_epochs=10) == []
    assert advise(rows([4.14] * 15), warmup_epochs=10) != []


@pytest.mark.parametrize("sign", [{"feature_std": 0.001}, {"feature_std": math.nan}, {"rankme": 1.02}])
def test_collapsed_features_are_told_after_two_epochs_of_them(sign: dict[str, float]) -> None:
    healthy, collapsed = rows([3.9, 3.6, 3.4]), [{**row, **sign} for row in rows([4.1, 4.1, 4.1])]
    assert advise([*healthy, collapsed[0], *healthy]) == []
    (line,) = advise([*healthy, *collapsed], lr=0.3)
    assert line.startswith("collapsed features")
    assert "lr=0.03" in line


@pytest.mark.parametrize(("batch", "said"), [(8, True), (31, True), (32, False), (256, False)])
def test_too_few_negatives_are_counted(batch: int, said: bool) -> None:
    lines = advise(rows([2.0]), batch_size=batch)
    assert bool(lines) == said
    if said:
        assert f"only {2 * batch - 2} others" in lines[0]
        assert f"accumulate_grad_batches={math.ceil(LEAST_BATCH / batch)}" in lines[0]


def test_a_resumed_run_is_not_told_again_what_it_was_told_before() -> None:
    config = build_config({"batch_size": 8, "warmup_epochs": 2})
    history, new, resumed = rows([4.14] * 12), Advisor(config, 100, 8), Advisor(config, 100, 8)
    assert new.look([]) == []  # a new run starts with looking back, too
    assert len(new.look(history[:1])) == 1
    resumed.look(history[:1])
    assert resumed.look(history[:2]) == []


def test_the_batch_that_counts_is_that_of_all_devices() -> None:
    assert advise(rows([2.0]), batch_size=8, batch=32, devices=4) == []
    # With two devices and two batches accumulated, twice as many are needed.
    (line,) = advise(rows([2.0]), batch_size=4, batch=16, devices=2, accumulate_grad_batches=2)
    assert "accumulate_grad_batches=4" in line


def test_a_handful_of_images_has_no_larger_batch() -> None:
    assert advise(rows([2.0]), steps=2, batch_size=8) == []


def test_an_idle_gpu_is_told_after_the_first_epoch_with_what_holds_it_up() -> None:
    losses = fall(4.0, 1.5, 4)
    assert advise(rows(losses[:1], utilisation=0.2)) == []
    assert advise(rows(losses, utilisation=BUSY)) == []
    (line,) = advise(rows(losses, utilisation=0.45, waiting_share=0.01))
    assert "45%" in line and "batch_size (now 32)" in line
    (line,) = advise(rows(losses, utilisation=0.45, waiting_share=0.5))
    assert "50% of the time goes by waiting" in line


def row_values() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"train_loss": st.floats(0, 12)},
        optional={
            "feature_std": st.one_of(st.floats(0, 1), st.just(math.nan)),
            "rankme": st.floats(1, 500),
            "utilisation": st.floats(0, 1),
            "waiting_share": st.floats(0, 1),
        },
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(row_values(), st.just({"train_loss": 4.1, "feature_std": 0.0})), max_size=40),
    st.integers(2, 300),
    st.integers(1, 1000),
    st.sampled_from([1e-5, 1e-3, 0.1]),
)
def test_no_advice_is_given_twice(history: list[dict[str, Any]], batch: int, steps: int, lr: float) -> None:
    lines = advise(history, steps, batch, lr=lr)
    begun = [line.split(":")[0].split(" is ")[0] for line in lines]
    assert len(set(begun)) == len(begun) <= 5
    assert all("nan%" not in line and "\n" not in line for line in lines)


# Real trainings


def test_of_the_recorded_trainings_only_those_at_the_lowest_learning_rates_are_called_slow() -> None:
    records = [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").splitlines()]
    assert len(records) > 80
    told = []
    for record in records:
        scores, changes = record["scores"], record["configuration"]
        known = {key: changes[key] for key in ("lr", "temperature", "batch_size")}
        config = build_config({**known, "max_epochs": record["epochs"]})
        # The first value of each is of the untrained network.
        columns = zip(scores["train_loss"], scores["feature_std"], scores["rankme"], strict=True)
        history = [{"train_loss": loss, "feature_std": std, "rankme": rank} for loss, std, rank in columns][1:]
        advisor = Advisor(config, 100, config.batch_size)
        lines = [line for n in range(1, len(history) + 1) for line in advisor.look(history[:n])]
        told += [config.lr] if lines else []
    assert told
    assert max(told) < 1e-4


@pytest.fixture(scope="module")
def specimens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from phenoscape_tune.data.sample import write_sample

    return write_sample(tmp_path_factory.mktemp("data") / "sample", per_class=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"lr": 0.003, "batch_size": 32}, []), ({"lr": 0.003, "batch_size": 8}, ["few negatives"]),
     ({"lr": 1e-7, "batch_size": 32, "eta_min": 0}, ["the loss is not decreasing"])],
)  # fmt: skip
def test_real_trainings_of_the_sample_specimens(
    changes: dict[str, Any], expected: list[str], tiny: Callable[..., TrainConfig], specimens: Path
) -> None:
    import torch

    from phenoscape_tune.training.loop import train_simclr

    config = tiny(data_dir=str(specimens), max_epochs=16, **changes)
    history: list[dict[str, Any]] = []
    train_simclr(config, history.append, device=torch.device("cpu"))
    # As many steps as a larger folder would have: the few of this one would tell nothing.
    advisor = Advisor(config, 100, config.batch_size)
    lines = [line for n in range(1, len(history) + 1) for line in advisor.look(history[:n])]
    assert [line.split(":")[0] for line in lines] == expected
