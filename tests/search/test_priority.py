import math
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.plan import most_trials
from phenoscape_tune.search.priority import LOOKING_AGAIN, Stage, order_stages, plan_stages, share_out, stage_of
from phenoscape_tune.search.space import load_space

KEYS = (
    *("lr", "batch_size", "temperature", "transforms.cj_strength", "transforms.min_scale", "weight_decay"),
    *("eta_min", "optimizer", "input_size", "transforms.input_size"),
)
DOCUMENTED = ["defaults", "lr", "batch_size", "lr_recheck", "temperature", "augmentation", "other", "refine"]


def stages_of(*args: Any, **more: Any) -> list[Stage]:
    return plan_stages(*args, **more)[0]


def test_the_documented_order_of_the_full_space() -> None:
    stages = stages_of(load_space("full")[0].parameters, "staged", 48)
    assert [(stage.number, stage.name, stage.keys) for stage in stages] == [
        (0, "defaults", ()),
        (1, "lr", ("lr",)),
        (2, "batch_size", ("batch_size",)),
        (3, "lr_recheck", ("lr",)),
        (4, "temperature", ("temperature",)),
        (5, "augmentation", ("transforms.cj_strength", "transforms.min_scale")),
    ]
    # A further key is worth half a stage, the second look at lr too.
    assert [stage.trials for stage in stages] == [1, 10, 10, 4, 9, 14]


@given(st.lists(st.sampled_from(KEYS), min_size=1, unique=True), st.randoms(use_true_random=False), st.integers(9, 90))
def test_the_order_of_the_file_does_not_matter(keys: list[str], shuffler: random.Random, trials: int) -> None:
    shuffled = list(keys)
    shuffler.shuffle(shuffled)
    stages = stages_of(keys, "staged", trials)
    assert stages_of(shuffled, "staged", trials) == stages
    names = [stage.name for stage in stages]
    assert names == [name for name in DOCUMENTED if name in names]
    # Every key in its own stage, and only lr in a second one.
    assert sorted(key for stage in stages for key in stage.keys if stage.name != "lr_recheck") == sorted(keys)
    assert all(stage_of(key) == stage.name for stage in stages for key in stage.keys if stage.name != "lr_recheck")


@given(st.randoms(use_true_random=False))
def test_the_full_space_with_its_keys_shuffled_has_the_same_stages(shuffler: random.Random) -> None:
    space = load_space("full")[0]
    items = list(space.parameters.items())
    shuffler.shuffle(items)
    most = most_trials(space.model_copy(update={"parameters": dict(items)}), build_config({}))
    expected = plan_stages(space.parameters, "staged", 48, most=most_trials(space, build_config({})))
    assert plan_stages(dict(items), "staged", 48, most=most) == expected


# Sharing the trials out


WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 10), min_size=1)


@given(WEIGHTS, st.integers(0, 200))
def test_the_shares_sum_to_the_trials_with_at_least_one_each(weights: dict[str, float], spare: int) -> None:
    trials = len(weights) + spare
    counts = share_out(trials, weights, {})
    assert counts.keys() == weights.keys()
    assert sum(counts.values()) == trials
    assert min(counts.values()) >= 1


@given(WEIGHTS, st.integers(0, 200))
def test_no_trial_would_be_better_placed_in_another_stage(weights: dict[str, float], spare: int) -> None:
    """D'Hondt: what a stage got last is worth more there than anywhere else."""
    counts = share_out(len(weights) + spare, weights, {})
    last = min((weights[name] / count for name, count in counts.items() if count > 1), default=math.inf)
    assert last >= max(weights[name] / (counts[name] + 1) for name in weights)


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.integers(1, 12))
def test_shares_are_in_proportion_to_the_weights(weights: dict[str, float], times: int) -> None:
    trials = times * 100 * len(weights)  # many for each
    counts = share_out(trials, weights, {})
    for name, weight in weights.items():
        exact = trials * weight / sum(weights.values())
        assert abs(counts[name] - exact) <= len(weights)


@given(WEIGHTS, st.integers(0, 60))
def test_one_trial_more_takes_none_away(weights: dict[str, float], spare: int) -> None:
    before, after = (share_out(len(weights) + spare + more, weights, {}) for more in (0, 1))
    assert sorted(after[name] - before[name] for name in weights) == [0] * (len(weights) - 1) + [1]


@given(WEIGHTS, st.integers(0, 60), st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9)))
def test_what_a_stage_cannot_use_goes_to_the_others(
    weights: dict[str, float], spare: int, most: dict[str, int]
) -> None:
    trials = len(weights) + spare
    counts = share_out(trials, weights, most)
    assert all(1 <= count <= most.get(name, trials) for name, count in counts.items())
    assert sum(counts.values()) == min(trials, sum(most.get(name, trials) for name in weights))
    free = share_out(trials, weights, {})
    # Nobody who still has room gets less than without the limits.
    assert all(counts[name] >= min(free[name], most.get(name, trials)) for name in weights)


def test_equal_keys_share_equally_and_the_first_gets_what_is_over() -> None:
    stages = stages_of(["lr", "temperature", "weight_decay"], "staged", 12)
    assert [stage.trials for stage in stages] == [1, 4, 4, 3]


