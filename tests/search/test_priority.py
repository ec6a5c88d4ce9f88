import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.priority import plan_stages, stage_of
from phenoscape_tune.search.space import load_space

KEYS = (
    *("lr", "batch_size", "temperature", "transforms.cj_strength", "transforms.min_scale", "weight_decay"),
    *("warmup_epochs", "optimizer", "input_size", "transforms.input_size"),
)
DOCUMENTED = ["defaults", "lr", "batch_size", "temperature", "augmentation", "other"]


def test_the_documented_order_of_the_full_space() -> None:
    stages = plan_stages(load_space("full")[0].parameters, "staged", 48)
    assert [(stage.number, stage.name, stage.keys) for stage in stages] == [
        (0, "defaults", ()),
        (1, "lr", ("lr",)),
        (2, "batch_size", ("batch_size",)),
        (3, "temperature", ("temperature",)),
        (4, "augmentation", ("transforms.cj_strength", "transforms.min_scale")),
    ]
    assert [stage.trials for stage in stages] == [1, 12, 12, 12, 11]


@given(st.lists(st.sampled_from(KEYS), min_size=1, unique=True), st.randoms(use_true_random=False), st.integers(7, 90))
def test_the_order_of_the_file_does_not_matter(keys: list[str], random: object, trials: int) -> None:
    shuffled = list(keys)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    stages = plan_stages(keys, "staged", trials)
    assert plan_stages(shuffled, "staged", trials) == stages
    names = [stage.name for stage in stages]
    assert names == [name for name in DOCUMENTED if name in names]
    # Every key in exactly one stage, its own.
    assert sorted(key for stage in stages for key in stage.keys) == sorted(keys)
    assert all(stage_of(key) == stage.name for stage in stages for key in stage.keys)


@given(
    st.lists(st.sampled_from(KEYS), min_size=1, unique=True),
    st.sampled_from(["staged", "joint"]),
    st.integers(7, 500),
)
def test_the_shares_sum_to_the_budget_and_differ_by_one_at_most(keys: list[str], order: str, trials: int) -> None:
    first, *rest = plan_stages(keys, order, trials)
    assert first.trials == 1
    assert first.trials + sum(stage.trials for stage in rest) == trials
    shares = [stage.trials for stage in rest]
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("order", "least"), [("staged", 4), ("joint", 2)])
def test_a_budget_below_one_trial_a_stage_names_the_least(order: str, least: int) -> None:
    keys = ["lr", "temperature", "optimizer"]
    for trials in range(1, least):
        with pytest.raises(
            UserError, match=f"budget.trials: {trials} is below one trial a stage .*; the least is {least}"
        ):
            plan_stages(keys, order, trials)
    assert [stage.trials for stage in plan_stages(keys, order, least)] == [1] * least


def test_the_message_about_the_budget_names_the_stages() -> None:
    with pytest.raises(UserError, match=re.escape("(defaults, lr, temperature)")):
        plan_stages(["temperature", "lr"], "staged", 2)


def test_joint_searches_all_keys_at_once_after_the_defaults() -> None:
    stages = plan_stages(["temperature", "lr", "transforms.cj_prob"], "joint", 20)
    assert [(stage.number, stage.name, stage.keys, stage.trials) for stage in stages] == [
        (0, "defaults", (), 1),
        (1, "joint", ("lr", "temperature", "transforms.cj_prob"), 19),
    ]


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("lr", "lr"),
        ("batch_size", "batch_size"),
        ("temperature", "temperature"),
        ("transforms.cj_strength", "augmentation"),
        ("transforms.gaussian_blur", "augmentation"),
        ("transforms.input_size", "other"),
        ("input_size", "other"),
        ("weight_decay", "other"),
        ("optimizer", "other"),
    ],
)
def test_each_key_belongs_to_the_guides_step(key: str, stage: str) -> None:
    assert stage_of(key) == stage


def test_studies_are_named_by_number_so_that_they_sort() -> None:
    names = [stage.study_name for stage in plan_stages(["lr", "temperature"], "staged", 9)]
    assert names == ["0-defaults", "1-lr", "2-temperature"]
