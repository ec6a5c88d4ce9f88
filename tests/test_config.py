import json
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import (
    TrainConfig,
    advice,
    build_config,
    find_file,
    forget_written,
    get_key,
    known_keys,
    load_config,
    merge,
    parse_overrides,
    save_config,
    set_key,
    shipped_folder,
    vary,
    with_modality,
)
from phenoscape_tune.errors import UserError
from phenoscape_tune.transforms import TransformsConfig
from phenoscape_tune.yaml_file import load_mapping, parse_scalar

GUIDE = (Path(__file__).parent / "training-guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load_text(folder: Path, text: str, *overrides: str) -> TrainConfig:
    return load_config(str(write(folder, text)), parse_overrides(overrides))


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
    ("misspelt", "meant"),
    [
        ("temprature", "temperature"),
        ("lrr", "lr"),
        ("batchsize", "batch_size"),
        ("epochs", "max_epochs"),
        ("t_max", "T_max"),
        ("cj_strength", "transforms.cj_strength"),
        ("transform", "transforms"),
    ],
)
def test_an_unknown_key_names_the_nearest(misspelt: str, meant: str) -> None:
    assert refusal({misspelt: 1}) == f"my.yaml: {misspelt}: unknown key; did you mean '{meant}'?"


def test_an_unknown_nested_key_names_the_nearest() -> None:
    message = refusal({"transforms": {"cj_stength": 1}, "early_stopping": {"patients": 3}})
    assert "my.yaml: transforms.cj_stength: unknown key; did you mean 'transforms.cj_strength'?" in message
    assert "my.yaml: early_stopping.patients: unknown key; did you mean 'early_stopping.patience'?" in message


def test_an_unknown_key_near_to_none_lists_the_known_ones() -> None:
    message = refusal({"qqqqqqqqq": 1})
    assert "qqqqqqqqq: unknown key; known: T_max, accelerator" in message


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


RANGE = "write auto, bit_depth, percentile, or a range in the files' own units such as [0, 10000]"


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        ("8bit", RANGE),
        ([1], RANGE),
        ([0, 1, 2], RANGE),
        ([0, "full"], RANGE),
        ([False, True], RANGE),
        ([0, float("inf")], RANGE),
        (None, RANGE),
        ([10, 0], "the bounds are reversed; write the smaller one first"),
    ],
)
def test_a_range_that_is_none_is_told_once_with_an_example(scaling: Any, told: str) -> None:
    message = refusal({"value_scaling": scaling})
    assert message == f"my.yaml: value_scaling: {scaling!r} is not valid: {told} (default auto)"


def test_a_range_of_two_numbers_is_one() -> None:
    assert build_config({"value_scaling": [0, 10000]}).value_scaling == (0, 10000)


@pytest.mark.parametrize(("key", "modality"), [("channels", "multispectral"), ("bands", "hyperspectral")])
@pytest.mark.parametrize("value", [[True, 0], [False], ["red", True]])
def test_true_and_false_are_no_channels(key: str, modality: str, value: list[Any]) -> None:
    message = refusal({"modality": modality, key: value})
    assert message.startswith(f"my.yaml: {key}: {value!r} is not valid: true and false are no indices; write numbers")
    assert "\n" not in message


@pytest.mark.parametrize("key", ["lr", "max_epochs", "seed", "devices", "temperature"])
def test_yes_is_no_number(key: str) -> None:
    assert f"{key}: True is not valid" in refusal({key: True})


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "lr: abc\ntemperature: 0\nbatchsize: 3\ntransforms:\n  cj_prob: 2\n  blur: 1\nearly_stopping: {patience: 0}\n",
    )
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    told = {line.removeprefix(f"{path}: ").split(":")[0] for line in lines}
    assert told == {
        "lr",
        "temperature",
        "batchsize",
        "transforms.cj_prob",
        "transforms.blur",
        "early_stopping.patience",
    }


def test_faults_between_keys_are_told_together_with_those_of_single_keys() -> None:
    message = refusal({"lr": "abc", "val_fraction": 0.6, "test_fraction": 0.5})
    assert "lr: 'abc'" in message
    assert "leave nothing to train on" in message


def test_faults_of_file_and_command_line_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, "lr: abc\n", "temprature=3")
    assert "my.yaml: lr: 'abc'" in str(caught.value)
    assert "command line: temprature: unknown key; did you mean 'temperature'?" in str(caught.value)


def test_a_missing_configuration_names_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"sampel: no such file.*did you mean 'sample'"):
        load_config("sampel")


@pytest.mark.parametrize("name", ["sample", "sample.yaml", "configs/sample.yaml"])
def test_a_shipped_configuration_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_file(name, "configs") == shipped_folder("configs") / "sample.yaml"


