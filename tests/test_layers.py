from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from config_text import load_text, write
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import (
    find_file,
    get_key,
    load_config,
    merge,
    parse_overrides,
    save_config,
    set_key,
    shipped_folder,
)


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


def test_faults_of_file_and_command_line_are_told_at_once_each_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, "lr: abc\n", "temprature=3")
    assert "my.yaml: lr: 'abc'" in str(caught.value)
    assert "command line: temprature: unknown key; did you mean 'temperature'?" in str(caught.value)


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


def test_a_folder_alone_is_told_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"key=value; for the folder of your images write data_dir={tmp_path}"):
        parse_overrides([str(tmp_path)])


def test_an_override_is_judged_together_with_the_file(tmp_path: Path) -> None:
    config = load_text(tmp_path, "test_fraction: 0.0\n", "val_fraction=0.9")
    assert (config.val_fraction, config.test_fraction) == (0.9, 0.0)


@pytest.mark.parametrize("key", ["input_size", "transforms.input_size"])
@pytest.mark.parametrize("text", ["input_size: 64", "transforms: {input_size: 64, cj_prob: 0.1}"])
def test_an_overriding_input_size_wins_over_either_spelling(key: str, text: str, tmp_path: Path) -> None:
    config = load_text(tmp_path, text, f"{key}=96")
    assert (config.input_size, config.transforms.input_size) == (96, 96)
    assert config.transforms.cj_prob == (0.1 if "cj_prob" in text else 0.8)


def test_two_different_input_sizes_on_the_command_line_are_refused() -> None:
    with pytest.raises(UserError, match="command line: input_size: 32 and transforms.input_size: 64 differ"):
        load_config(None, parse_overrides(["input_size=32", "transforms.input_size=64"]))


@pytest.mark.parametrize("text", ["input_size: 64", "transforms: {input_size: 64}"])
def test_input_size_stands_in_either_place(text: str, tmp_path: Path) -> None:
    config = load_text(tmp_path, text)
    assert (config.input_size, config.transforms.input_size) == (64, 64)


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


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_what_was_given_makes_an_equal_configuration(changes: dict[str, Any]) -> None:
    config = build_config(changes)
    assert build_config(config.given()) == config
    assert set(config.given()) == set(changes)


def test_a_saved_configuration_takes_overrides(tmp_path: Path) -> None:
    save_config(build_config({"input_size": 64, "lr": 0.01}), tmp_path / "config.yaml")
    config = load_config(str(tmp_path / "config.yaml"), parse_overrides(["input_size=32", "lr=0.02"]))
    assert (config.input_size, config.transforms.input_size, config.lr) == (32, 32, 0.02)


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


def test_text_on_the_command_line_is_taken_as_it_stands() -> None:
    values = parse_overrides(["background=#808080", "data_dir=2024", "weights=null", "out_dir=1e5", "lr=1e-4"])
    assert values == {"background": "#808080", "data_dir": "2024", "weights": None, "out_dir": "1e5", "lr": 1e-4}
