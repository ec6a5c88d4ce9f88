import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phenoscape_tune.errors import UserError
from phenoscape_tune.yaml_file import LARGEST_FILE_BYTES, dump_mapping, load_mapping, parse_scalar


def load_text(text: str | bytes) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return load_mapping(path)


def refusal(text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        load_text(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("-1E-3", -1e-3),
        ("1.0e-5", 1e-5),
        ("2.5E+3", 2500.0),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("1.", 1.0),
        ("+0.25", 0.25),
        ("1_0.5", 10.5),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("+.inf", math.inf),
        (".Inf", math.inf),
        ("-.INF", -math.inf),
        ("1e400", math.inf),
    ],
)
def test_decimal_and_scientific_notation_are_floats(text: str, number: float) -> None:
    value = load_text(f"a: {text}")["a"]
    assert type(value) is float
    assert value == number
    assert parse_scalar(text) == number


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_not_a_number_in_every_spelling(text: str) -> None:
    assert math.isnan(load_text(f"a: {text}")["a"])


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("-7", -7), ("1_000", 1000), ("0", 0), ("0x1F", 31)])
def test_whole_numbers_stay_integers(text: str, number: int) -> None:
    value = load_text(f"a: {text}")["a"]
    assert type(value) is int
    assert value == number


@pytest.mark.parametrize("text", ["1e", "e5", ".e5", "+", ".", "1.5.2", "1e5x", "resnet50", "5e-", "_1"])
def test_what_only_looks_like_a_number_stays_text(text: str) -> None:
    assert parse_scalar(text) == text
    assert load_text(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("no", False), ("On", True), ("null", None), ("~", None), ("", None), ("'yes'", "yes")],
)
def test_booleans_and_null(text: str, value: Any) -> None:
    assert load_text(f"a: {text}") == {"a": value}


def test_a_quoted_number_stays_text() -> None:
    assert load_text("a: '1e-4'\nb: \"12\"") == {"a": "1e-4", "b": "12"}


@pytest.mark.parametrize("text", ["2020-13-45", "2020-99-99", "2020-01-01 99:00:00"])
def test_an_impossible_date_is_a_fault_of_the_file(text: str) -> None:
    assert "some.yaml" in refusal(f"a: {text}")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("lr: 1\ntemperature: 2\nlr: 3\n", "lr", "1 and 3"),
        ("a: 1\n'a': 2\n", "a", "1 and 2"),
        ("transforms:\n  cj_prob: 1\n  min_scale: 1\n  cj_prob: 2\n", "cj_prob", "2 and 4"),
        ("a:\n- b: {c: 1, c: 2}\n", "c", "2 and 2"),
    ],
)
def test_a_repeated_key_is_refused_with_its_lines(text: str, key: str, lines: str) -> None:
    message = refusal(text)
    assert f"'{key}' stands twice, on lines {lines}" in message
    assert f"some.yaml line {lines.split()[-1]}" in message


def test_the_same_key_in_two_mappings_is_no_repetition() -> None:
    assert load_text("a: {x: 1}\nb: {x: 2}\nx: 3") == {"a": {"x": 1}, "b": {"x": 2}, "x": 3}


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x", "a: [&x [1], *x, *x]", "*x : 1", "a: &x {b: 1}\nc:\n  <<: *x"])
def test_aliases_are_refused(text: str) -> None:
    assert "aliases are not accepted" in refusal(text)


