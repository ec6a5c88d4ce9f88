import re
from pathlib import Path
from typing import Any

import pytest
from config_text import write
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig, advice, build_config, known_keys
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import (
    load_config,
    merge,
    set_key,
    shipped_folder,
)
from phenoscape_tune.transforms import TransformsConfig
from phenoscape_tune.yaml_file import load_mapping, parse_scalar

GUIDE = (Path(__file__).parent / "training-guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build_config(values, "my.yaml")
    return str(caught.value)


def assert_holds(config: TrainConfig, written: dict[str, Any]) -> None:
    """Every value of the file stands in the configuration."""
    for key, value in written.items():
        held = getattr(config, key)
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                found = getattr(held, inner)
                assert (list(found) if isinstance(found, tuple) else found) == inner_value, f"{key}.{inner}"
        else:
            assert held == value, key


# The training guide


def test_the_guide_has_the_blocks_that_these_tests_read() -> None:
    assert len(BLOCKS) == 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_of_the_guide_loads_as_it_stands(number: int, tmp_path: Path) -> None:
    path = write(tmp_path, BLOCKS[number])
    written = load_mapping(path)
    assert written
    assert_holds(load_config(str(path)), written)


def test_all_blocks_of_the_guide_merged_load(tmp_path: Path) -> None:
    merged: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        merged = merge(merged, load_mapping(write(tmp_path, block, f"{number}.yaml")))
    config = build_config(merged)
    assert_holds(config, merged)
    assert (config.lr, config.devices, config.precision, config.num_workers) == (0.001, 2, 16, 8)


ROWS = re.findall(
    r"^\| `(\w+)` \| `([^`]+)` \| (?:`([^`]+)` to `([^`]+)`|-) \| [^|]+ \|$",
    GUIDE.split("### Training Hyperparameters")[1].split("###")[0],
    re.MULTILINE,
)


def test_the_defaults_and_ranges_of_the_guides_table_are_the_schemas() -> None:
    config = TrainConfig()
    assert [row[0] for row in ROWS] == ["lr", "batch_size", "max_epochs", "temperature", "T_max"]
    for key, default, low, high in ROWS:
        if key == "T_max":
            assert default == "max_epochs"
            assert config.schedule_epochs == config.max_epochs
            continue
        assert getattr(config, key) == parse_scalar(default), key
        extra = known_keys()[key].json_schema_extra
        assert extra["advice"] == [parse_scalar(low), parse_scalar(high)], key


@pytest.mark.parametrize("heading", ["### Data Augmentation", "### Learning Rate Scheduling", "### Early Stopping"])
def test_the_values_of_the_guides_other_sections_are_the_defaults(heading: str, tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", GUIDE.split(heading)[1], re.DOTALL)
    assert block is not None
    written = load_mapping(write(tmp_path, block[1]))
    assert_holds(TrainConfig(), {k: v for k, v in written.items() if k in ("transforms", "lr_scheduler")})
    # Early stopping is off by default; switched on, it is the guide's.
    assert_holds(build_config({"early_stopping": {}}), {k: v for k, v in written.items() if k == "early_stopping"})


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "resnet101", "vit_base_patch16_224"])
@pytest.mark.parametrize("size", [224, 256, 384])
def test_the_guides_backbones_and_sizes_are_accepted(backbone: str, size: int) -> None:
    config = build_config({"backbone": backbone, "input_size": size, "weights": "DEFAULT"})
    assert (config.backbone, config.input_size, config.weights) == (backbone, size, "DEFAULT")


def test_defaults_that_the_guide_does_not_give_are_the_contracts() -> None:
    config = TrainConfig()
    assert (config.weights, config.accelerator, config.precision) == (None, "auto", "auto")
    assert (config.early_stopping, config.deterministic, config.seed) == (None, False, 42)
    assert config.micro_batch_size == "auto"
    assert config.stem == "auto"


