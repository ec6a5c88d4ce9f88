"""What the readers share: reasons that can be shown, values for no data, and channels turned out of maps."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phenoscape_tune.data.layout import (
    UnreadableImage,
    check_channels,
    check_file,
    check_size,
    copy_channels,
    faults_told,
    held_by,
)


def test_a_reason_is_one_line_that_can_be_shown() -> None:
    fault = UnreadableImage("no data file beside it: a\nb\x1b[31m\udcff\ud83d é µ")
    assert str(fault) == "no data file beside it: a\\nb\\x1b[31m\\udcff\\ud83d é µ"
    assert str(pickle.loads(pickle.dumps(fault))) == str(fault)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (UnreadableImage("as it is"), "as it is"),
        (OSError(5, "Input/output error", "/a/path"), "Input/output error"),
        (MemoryError(), "too large for the memory of this machine"),
        (Image.UnidentifiedImageError("cannot identify image file '/a/path'"), "not an image of a known kind"),
        (ValueError("<Page 3 @8> is\nwrong"), "damaged X: is"),
        (KeyError("x" * 500), "damaged X: '" + "x" * 159),
        (ZeroDivisionError(), "damaged X: ZeroDivisionError"),
        (RecursionError("maximum depth"), "damaged X: maximum depth"),
    ],
)
def test_every_fault_of_a_file_has_a_short_reason(fault: Exception, told: str) -> None:
    with pytest.raises(UnreadableImage) as caught, faults_told("damaged X: "):
        raise fault
    assert str(caught.value) == told


def test_an_interruption_is_no_fault_of_the_file() -> None:
    with pytest.raises(KeyboardInterrupt), faults_told():
        raise KeyboardInterrupt


def test_only_files_of_data_have_a_size(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    assert check_file(tmp_path / "x") == 3
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "absent", Path("/dev/null")):
        with pytest.raises(UnreadableImage):
            check_file(path)


def test_the_largest_image_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    check_size(10, 10)
    with pytest.raises(UnreadableImage, match="11 × 10 pixels; at most 100 pixels are read"):
        check_size(10, 11)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)
    check_size(10**9, 10**9)


def test_channels_that_a_file_has_not_are_told() -> None:
    assert check_channels(None, 3) == [0, 1, 2]
    assert check_channels(np.array([2, 2]), 3) == [2, 2]  # type: ignore[arg-type]
    for asked in ([3], [-1], [0, 99]):
        with pytest.raises(UnreadableImage, match=f"channel {asked[-1]} is asked for, of 3 that are counted from 0"):
            check_channels(asked, 3)


@pytest.mark.parametrize(
    ("value", "dtype", "held"),
    [
        (None, "u2", None),
        (0.0, "u1", 0.0),
        (256.0, "u1", None),
        (-1.0, "u2", None),
        (0.5, "i4", None),
        (-32_768.0, "i2", -32_768.0),
        (float("inf"), "i2", None),
        (float("inf"), "f4", float("inf")),
        (-3.402823466e38, "f4", -3.402823466e38),
        (1e39, "f4", None),
        (70_000.0, "f2", None),
    ],
)
def test_only_what_a_type_holds_can_be_no_data(value: float | None, dtype: str, held: float | None) -> None:
    assert held_by(value, np.dtype(dtype)) == held
    assert held_by(float("nan"), np.dtype("u2")) is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 2, 1)])
def test_channels_are_copied_out_of_any_arrangement(
    order: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phenoscape_tune.data.layout.BLOCK_BYTES", 300)
    pixels = np.random.default_rng(0).integers(0, 99, (11, 7, 5)).astype(">i2")
    stored = np.ascontiguousarray(pixels.transpose(order)).transpose(np.argsort(order))
    out = np.empty((3, 11, 7), "i2")
    copy_channels(stored, [4, 0, 4], out)
    np.testing.assert_array_equal(out, pixels.transpose(2, 0, 1)[[4, 0, 4]])


def test_copying_holds_nothing_beside_the_result(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as file:
        file.truncate(400 * 100 * 200 * 2)
    pixels = np.memmap(tmp_path / "x", "u2", "r", shape=(400, 100, 200))
    out = np.empty((2, 400, 100), "u2")
    tracemalloc.start()
    copy_channels(pixels, [7, 3], out)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