def test_nested_aliases_do_not_blow_up() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    started = time.monotonic()
    refusal(bomb)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [{path}]", "!!python/object/new:os.mkdir [{path}]", "!!python/name:os.system"],
)
def test_python_tags_are_refused_and_not_executed(tag: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    assert "line 1" in refusal(f"a: {tag.format(path=made)}")
    parse_scalar(tag.format(path=made))
    assert not made.exists()


@pytest.mark.parametrize(
    "text",
    ['!!int ""', "!!int x", "!!bool maybe", "!!timestamp x", "!!float x", "!!binary x", "!!map [a]", '"\\UFFFFFFFF"'],
)
def test_a_tag_that_does_not_fit_is_a_fault_of_the_file(text: str) -> None:
    assert "some.yaml" in refusal(f"a: {text}")
    parse_scalar(text)  # a value on the command line is then text, and the schema's to refuse


def test_a_missing_file_and_a_folder_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(UserError, match="no such file"):
            load_mapping(path)


def test_too_large_a_file_is_not_read() -> None:
    assert "is it the right file" in refusal("#" * (LARGEST_FILE_BYTES + 1))
    assert load_text("#" * LARGEST_FILE_BYTES) == {}


@pytest.mark.parametrize("content", [b"a: \xe9", b"\xff\xfe", "a: 1".encode("utf-16"), b"\x89PNG\r\n\x1a\n"])
def test_another_encoding_or_a_binary_file_is_refused(content: bytes) -> None:
    assert "not UTF-8" in refusal(content)


def test_utf8_with_byte_order_mark_is_read() -> None:
    assert load_text("\ufeffdata_dir: Vögel") == {"data_dir": "Vögel"}


@pytest.mark.parametrize("text", ["[" * 50_000, "a: " + "[" * 5_000, "{a: " * 5_000, "- " * 5_000, "a: " + "[" * 990])
def test_deep_nesting_is_refused(text: str) -> None:
    assert "some.yaml" in refusal(text)
    parse_scalar(text)


@pytest.mark.parametrize("text", ["- lr", "lr", "3", "[1, 2]", "true"])
def test_a_file_without_key_value_lines_is_refused(text: str) -> None:
    assert "key: value" in refusal(text)


@pytest.mark.parametrize("text", ["1: a", "true: a", "~: a", "[a]: b", "? {a: 1}\n: b"])
def test_a_key_that_is_no_name_is_refused(text: str) -> None:
    assert "some.yaml" in refusal(text)


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "---\n", "null\n", "{}"])
def test_an_empty_file_is_an_empty_mapping(text: str) -> None:
    assert load_text(text) == {}


def test_a_syntax_fault_names_file_and_line() -> None:
    assert "some.yaml line 3" in refusal("lr: 1\nseed: 2\n  temperature: 3\n")
    assert "some.yaml line 3" in refusal("a: 1\nb: [1, 2\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr: {low: 1, high: 2\ntemperature: {low: 1}\n", "is the { of line 1 closed by }"),
        ("a: 1\nb: [1, 2\n", "is the [ of line 2 closed by ]"),
        ("lr: 1\nbatch_size 32\nseed: 1\n", "line 2 is no `key: value`"),
        ("lr: 1\n\tseed: 2\n", "indent by spaces, not by tabs"),
        ("transforms:\n    hf_prob: 1\n  cj_prob: 1\n", "are all keys of one level indented by as many spaces?"),
        ("labels: 'birds.csv\nlr: 1\n", "is the quote of line 1 closed?"),
    ],
)
def test_the_commonest_slips_are_told_with_what_to_write(text: str, told: str) -> None:
    assert told in refusal(text)


def test_lists_stand_on_one_line_and_keys_in_their_order() -> None:
    assert dump_mapping({"z": [1, 2.5], "a": {"y": (0.1, 2.0)}}) == "z: [1, 2.5]\na:\n  y: [0.1, 2.0]\n"


def test_a_list_that_stands_twice_is_written_twice() -> None:
    shared = [1, 2]
    assert load_text(dump_mapping({"a": shared, "b": shared, "c": {"d": shared}})) == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": [1, 2]},
    }


# PyYAML folds the rarer line breaks into spaces; no key holds any.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x85\u2028\u2029"), max_size=12)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXTS | st.just("1e-4")
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,8}", fullmatch=True)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5))
@example({"a": "1e-4"})
@example({"a": "08"})
@example({"a": "1e5", "b": ["-1E-3", ".5"]})
@example({"a": "\x00 \ufeff \U0001f426", "b": "x" * 300 + " y: #"})
@example({"yes": 1, "null": 2, "on": "off"})
def test_what_is_dumped_is_loaded_again(mapping: dict[str, Any]) -> None:
    assert load_text(dump_mapping(mapping)) == mapping


PIECES = st.sampled_from(
    [
        *("a", "b:", ": ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&x ", "*x", "'", '"', "<<: ", "? ", "|", ">"),
        *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!null ", "!!map ", "!!seq ", "!!set "),
        *("!!omap ", "!!pairs ", "!!python/name:os ", "%YAML", "---", "...", "#", "1e-4", "0x", "1:2", "2020-01-01"),
        *("~", "=", "\t", "\\x", "\\U"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.lists(PIECES, max_size=14).map("".join) | st.binary(max_size=30))
def test_no_text_raises_anything_but_a_user_error(text: str | bytes) -> None:
    try:
        content = load_text(text)
    except UserError:
        return
    assert all(isinstance(key, str) for key in content)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=30) | st.lists(PIECES, max_size=8).map("".join))
def test_any_value_of_the_command_line_is_read_as_something(text: str) -> None:
    parse_scalar(text)
