import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import shipped_folder
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.space import SearchSpace, build_space, load_space

LR = {"type": "loguniform", "low": 1e-5, "high": 1e-1}


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build_space(values, "my.yaml")
    return str(caught.value)


def refused_range(key: str = "lr", **parameter: Any) -> str:
    return refusal({"parameters": {key: parameter}})


def space_of(key: str = "lr", **parameter: Any) -> SearchSpace:
    return build_space({"parameters": {key: parameter or LR}})


# What a file may say


def test_the_contracts_example_loads(tmp_path: Path) -> None:
    path = tmp_path / "lr_temp.yaml"
    path.write_text(
        "parameters:\n"
        "  lr:          {type: loguniform, low: 1.0e-5, high: 1.0e-1}\n"
        "  temperature: {type: uniform, low: 0.05, high: 0.5}\n"
        "order: staged                    # the documented order; `joint` searches all at once\n"
        "objective: {metric: auto}\n"
        "scheduler: {grace_epochs: 3, reduction_factor: 3}\n"
        "budget:    {trials: 24, max_epochs: 30}       # also hours:, gpu_hours:\n"
        "confirm:   {top_k: 3, seeds: 3}               # not counted in trials\n"
    )
    space, found = load_space(str(path))
    assert found == path
    assert space.parameters["lr"] == Parameter(type="loguniform", low=1e-5, high=0.1)
    assert space.parameters["temperature"] == Parameter(type="uniform", low=0.05, high=0.5)
    assert (space.order, space.objective.metric) == ("staged", "auto")
    assert (space.scheduler.grace_epochs, space.scheduler.reduction_factor) == (3, 3)
    assert (space.budget.trials, space.budget.max_epochs) == (24, 30)
    assert space.confirm is not None
    assert (space.confirm.top_k, space.confirm.seeds) == (3, 3)