def test_a_stage_may_be_given_a_share_of_its_own() -> None:
    keys = ["lr", "temperature"]
    assert [stage.trials for stage in stages_of(keys, "staged", 21, shares={"temperature": 3})] == [1, 5, 15]
    assert [stage.trials for stage in stages_of(keys, "staged", 21, shares={"lr": 0.0001})] == [1, 1, 19]


def test_the_choices_of_a_stage_limit_its_trials_and_the_note_tells_of_the_rest() -> None:
    stages, notes = plan_stages(["lr", "temperature"], "staged", 21, most={"temperature": 4})
    assert ([stage.trials for stage in stages], notes) == ([1, 16, 4], [])
    stages, notes = plan_stages(["lr", "temperature"], "staged", 21, most={"temperature": 4, "lr": 2})
    assert [stage.trials for stage in stages] == [1, 2, 4]
    assert notes == ["14 of 21 trials are not needed: the stages' values are all tried before"]


@pytest.mark.parametrize("extend", [False, True])
def test_a_stage_of_choices_uses_each_value_once(extend: bool) -> None:
    values = {
        "optimizer": Parameter(type="choice", values=["sgd", "adamw"]),
        "batch_size": Parameter(type="choice", values=[16, 32, 64]),
        "temperature": Parameter(type="uniform", low=0.1, high=0.5, step=0.1),
        "lr": Parameter(type="loguniform", low=1e-5, high=1e-1),
    }
    space = load_space("lr")[0].model_copy(update={"parameters": values, "extend": extend})
    # Less the value that the baseline has, where it is one of them; a range that may grow has no limit.
    stepped = {} if extend else {"temperature": 4}
    assert most_trials(space, build_config({})) == {"other": 1, "batch_size": 2, **stepped}
    stepped = {} if extend else {"temperature": 5}
    base = build_config({"batch_size": 48, "temperature": 0.35})
    assert most_trials(space, base) == {"other": 1, "batch_size": 3, **stepped}


# Stages that look again


@pytest.mark.parametrize(
    ("keys", "has"),
    [(["lr", "batch_size"], True), (["lr"], False), (["batch_size"], False), (["lr", "optimizer"], False)],
)
def test_the_learning_rate_is_looked_at_again_after_the_batch_size(keys: list[str], has: bool) -> None:
    names = [stage.name for stage in stages_of(keys, "staged", 20)]
    assert ("lr_recheck" in names) == has
    assert not has or names.index("lr_recheck") == names.index("batch_size") + 1


def test_refine_ends_a_staged_search_with_all_keys() -> None:
    *_, last = stages_of(["temperature", "lr", "batch_size"], "staged", 20, refine=True)
    assert (last.name, last.keys) == ("refine", ("batch_size", "lr", "temperature"))
    # One key, or all at once: there is nothing to refine together.
    assert [name for name, _ in order_stages(["lr"], "staged", refine=True)] == ["lr"]
    assert [name for name, _ in order_stages(["lr", "temperature"], "joint", refine=True)] == ["joint"]


def test_stages_that_look_again_have_weights_of_their_own() -> None:
    stages = {s.name: s.trials for s in stages_of(["lr", "batch_size", "temperature"], "staged", 201, refine=True)}
    for name, share in LOOKING_AGAIN.items():
        assert stages[name] == pytest.approx(share * stages["temperature"], abs=1)


@pytest.mark.parametrize(
    ("trials", "names", "gone"),
    [
        (6, ["lr", "batch_size", "lr_recheck", "temperature", "refine"], []),
        (5, ["lr", "batch_size", "lr_recheck", "temperature"], ["refine"]),
        (4, ["lr", "batch_size", "temperature"], ["refine", "lr_recheck"]),
    ],
)
def test_what_looks_again_gives_way_first_and_the_plan_says_so(trials: int, names: list[str], gone: list[str]) -> None:
    stages, notes = plan_stages(["lr", "batch_size", "temperature"], "staged", trials, refine=True)
    assert [stage.name for stage in stages] == ["defaults", *names]
    assert [stage.number for stage in stages] == list(range(len(stages)))
    assert [stage.trials for stage in stages] == [1] * trials
    assert notes == [f"no stage {name}: a budget of {trials} trials leaves none for it" for name in gone]


# Budgets that are too small


@pytest.mark.parametrize(("order", "least"), [("staged", 4), ("joint", 2)])
def test_a_budget_below_one_trial_a_stage_names_the_least(order: str, least: int) -> None:
    keys = ["lr", "temperature", "optimizer"]
    for trials in range(1, least):
        with pytest.raises(
            UserError, match=f"budget.trials: {trials} is below one trial a stage .*; the least is {least}"
        ):
            plan_stages(keys, order, trials)
    assert [stage.trials for stage in stages_of(keys, order, least)] == [1] * least


def test_the_message_about_the_budget_names_the_stages() -> None:
    with pytest.raises(UserError, match=re.escape("(defaults, lr, temperature)")):
        plan_stages(["temperature", "lr"], "staged", 2)


def test_joint_searches_all_keys_at_once_after_the_defaults() -> None:
    stages = stages_of(["temperature", "lr", "transforms.cj_prob"], "joint", 20)
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
    names = [stage.study_name for stage in stages_of(["lr", "temperature"], "staged", 9)]
    assert names == ["0-defaults", "1-lr", "2-temperature"]
