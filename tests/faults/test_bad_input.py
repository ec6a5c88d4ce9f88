"""Rows 20, 21 and 23, through the commands as a user runs them: told before training, nothing written, no traceback."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from phenoscape_tune.cli import check_data, train, tune

ROOT = Path(__file__).parents[2]
SPACE = "parameters: {lr: {type: loguniform, low: 1.0e-4, high: 1.0e-2}}\nbudget: {trials: 2, max_epochs: 3}\n"
TINY = ["backbone=test_resnet.r160_in1k", "input_size=32", "batch_size=8", "accelerator=cpu", "num_workers=1"]


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it has that many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10**5)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty sound images of no class."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def refused(capsys: pytest.CaptureFixture[str], command: object, *arguments: object) -> str:
    """The message of a command that refuses its input: exit code 2, and no traceback."""
    assert command([str(argument) for argument in arguments]) == 2  # type: ignore[operator]
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    return told.err


# ---- row 20: corrupt, empty, truncated, huge, wrong-channel images ----


def make_bad(folder: Path) -> dict[str, str]:
    """One file of each bad kind in a folder; the reason that is told of it, by name."""
    whole = (folder / "00.png").read_bytes()
    (folder / "bad_empty.png").write_bytes(b"")
    (folder / "bad_text.jpg").write_text("no image")
    (folder / "bad_half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bad_bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "bad_loop.png").symlink_to("bad_loop.png")
    os.mkfifo(folder.parent / "pipe")
    (folder / "bad_pipe.png").symlink_to(folder.parent / "pipe")
    return {
        "bad_empty.png": "empty file (0 bytes)",
        "bad_text.jpg": "not an image",
        "bad_half.png": "",
        "bad_bomb.png": "too large: more than 89,478,485 pixels",
        "bad_loop.png": "",
        "bad_pipe.png": "not a file of data",
    }


def test_an_image_of_other_channels_is_refused_by_name_whatever_the_share(
    data: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite(data / "bad_channels.tif", np.zeros((7, 8, 8), np.uint8), photometric="minisblack", planarconfig=2)
    message = refused(
        capsys, tune.main, "--space", space, "--out", tmp_path / "x", f"data_dir={data}", "max_unreadable=0.5", *TINY
    )
    assert "bad_channels.tif: TIFF of 7 channels" in message and "modality=multispectral" in message
    assert not (tmp_path / "x").exists()


def test_bad_images_above_the_share_are_refused_by_name(
    data: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make_bad(data)
    begun = time.monotonic()
    message = refused(
        capsys, tune.main, "--space", space, "--out", tmp_path / "x", f"data_dir={data}", "max_unreadable=0.1", *TINY
    )
    assert f"{len(bad)} of {40 + len(bad)} images" in message and "raise max_unreadable" in message
    for name, reason in bad.items():
        assert f"{name}: " in message and reason in message
    assert time.monotonic() - begun < 60
    assert not (tmp_path / "x").exists()


def test_bad_images_are_listed_by_the_examination(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make_bad(data)
    assert check_data.main([str(data), "--out", str(tmp_path / "check"), "input_size=32", "batch_size=8"]) == 0
    capsys.readouterr()
    told = (tmp_path / "check" / "check.json").read_text()
    for name in bad:
        assert name in told


@pytest.mark.slow
def test_bad_images_below_the_share_are_left_out_with_their_count(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make_bad(data)
    arguments = [f"data_dir={data}", f"out_dir={tmp_path / 'run'}", "max_unreadable=0.5", "max_epochs=1", *TINY]
    assert train.main(arguments) == 0
    told = capsys.readouterr()
    assert f"{len(bad)} of {40 + len(bad)} images" in told.out + told.err and "are left out" in told.out + told.err
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


# ---- tricks with paths ----


@pytest.mark.slow
def test_strange_names_and_links_train_and_nothing_outside_is_touched(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (data / "00.png").read_bytes()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked.png").write_bytes(whole)
    for name in (b"new\nline.png", b"\xff\xfe.png", b"a..b.png", b"-rf.png", b"\x1b[31mred.png", b"$(touch x).png"):
        (data / os.fsdecode(name)).write_bytes(whole)
    (data / "loop").symlink_to(data)
    (data / "out").symlink_to(outside)
    (data / "bad\nname.png").write_bytes(b"no image")
    before = {path: path.stat().st_mtime_ns for path in (data, outside, tmp_path)}
    arguments = [f"data_dir={data}", f"out_dir={tmp_path / 'o' / 'run'}", "max_unreadable=0.5", "max_epochs=1", *TINY]
    assert train.main(arguments) == 0
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err and "Logging error" not in told.out + told.err
    # Each image once: 40 of the fixture, 6 strange, 1 linked, 1 that cannot be read.
    assert "1 of 48 images" in told.out + told.err
    assert "bad\nname" not in told.out + told.err and "\x1b[31m" not in told.out + told.err
    for path in (data, outside):
        assert path.stat().st_mtime_ns == before[path]
    assert not (Path.cwd() / "x").exists()


def test_labels_that_point_out_of_the_folder_are_rows_of_no_image(
    data: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret.png").write_bytes((data / "00.png").read_bytes())
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,label\n../secret.png,a\n/etc/passwd,b\n..\\secret.png,c\n")
    message = refused(
        capsys, tune.main, "--space", space, "--out", tmp_path / "x", f"data_dir={data}", f"labels={labels}", *TINY
    )
    assert "labels" in message and "../secret.png" in message
    assert not (tmp_path / "x").exists()


# ---- row 21: too few images, one class, an empty folder ----


@pytest.mark.parametrize("command", [tune.main, train.main])
@pytest.mark.parametrize(
    ("keep", "arguments", "told"),
    [
        (0, (), ["is empty"]),
        (1, (), ["1 image"]),
        (40, ("batch_size=64",), ["batch_size: 64", "training part", "(28 "]),
    ],
)
def test_too_few_images_name_the_numbers(
    command: object, keep: int, arguments: tuple[str, ...], told: list[str], data: Path, space: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for path in sorted(data.iterdir())[keep:]:
        path.unlink()
    where = ["--space", space, "--out", tmp_path / "x"] if command is tune.main else [f"out_dir={tmp_path / 'x'}"]
    message = refused(capsys, command, *where, f"data_dir={data}", *TINY, *arguments)
    for words in told:
        assert words in message
    assert not (tmp_path / "x").exists()


def test_one_class_only_is_refused_where_labels_are_asked_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,label\n" + "".join(f"{i:02d}.png,robin\n" for i in range(40)))
    path = tmp_path / "space.yaml"
    path.write_text(SPACE + "objective: {metric: knn_accuracy}\n")
    message = refused(
        capsys, tune.main, "--space", path, "--out", tmp_path / "x", f"data_dir={data}", f"labels={labels}", *TINY
    )
    assert "robin" in message and "class" in message


# ---- row 23: YAML that means harm ----

HARMFUL = {
    "tag": ("lr: !!python/object/apply:os.system ['touch {made}']\n", "line 1"),
    "new": ("lr: !!python/object/new:os.mkdir ['{made}']\n", "line 1"),
    "loop": ("lr: &a [*a]\n", "anchors and aliases are not accepted"),
    "laughs": ("a: &a [x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(20)), "anchors and aliases"),
    "merge": ("a: &a {{lr: 1}}\nb:\n  <<: *a\n", "anchors and aliases"),
    "twice": ("lr: 1e-3\nseed: 1\nlr: 1e-4\n", "'lr' stands twice, on lines 1 and 3"),
    "type": ("lr: [1, 2]\nbatch_size: many\nmax_epochs: {{a: b}}\n", "batch_size"),
    "huge": ("#" + "x" * 10_000_000, "10,000,001 bytes are too many"),
    "deep": ("lr: " + "[" * 5000, "cannot be read"),
    "binary": ("\x00\x01", ""),
}


@pytest.mark.parametrize("kind", HARMFUL)
@pytest.mark.parametrize("role", ["configuration", "space", "search"])
def test_harmful_yaml_is_one_message_and_runs_nothing(
    kind: str, role: str, tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, told = HARMFUL[kind]
    made = tmp_path / "made"
    path = tmp_path / "harm.yaml"
    path.write_text(text.replace("{made}", str(made)).replace("{{", "{").replace("}}", "}"))
    begun = time.monotonic()
    if role == "configuration":
        message = refused(capsys, train.main, "--config", path)
    elif role == "space":
        message = refused(capsys, tune.main, "--space", path, "--out", tmp_path / "x")
    else:
        # The file that a resume trusts.
        (tmp_path / "x").mkdir()
        path = path.rename(tmp_path / "x" / "search.yaml")
        message = refused(capsys, tune.main, "--resume", "--out", tmp_path / "x")
    assert str(path) in message
    assert kind == "type" or told in message
    assert time.monotonic() - begun < 10
    assert not made.exists()