@pytest.mark.parametrize("path", sorted(shipped_folder("search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_space_that_ships_loads_and_says_the_same_again(path: Path) -> None:
    space, found = load_space(path.stem)
    assert found == path
    assert build_space(space.to_mapping()) == space


@pytest.mark.parametrize("name", ["lr", "lr.yaml", "search_spaces/lr.yaml"])
def test_a_shipped_space_is_found_from_any_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(load_space(name)[0].parameters) == ["lr"]


def test_an_unknown_space_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"lr_tmp\.yaml: no such file.*did you mean 'lr_temp'"):
        load_space("lr_tmp.yaml")


@pytest.mark.parametrize(
    ("key", "parameter"),
    [
        ("lr", {"type": "uniform", "low": 0.001, "high": 0.1, "step": 0.001, "default": 0.002}),
        ("temperature", {"type": "uniform", "low": 0.05, "high": 0.5}),
        ("batch_size", {"type": "int", "low": 16, "high": 128, "step": 16, "default": 32}),
        ("batch_size", {"type": "logint", "low": 8, "high": 512}),
        ("batch_size", {"type": "choice", "values": [16, 32, 64], "default": 32}),
        ("weights", {"type": "choice", "values": [None, "DEFAULT"]}),
        ("optimizer", {"type": "choice", "values": ["sgd", "adamw"]}),
        ("transforms.cj_strength", {"type": "uniform", "low": 0, "high": 1}),
        ("input_size", {"type": "choice", "values": [32, 64]}),
    ],
)
def test_a_range_of_every_type_survives_the_mapping(key: str, parameter: dict[str, Any]) -> None:
    space = build_space({"parameters": {key: parameter}, "confirm": None, "order": "joint"})
    assert build_space(space.to_mapping()) == space
    assert space.confirm is None


def test_an_exhaustive_grid_has_five_points_a_range_and_every_value_of_a_choice() -> None:
    parameters = {
        "lr": LR,
        "batch_size": {"type": "choice", "values": [16, 32, 64, 128, 256, 512]},
        "temperature": {"type": "uniform", "low": 0.1, "high": 0.3, "step": 0.1},
        "projection_dim": {"type": "int", "low": 16, "high": 256},
    }
    assert build_space({"parameters": parameters}).grid_size() == 5 * 6 * 3 * 5
    assert build_space({"parameters": parameters}).grid_size(2) == 2 * 6 * 2 * 2


# What a file must not say


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ({"type": "loguniform", "low": 0.1, "high": 1e-5}, "bounds are reversed: low 0.1 is above high 1e-05; swap"),
        ({"type": "uniform", "low": 0.1, "high": 0.01}, "bounds are reversed"),
        ({"type": "uniform", "low": 0.1, "high": 0.1}, "low and high are both 0.1; set the key to that value"),
        ({"type": "loguniform", "low": 0, "high": 1}, "low 0 has no logarithm; write low > 0"),
        ({"type": "loguniform", "low": -1, "high": 1}, "low -1 has no logarithm; write low > 0"),
        ({"type": "choice", "values": []}, "the choice is empty; write values: [a, b]"),
        ({"type": "choice"}, "the choice is empty"),
        ({"type": "choice", "values": [0.1, 0.1]}, "holds a value twice"),
        ({"type": "choice", "values": [0.1], "low": 0.1}, "a choice has values, not low, high or step"),
        ({"type": "choice", "values": [0.1, 0.2], "default": 0.3}, "default 0.3 is none of the values"),
        ({"type": "uniform", "low": 0.1, "high": 1, "values": [1]}, "'values' goes with type: choice"),
        ({"type": "uniform", "low": 0.1, "high": 1, "default": 2}, "default 2 is not between 0.1 and 1"),
        ({"type": "uniform", "low": 0.1, "high": 1, "default": "x"}, "default 'x' is not between 0.1 and 1"),
        ({"type": "uniform", "low": 0.1, "high": 1, "default": True}, "default True is not between 0.1 and 1"),
        (
            {"type": "uniform", "low": 0.1, "high": 0.5, "step": 0.1, "default": 0.25},
            "default 0.25 is not between 0.1 and 0.5, in steps of 0.1",
        ),
        ({"type": "uniform", "low": 0.1}, "needs low and high"),
        ({"type": "loguniform", "high": 0.1}, "needs low and high"),
        ({"type": "uniform", "low": 0.1, "high": 1, "step": 0}, "step: 0 is not valid"),
        ({"type": "loguniform", "low": 0.1, "high": 1, "step": 0.1}, "a loguniform has no step"),
        ({"type": "uniform", "low": "a", "high": 1}, "parameters.lr.low: 'a' is not valid"),
        ({"type": "uniform", "low": 0.1, "high": math.inf}, "parameters.lr.high: inf is not valid"),
        ({"type": "normal", "low": 0.1, "high": 1}, "'uniform', 'loguniform', 'int', 'logint' or 'choice'"),
        ({"low": 0.1, "high": 1}, "parameters.lr.type: is missing"),
        ({"type": "uniform", "lo": 0.1, "high": 1}, "parameters.lr.lo: unknown key; did you mean 'low'?"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused_with_the_remedy(parameter: dict[str, Any], told: str) -> None:
    message = refused_range(**parameter)
    assert message.startswith("my.yaml: parameters.lr")
    assert told in message


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ({"type": "int", "low": 16.5, "high": 128}, "whole numbers"),
        ({"type": "int", "low": 16, "high": 128, "step": 1.5}, "whole numbers"),
        ({"type": "logint", "low": 16, "high": 127.5}, "whole numbers"),
        ({"type": "logint", "low": 16, "high": 128, "step": 2}, "a logint has no step"),
        ({"type": "logint", "low": 0, "high": 128}, "low 0 has no logarithm"),
        ({"type": "int", "low": 16, "high": 128, "default": 20.5}, "default 20.5 is not between 16 and 128"),
        ({"type": "logint", "low": 16, "high": 128, "default": 20.5}, "default 20.5 is not between 16 and 128"),
    ],
)
def test_a_range_of_whole_numbers_has_whole_bounds(parameter: dict[str, Any], told: str) -> None:
    assert told in refused_range("batch_size", **parameter)


def test_a_key_of_whole_numbers_takes_no_range_of_fractions() -> None:
    # 17.3 images: no trial of it could ever start.
    assert "parameters.batch_size" in refused_range("batch_size", type="uniform", low=16, high=128)
    assert "parameters.batch_size" in refused_range("batch_size", type="loguniform", low=16, high=128)


def test_a_step_wider_than_the_range_is_refused() -> None:
    assert "step" in refused_range(type="uniform", low=0.1, high=0.2, step=5)


@pytest.mark.parametrize(
    ("key", "parameter", "told"),
    [
        ("temperature", {"type": "uniform", "low": 0, "high": 1}, "temperature.low: temperature: 0.0 is not valid"),
        ("batch_size", {"type": "int", "low": 1, "high": 9}, "batch_size.low: batch_size: 1 is not valid"),
        ("transforms.cj_strength", {"type": "uniform", "low": 0, "high": 9}, "cj_strength: 9.0 is not valid"),
        ("transforms.cj_prob", {"type": "choice", "values": [0.5, 2]}, "cj_prob.values[1]: transforms.cj_prob: 2"),
        ("optimizer", {"type": "choice", "values": ["sgd", "adam"]}, "optimizer.values[1]: optimizer: 'adam'"),
        ("transforms.sigmas", {"type": "uniform", "low": 0.1, "high": 2}, "transforms.sigmas"),
    ],
)
def test_values_that_the_configuration_refuses_are_refused_here(key: str, parameter: dict[str, Any], told: str) -> None:
    message = refused_range(key, **parameter)
    assert message.startswith(f"my.yaml: parameters.{key}")
    assert told in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("temprature", "temperature"), ("cj_strength", "transforms.cj_strength"), ("batchsize", "batch_size")],
)
def test_a_key_that_is_no_configuration_key_names_the_nearest(key: str, nearest: str) -> None:
    message = refused_range(key, **LR)
    assert message == f"my.yaml: parameters.{key}: is no configuration key; did you mean '{nearest}'?"