def test_transforms_alone_have_the_guides_values() -> None:
    transforms = TransformsConfig()
    assert (transforms.cj_prob, transforms.cj_strength, transforms.min_scale) == (0.8, 0.5, 0.08)
    assert (transforms.random_gray_scale, transforms.gaussian_blur, transforms.kernel_size) == (0.2, 0.5, 0.1)
    assert transforms.sigmas == (0.1, 2.0)


def test_every_key_says_what_it_is_for() -> None:
    for key, field in known_keys().items():
        assert field.description and field.description.endswith("."), key


@pytest.mark.parametrize("path", sorted(shipped_folder("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_that_ships_loads(path: Path) -> None:
    config = load_config(str(path))
    assert build_config(config.to_mapping()) == config


# Faults


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"lr": "abc"}, "lr: 'abc' is not valid"),
        ({"lr": 0}, "lr: 0 is not valid: input should be greater than 0 (default 0.001, usually 1e-05 to 0.1)"),
        ({"temperature": 0}, "temperature: 0 is not valid"),
        ({"temperature": -0.1}, "temperature: -0.1 is not valid"),
        ({"batch_size": 32.5}, "batch_size: 32.5 is not valid"),
        ({"batch_size": 1}, "batch_size: 1 is not valid"),
        ({"seed": -1}, "seed: -1 is not valid"),
        ({"precision": "fp16"}, "'auto', 'bf16', 16 or 32"),
        ({"devices": 0}, "devices: 0 is not valid"),
        ({"T_max": 0}, "T_max: 0 is not valid"),
        ({"warmup_epochs": -1}, "warmup_epochs: -1 is not valid"),
        ({"background": "blurple"}, "write a colour such as grey"),
        ({"transforms": {"sigmas": [2, 1]}}, "transforms.sigmas: [2, 1] is not valid: the bounds are reversed"),
        ({"transforms": {"cj_prob": 1.1}}, "transforms.cj_prob: 1.1 is not valid"),
        ({"transforms": 3}, "transforms: 3 is not valid"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience: 0 is not valid"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
        ({"resize": "stretch"}, "'pad', 'crop' or 'squash'"),
    ],
)
def test_a_value_without_meaning_is_refused(values: dict[str, Any], told: str) -> None:
    message = refusal(values)
    assert message.startswith("my.yaml: ")
    assert told in message