def test_a_file_of_the_users_own_comes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "seed: 7\n", "sample.yaml")
    assert load_config("sample").seed == 7


# Layers


def test_an_override_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    text = "lr: 0.01\ntemperature: 0.2\ntransforms: {cj_strength: 0.3, cj_prob: 0.7}\n"
    config = load_text(tmp_path, text, "lr=1e-4", "transforms.cj_strength=0.8", "weights=DEFAULT")
    assert (config.lr, config.temperature, config.batch_size) == (1e-4, 0.2, 32)
    assert (config.transforms.cj_strength, config.transforms.cj_prob, config.transforms.min_scale) == (0.8, 0.7, 0.08)
    assert config.weights == "DEFAULT"


def test_the_last_of_two_equal_overrides_wins() -> None:
    assert parse_overrides(["lr=1", "lr=2"]) == {"lr": 2}


def test_an_override_can_switch_a_group_on_and_off(tmp_path: Path) -> None:
    text = "early_stopping: {patience: 3}\n"
    changed = load_text(tmp_path, text, "early_stopping.min_delta=0.1").early_stopping
    assert changed is not None
    assert (changed.patience, changed.min_delta) == (3, 0.1)
    assert load_text(tmp_path, text, "early_stopping=null").early_stopping is None


def test_an_override_takes_a_list() -> None:
    assert load_config(None, parse_overrides(["transforms.sigmas=[0.2, 1]"])).transforms.sigmas == (0.2, 1.0)


def test_an_override_may_hold_an_equals_sign() -> None:
    assert parse_overrides(["group_by=(?P<id>a=b)"]) == {"group_by": "(?P<id>a=b)"}


@pytest.mark.parametrize("argument", ["lr", "=3", " =3"])
def test_an_argument_that_is_no_override_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match=r"neither an option nor key=value; for example: lr=0\.001"):
        parse_overrides([argument])


def test_an_override_is_judged_together_with_the_file(tmp_path: Path) -> None:
    config = load_text(tmp_path, "test_fraction: 0.0\n", "val_fraction=0.9")
    assert (config.val_fraction, config.test_fraction) == (0.9, 0.0)


@pytest.mark.parametrize("text", ["input_size: 64", "transforms: {input_size: 64}"])
def test_input_size_stands_in_either_place(text: str, tmp_path: Path) -> None:
    config = load_text(tmp_path, text)
    assert (config.input_size, config.transforms.input_size) == (64, 64)


def test_equal_input_sizes_in_both_places_are_accepted_and_different_ones_refused() -> None:
    assert build_config({"input_size": 64, "transforms": {"input_size": 64}}).input_size == 64
    message = refusal({"input_size": 64, "transforms": {"input_size": 32}})
    assert message == "my.yaml: input_size: 64 and transforms.input_size: 32 differ; write one of them"
    assert "differ" in refusal({"input_size": 224, "transforms": {"input_size": 32}})  # 224 is also the default


@pytest.mark.parametrize("key", ["input_size", "transforms.input_size"])
@pytest.mark.parametrize("text", ["input_size: 64", "transforms: {input_size: 64, cj_prob: 0.1}"])
def test_an_overriding_input_size_wins_over_either_spelling(key: str, text: str, tmp_path: Path) -> None:
    config = load_text(tmp_path, text, f"{key}=96")
    assert (config.input_size, config.transforms.input_size) == (96, 96)
    assert config.transforms.cj_prob == (0.1 if "cj_prob" in text else 0.8)


def test_two_different_input_sizes_on_the_command_line_are_refused() -> None:
    with pytest.raises(UserError, match="command line: input_size: 32 and transforms.input_size: 64 differ"):
        load_config(None, parse_overrides(["input_size=32", "transforms.input_size=64"]))


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


# Mappings and files

CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-8, 10),
        "batch_size": st.integers(2, 4096),
        "max_epochs": st.integers(51, 1000),
        "temperature": st.floats(1e-3, 10),
        "T_max": st.none() | st.integers(51, 500),
        "eta_min": st.none() | st.floats(0, 1),
        "warmup_epochs": st.none() | st.floats(0, 50),
        "weights": st.none() | st.sampled_from(["DEFAULT", "some/file.pt"]),
        "data_dir": st.none() | st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20),
        "out_dir": st.sampled_from(["outputs/a b", "1e5", "08", "2020-01-01", "null", "yes"]),
        "precision": st.sampled_from(["auto", "bf16", 16, 32]),
        "devices": st.just("auto") | st.integers(1, 8),
        "input_size": st.integers(8, 4096),
        "channels": st.none()
        | st.sampled_from(["rgb_only", "uv_only", "full"])
        | st.lists(st.integers(0, 9) | st.sampled_from(["uv", "nir"]), min_size=1, max_size=3, unique=True),
        "early_stopping": st.none() | st.fixed_dictionaries({}, optional={"patience": st.integers(1, 99)}),
        "transforms": st.fixed_dictionaries(
            {},
            optional={
                "cj_strength": st.floats(0, 2.5),
                "sigmas": st.tuples(st.floats(0.01, 1), st.floats(1, 9)).map(list),
            },
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
@example({"out_dir": "1e5"})
@example({"out_dir": "08", "data_dir": "2024"})
def test_a_configuration_survives_mapping_json_and_file(changes: dict[str, Any]) -> None:
    config = build_config(changes)
    assert build_config(config.to_mapping()) == config
    assert build_config(json.loads(json.dumps(config.to_mapping()))) == config
    with tempfile.TemporaryDirectory() as folder:
        save_config(config, Path(folder) / "config.yaml")
        assert load_config(str(Path(folder) / "config.yaml")) == config


def test_a_saved_configuration_takes_overrides(tmp_path: Path) -> None:
    save_config(build_config({"input_size": 64, "lr": 0.01}), tmp_path / "config.yaml")
    config = load_config(str(tmp_path / "config.yaml"), parse_overrides(["input_size=32", "lr=0.02"]))
    assert (config.input_size, config.transforms.input_size, config.lr) == (32, 32, 0.02)


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        TrainConfig().lr = 1.0  # type: ignore[misc]


def test_dotted_keys_reach_into_groups() -> None:
    mapping: dict[str, Any] = {"transforms": None}
    set_key(mapping, "transforms.cj_prob", 0.3)
    set_key(mapping, "lr", 1)
    assert mapping == {"transforms": {"cj_prob": 0.3}, "lr": 1}
    assert get_key(mapping, "transforms.cj_prob") == 0.3
    with pytest.raises(KeyError):
        get_key(mapping, "transforms.none")


def test_merging_leaves_both_layers_as_they_were() -> None:
    lower, upper = (
        {"transforms": {"input_size": 32, "cj_prob": 0.1}},
        {"input_size": 64, "transforms": {"cj_prob": 0.2}},
    )
    assert merge(lower, upper) == {"transforms": {"cj_prob": 0.2}, "input_size": 64}
    assert lower == {"transforms": {"input_size": 32, "cj_prob": 0.1}}
    assert upper == {"input_size": 64, "transforms": {"cj_prob": 0.2}}


@pytest.mark.parametrize("values", [{"max_epochs": 3, "warmup_epochs": 12}, {"T_max": 10, "warmup_epochs": 10}])
def test_a_warm_up_that_leaves_no_cosine_is_refused(values: dict[str, Any]) -> None:
    assert "warmup_epochs" in refusal(values)


def test_text_on_the_command_line_is_taken_as_it_stands() -> None:
    values = parse_overrides(["background=#808080", "data_dir=2024", "weights=null", "out_dir=1e5", "lr=1e-4"])
    assert values == {"background": "#808080", "data_dir": "2024", "weights": None, "out_dir": "1e5", "lr": 1e-4}


# ---- whatever a file may hold ----

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


# What follows from the kind of images

MODALITIES = st.sampled_from(["rgb", "multispectral", "hyperspectral"])
WRITTEN = st.fixed_dictionaries(
    {},
    optional={
        "input_size": st.integers(8, 4096),
        "lr": st.floats(1e-5, 1e-1),
        "transforms": st.fixed_dictionaries(
            {},
            optional={
                "cj_prob": st.floats(0, 1),
                "gain_prob": st.floats(0, 1),
                "gain_strength": st.floats(0, 1),
                "gamma_prob": st.floats(0, 1),
                "shift_prob": st.floats(0, 1),
                "augmentation_strength": st.floats(0, 2),
            },
        ),
    },
)


def test_transforms_that_are_not_written_follow_the_modality() -> None:
    spectral = build_config({"modality": "hyperspectral", "transforms": {"gain_prob": 0.3}}).transforms
    assert (spectral.cj_prob, spectral.random_gray_scale) == (0, 0)
    assert (spectral.gain_prob, spectral.min_scale) == (0.3, 0.08)
    assert spectral.shift_prob > 0
    assert build_config({"modality": "hyperspectral", "bands": "rgb"}).transforms.cj_prob == 0.8
    uv = build_config({"modality": "multispectral", "channels": "uv_only"}).transforms
    assert (uv.cj_prob, uv.gamma_prob) == (0, 0.5)
    assert build_config({"modality": "multispectral", "transforms": {"gamma_prob": 0}}).transforms.gamma_prob == 0
    assert build_config({"modality": "rgb"}).transforms == TrainConfig().transforms


@settings(max_examples=60, deadline=None)
@given(WRITTEN, MODALITIES)
def test_a_modality_that_the_files_tell_is_as_good_as_one_that_was_written(
    written: dict[str, Any], modality: str
) -> None:
    told, guessed = build_config({**written, "modality": modality}), build_config(written)
    assert guessed.transforms == build_config({**written, "modality": "rgb"}).transforms
    assert with_modality(guessed, modality) == told
    assert with_modality(told, modality) == told
    assert with_modality(with_modality(guessed, modality), modality) == told
    # What was written by hand, or read back from a run's config.yaml, stays.
    for key, value in written.get("transforms", {}).items():
        assert getattr(told.transforms, key) == value
    explicit = build_config(told.to_mapping())
    assert explicit == told
    assert with_modality(explicit, modality) == told
    assert build_config(told.given()) == told
    assert with_modality(build_config({**guessed.to_mapping(), "modality": "auto"}), modality).transforms == (
        guessed.transforms
    )


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_what_was_given_makes_an_equal_configuration(changes: dict[str, Any]) -> None:
    config = build_config(changes)
    assert build_config(config.given()) == config
    assert set(config.given()) == set(changes)


def test_what_the_files_hold_wins_over_what_the_configuration_lets_expect() -> None:
    blind = with_modality(TrainConfig(), "multispectral", rgb=False, uv=False)
    assert (blind.transforms.cj_prob, blind.transforms.gamma_prob) == (0, 0)
    assert blind.transforms.gain_prob > 0
    written = build_config({"modality": "multispectral", "transforms": {"cj_prob": 0.4}})
    known = with_modality(written, "multispectral", rgb=False, uv=True)
    assert (known.transforms.cj_prob, known.transforms.random_gray_scale) == (0.4, 0)
    assert known.given() == written.given()
    unordered = with_modality(TrainConfig(), "hyperspectral", ordered=False)
    assert (unordered.transforms.shift_prob, unordered.transforms.cj_prob) == (0, 0)
    assert with_modality(unordered, "hyperspectral").transforms.shift_prob > 0


def test_keys_that_do_not_go_with_the_modality_of_the_files_are_refused() -> None:
    config = build_config({"bands": "every:4"})
    assert with_modality(config, "hyperspectral").bands == "every:4"
    with pytest.raises(UserError, match=r"bands: is for hyperspectral images, and modality is rgb"):
        with_modality(config, "rgb")
    # A modality that was written is the user's word; whether the files fit is told by their reader.
    assert with_modality(build_config({"modality": "rgb"}), "hyperspectral").modality == "rgb"


# ---- what a search tries ----


def test_other_channels_have_the_transforms_that_are_theirs_by_default() -> None:
    base = build_config({"modality": "multispectral", "channels": "full", "transforms": {"gain_prob": 0.31}})
    assert base.transforms.gamma_prob > 0 < base.transforms.cj_prob
    saved = forget_written(build_config(base.to_mapping()), base.unwritten_transforms())
    assert saved == base and "gain_prob" not in base.unwritten_transforms()
    for source in (base, saved):  # as it was written, and as a search's folder keeps it
        rgb, uv = (vary(source, {"channels": chosen}, "a trial") for chosen in ("rgb_only", "uv_only"))
        assert (rgb.transforms.gamma_prob, rgb.transforms.cj_prob) == (0, base.transforms.cj_prob)
        assert (uv.transforms.gamma_prob, uv.transforms.cj_prob) == (base.transforms.gamma_prob, 0)
        assert rgb.transforms.gain_prob == uv.transforms.gain_prob == 0.31
        assert vary(source, {"channels": "full", "lr": 0.01}, "a trial") == base.model_copy(update={"lr": 0.01})


def test_what_was_written_of_the_transforms_is_tried_as_it_is() -> None:
    base = build_config({"modality": "hyperspectral", "transforms": {"shift_prob": 0.9}})
    assert vary(base, {"bands": "rgb"}, "a trial").transforms.shift_prob == 0.9
    assert vary(base, {"lr": 0.5}, "a trial") == build_config({**base.to_mapping(), "lr": 0.5})
    searched = vary(base, {"bands": "rgb", "transforms": {"cj_prob": 0.3}}, "a trial")
    assert "cj_prob" in searched.transforms.model_fields_set
    assert "shift_prob" in searched.transforms.model_fields_set
    assert "gain_prob" not in searched.to_unsettled_mapping()["transforms"]
    with pytest.raises(UserError, match="a trial: lr: 0 is not valid"):
        vary(base, {"lr": 0}, "a trial")