@pytest.mark.parametrize(
    "key",
    [
        *("data_dir", "out_dir", "max_epochs", "seed", "split_seed", "val_fraction", "devices", "T_max", "transforms"),
        "warmup_epochs",  # the search shrinks it to the length of a trial
    ],
)
def test_a_key_that_would_change_what_is_compared_cannot_be_searched(key: str) -> None:
    message = refusal({"parameters": {key: {"type": "int", "low": 1, "high": 5}}})
    assert f"parameters.{key}: cannot be searched; set it in the configuration" in message


def test_a_hint_never_names_a_key_that_cannot_be_searched() -> None:
    assert "max_epochs" not in refused_range("max_epoch", type="int", low=1, high=5)


def test_both_spellings_of_the_input_size_are_one_key() -> None:
    size = {"type": "choice", "values": [32, 64]}
    assert "the same key; keep one" in refusal({"parameters": {"input_size": size, "transforms.input_size": size}})


def test_a_key_that_stands_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(
        "parameters:\n"
        "  lr: {type: uniform, low: 0.1, high: 0.2}\n"
        "  temperature: {type: uniform, low: 0.1, high: 0.2}\n"
        "  lr: {type: uniform, low: 0.3, high: 0.4}\n"
    )
    with pytest.raises(UserError, match=r"twice\.yaml line 4: the key 'lr' stands twice, on lines 2 and 4"):
        load_space(str(path))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "parameters: is missing"),
        ({"parameters": {}}, "parameters: names no key to search"),
        ({"parameters": None}, "parameters: None is not valid"),
        ({"parameters": {"lr": None}}, "parameters.lr: None is not valid"),
        ({"parameters": {"lr": LR}, "oder": "joint"}, "oder: unknown key; did you mean 'order'?"),
        ({"parameters": {"lr": LR}, "order": "random"}, "order: 'random' is not valid"),
        ({"parameters": {"lr": LR}, "budget": {"trial": 3}}, "budget.trial: unknown key; did you mean 'trials'?"),
        ({"parameters": {"lr": LR}, "budget": {"trials": 0}}, "budget.trials: 0 is not valid"),
        ({"parameters": {"lr": LR}, "budget": {"trials": True}}, "budget.trials: true, false, yes and no are no value"),
        ({"parameters": {"lr": {**LR, "low": True}}}, "parameters.lr.low: true, false, yes and no are no value"),
        ({"parameters": {"lr": LR}, "budget": {"hours": -1}}, "budget.hours: -1 is not valid"),
        ({"parameters": {"lr": LR}, "confirm": {"seeds": 0}}, "confirm.seeds: 0 is not valid"),
        ({"parameters": {"lr": LR}, "scheduler": {"reduction_factor": 1}}, "scheduler.reduction_factor: 1"),
        ({"parameters": {"lr": LR}, "scheduler": {"grace_epochs": 0}}, "scheduler.grace_epochs: 0"),
        ({"parameters": {"lr": LR}, "objective": {"metrics": "auto"}}, "did you mean 'metric'?"),
        ({"parameters": {"lr": LR}, "keep": 0}, "keep: 0 is not valid"),
        ({"parameters": {"lr": LR}, "max_failures": -1}, "max_failures: -1 is not valid"),
        ({"parameters": {"lr": LR}, "report_timeout": 0}, "report_timeout: 0 is not valid"),
        ({"parameters": {"lr": LR}, "extend": "perhaps"}, "extend: 'perhaps' is not valid"),
        ({"parameters": {"lr": LR}, "refine": 3}, "refine: 3 is not valid"),
        ({"parameters": {"lr": LR}, "refined": True}, "refined: unknown key; did you mean 'refine'?"),
        ({"parameters": {"lr": LR}, "budget": {"hours": 0}}, "budget.hours: 0 is not valid"),
        (
            {"parameters": {"lr": LR}, "budget": {"gpu_hour": 1}},
            "budget.gpu_hour: unknown key; did you mean 'gpu_hours'?",
        ),
        ({"parameters": {"lr": LR}, "budget": {"shares": {"lr": 0}}}, "budget.shares.lr: 0 is not valid"),
        ({"parameters": {"lr": LR}, "budget": {"shares": {"lr": "much"}}}, "budget.shares.lr: 'much' is not valid"),
    ],
)
def test_a_fault_outside_the_ranges_is_refused(values: dict[str, Any], told: str) -> None:
    message = refusal(values)
    assert message.startswith("my.yaml: ")
    assert told in message