@pytest.mark.parametrize(
    "key", ["lr", "temperature", "weight_decay", "eta_min", "val_fraction", "transforms.min_scale"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_and_infinity_are_refused(key: str, value: float) -> None:
    values: dict[str, Any] = {}
    set_key(values, key, value)
    assert f"{key}: {value} is not valid" in refusal(values)


@pytest.mark.parametrize("key", ["lr", "max_epochs", "seed", "devices", "temperature"])
def test_yes_is_no_number(key: str) -> None:
    assert f"{key}: True is not valid" in refusal({key: True})


def test_faults_between_keys_are_told_together_with_those_of_single_keys() -> None:
    message = refusal({"lr": "abc", "val_fraction": 0.6, "test_fraction": 0.5})
    assert "lr: 'abc'" in message
    assert "leave nothing to train on" in message


def test_equal_input_sizes_in_both_places_are_accepted_and_different_ones_refused() -> None:
    assert build_config({"input_size": 64, "transforms": {"input_size": 64}}).input_size == 64
    message = refusal({"input_size": 64, "transforms": {"input_size": 32}})
    assert message == "my.yaml: input_size: 64 and transforms.input_size: 32 differ; write one of them"
    assert "differ" in refusal({"input_size": 224, "transforms": {"input_size": 32}})  # 224 is also the default


# Values that follow from others


@pytest.mark.parametrize(
    ("values", "floor"),
    [
        ({}, 1e-4),
        ({"lr": 0.1}, 1e-4),
        ({"lr": 5e-4}, 5e-5),
        ({"lr": 1e-5}, 1e-6),
        ({"lr": 0.01, "eta_min": 0.002}, 0.002),
        ({"lr": 0.01, "eta_min": 0}, 0.0),
        ({"lr": 1e-5, "eta_min": 1e-4}, 1e-6),
        ({"lr": 1e-4, "eta_min": 1e-4}, 1e-5),
    ],
)
def test_the_floor_of_the_learning_rate(values: dict[str, float], floor: float) -> None:
    assert build_config(values).resolved_eta_min == pytest.approx(floor)


def test_the_period_of_the_cosine_is_the_whole_run_unless_given() -> None:
    assert build_config({"max_epochs": 30}).schedule_epochs == 30
    assert build_config({"max_epochs": 30, "T_max": 50}).schedule_epochs == 50


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ({}, 10),
        ({"max_epochs": 500}, 10),
        ({"max_epochs": 30}, 3),
        ({"max_epochs": 5}, 0.5),
        ({"max_epochs": 30, "warmup_epochs": 0}, 0),
        ({"max_epochs": 30, "warmup_epochs": 12}, 12),
        ({"max_epochs": 100, "T_max": 20}, 2),
    ],
)
def test_the_length_of_the_warm_up(values: dict[str, float], epochs: float) -> None:
    assert build_config(values).resolved_warmup_epochs == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("key", "value", "range_told"),
    [
        ("lr", 0.5, "1e-05 to 0.1"),
        ("lr", 1e-6, "1e-05 to 0.1"),
        ("batch_size", 4, "8 to 512"),
        ("max_epochs", 3, "50 to 500"),
        ("temperature", 1.0, "0.05 to 0.5"),
        ("transforms.cj_strength", 1.5, "0 to 1"),
    ],
)
def test_outside_the_guides_range_is_a_warning_not_an_error(key: str, value: float, range_told: str) -> None:
    values: dict[str, Any] = {}
    set_key(values, key, value)
    lines = advice(build_config(values))
    assert lines == [f"{key}: {value:g} is outside the guide's range {range_told}"]


def test_the_defaults_and_the_ends_of_the_guides_ranges_need_no_advice() -> None:
    assert advice(TrainConfig()) == []
    assert advice(build_config({"lr": 1e-5, "batch_size": 512, "temperature": 0.5, "max_epochs": 50})) == []


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        TrainConfig().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("values", [{"max_epochs": 3, "warmup_epochs": 12}, {"T_max": 10, "warmup_epochs": 10}])
def test_a_warm_up_that_leaves_no_cosine_is_refused(values: dict[str, Any]) -> None:
    assert "warmup_epochs" in refusal(values)


# Whatever a file may hold

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "DEFAULT", "../../etc", "\0", "1e-4", "resnet18", "a" * 5000]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted({part for key in known_keys() for part in (key, key.split(".")[0])})) | st.text(
    max_size=6
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(KEYS, JUNK | st.dictionaries(st.sampled_from(["cj_strength", "monitor", "x"]), JUNK), max_size=6)
)
def test_any_mapping_is_a_configuration_or_a_user_error(values: dict[str, Any]) -> None:
    try:
        config = build_config(values, "some.yaml")
    except UserError as error:
        assert str(error).startswith("some.yaml: ")  # noqa: PT017
        return
    assert build_config(config.to_mapping()) == config


@pytest.mark.parametrize("key", ["data_dir", "out_dir", "labels", "cache_dir", "weights"])
def test_a_path_may_be_a_path_and_is_kept_as_text(key: str) -> None:
    config = build_config({key: Path("some") / "where"})
    assert getattr(config, key) == "some/where"
    assert config == build_config({key: "some/where"})
    assert config.to_mapping()[key] == "some/where" == config.given()[key]


def test_the_url_of_a_storage_is_no_path() -> None:
    assert "storage: " in refusal({"storage": Path("s3://bucket/x")})