def test_an_unknown_metric_is_refused_with_the_file() -> None:
    assert "'accurracy' is unknown" in refusal({"parameters": {"lr": LR}, "objective": {"metric": "accurracy"}})


@pytest.mark.parametrize("metric", ["val_loss", "train_loss", "nt_xent"])
def test_the_loss_of_training_is_refused_with_the_reason(metric: str) -> None:
    message = refusal({"parameters": {"lr": LR}, "objective": {"metric": metric}})
    assert f"'{metric}' depends on the temperature, the batch size and the augmentation by itself" in message
    assert "write auto" in message


@pytest.mark.parametrize("metric", ["auto", "knn_accuracy", "probe_accuracy", "reference_contrast", "rankme", "lidar"])
def test_each_objective_can_be_asked_for(metric: str) -> None:
    space = build_space({"parameters": {"lr": LR}, "objective": {"metric": metric}})
    assert build_space(space.to_mapping()).objective.metric == metric


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({}, "budget.shares.temprature: is no stage of this search; did you mean 'temperature'? "
             "(its stages: lr, temperature)"),
        ({"order": "joint"}, "(its stages: joint)"),
        ({"refine": True}, "(its stages: lr, temperature, refine)"),
    ],
)  # fmt: skip
def test_a_share_of_a_stage_that_the_search_does_not_have_is_refused(space: dict[str, Any], told: str) -> None:
    parameters = {"lr": LR, "temperature": {"type": "uniform", "low": 0.05, "high": 0.5}}
    assert told in refusal({"parameters": parameters, "budget": {"shares": {"temprature": 2}}, **space})


def test_the_shares_extend_and_refine_survive_the_mapping() -> None:
    values = {
        "parameters": {"lr": LR, "temperature": {"type": "uniform", "low": 0.05, "high": 0.5, "default": 0.2}},
        "budget": {"trials": 9, "hours": 1.5, "gpu_hours": 2, "shares": {"lr": 2, "refine": 0.5}},
        "extend": True,
        "refine": True,
    }
    space = build_space(values)
    assert space.extend and space.refine
    assert space.budget.shares == {"lr": 2, "refine": 0.5}
    assert build_space(space.to_mapping()) == space


def test_several_faults_are_told_in_one_message() -> None:
    message = refusal(
        {
            "parameters": {
                "lr": {"type": "loguniform", "low": 1, "high": 0.1},
                "temprature": LR,
                "max_epochs": {"type": "int", "low": 1, "high": 3},
                "batch_size": {"type": "choice", "values": []},
            },
            "oder": "joint",
            "budget": {"trials": 0},
        }
    )
    lines = message.splitlines()
    assert all(line.startswith("my.yaml: ") for line in lines)
    for told in ("parameters.lr: the bounds", "parameters.temprature: is no", "parameters.max_epochs: cannot"):
        assert told in message
    for told in ("parameters.batch_size: the choice is empty", "oder: unknown key", "budget.trials: 0"):
        assert told in message
    assert len(lines) == 6


def test_values_that_the_configuration_refuses_are_told_together_with_other_faults() -> None:
    message = refusal(
        {
            "parameters": {
                "lr": {"type": "loguniform", "low": 1, "high": 0.1},
                "temperature": {"type": "uniform", "low": 0, "high": 1},
            }
        }
    )
    assert "parameters.lr: the bounds are reversed" in message
    assert "parameters.temperature.low" in message


# Whatever a file may hold


NUMBERS = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([0, 1, -1, 1e-300, 1e308, 5e-324])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
SEARCHED = st.sampled_from(["lr", "batch_size", "temperature", "transforms.cj_strength", "weights", "x", ""])
RANGES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["uniform", "loguniform", "int", "logint", "choice"]) | JUNK,
        **dict.fromkeys(("low", "high", "step", "default"), NUMBERS | JUNK),
        "values": st.lists(JUNK, max_size=4) | JUNK,
    },
)
SPACES = st.fixed_dictionaries(
    {"parameters": st.dictionaries(SEARCHED, RANGES | JUNK, max_size=3) | JUNK},
    optional={
        **dict.fromkeys(("order", "objective", "scheduler", "extend", "refine", "confirm", "unknown"), JUNK),
        "budget": st.dictionaries(st.sampled_from(["trials", "max_epochs", "hours", "shares"]), NUMBERS | JUNK) | JUNK,
    },
)


@settings(max_examples=250, deadline=None)
@given(SPACES | st.dictionaries(st.text(max_size=10), JUNK, max_size=4))
def test_any_mapping_is_a_space_or_a_user_error(values: dict[str, Any]) -> None:
    started = time.monotonic()
    try:
        space = build_space(values, "some.yaml")
    except UserError as error:
        assert str(error).startswith("some.yaml: ")  # noqa: PT017
        space = None
    assert time.monotonic() - started < 5
    if space is not None:
        assert build_space(space.to_mapping(), "again") == space
        for parameter in space.parameters.values():
            assert parameter.grid is None or len(parameter.grid) < 100_000
