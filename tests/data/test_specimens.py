import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.split import split_specimens
from phenoscape_tune.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_link_loops_end_and_each_image_is_found_once(tmp_path: Path) -> None:
    touch(tmp_path, "wren/1.png", "finch/1.png")
    (tmp_path / "wren" / "loop").symlink_to(tmp_path)
    (tmp_path / "aaa").symlink_to(tmp_path / "wren")
    assert find_specimens(tmp_path).names == ("finch/1.png", "wren/1.png")


def test_broken_link_to_an_image_stays_listed(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    assert find_specimens(tmp_path).names == ("1.png", "2.png")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is empty"),
        (["a.txt", "b.txt", "c.csv"], r"holds 3 files, none an image \(\.txt ×2, \.csv ×1\); known: \.jpg"),
        (["birds.zip"], r"Unpack birds\.zip first"),
        (["walk.MP4"], r"Take frames from walk\.MP4 first"),
    ],
)
def test_folder_without_images_is_described(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_specimens(touch(tmp_path, *names))


def test_missing_folder_and_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        find_specimens(tmp_path / "nowhere")
    touch(tmp_path, "birds.zip")
    with pytest.raises(UserError, match=r"is a file, not a folder\. Unpack it first"):
        find_specimens(tmp_path / "birds.zip")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may list every folder")
def test_unlistable_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "wren/1.png", "finch/1.png")
    (tmp_path / "wren").chmod(0)
    try:
        with pytest.raises(UserError, match="wren cannot be listed"):
            find_specimens(tmp_path)
    finally:
        (tmp_path / "wren").chmod(0o755)


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"(ring\d+)_", ("ring1", "ring1", "x.png")),
        (r"ring\d+_[ab]", ("ring1_a", "ring1_b", "x.png")),
        (r"q*", ("ring1_a.png", "ring1_b.png", "x.png")),
    ],
)
def test_group_by_names_specimens(tmp_path: Path, pattern: str, groups: tuple[str, ...]) -> None:
    touch(tmp_path, "ring1_a.png", "ring1_b.png", "x.png")
    assert find_specimens(tmp_path, group_by=pattern).groups == groups


def test_group_by_faults(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match=r"group_by: '\(' is no regular expression"):
        find_specimens(tmp_path, group_by="(")
    table = tmp_path / "labels.csv"
    table.write_text("filename,label,group\n1.png,a,x\n2.png,b,y\n")
    with pytest.raises(UserError, match="both name the specimens"):
        find_specimens(tmp_path, table, group_by=".")


def test_keep_takes_everything_along() -> None:
    all_three = Specimens(
        Path("/x"), ("0.png", "1.png", "2.png"), np.array([0, 1, 2]), ("crow", "finch", "wren"), ("a", "b", "c"), ""
    )
    kept = all_three.keep(np.array([2, 0]))
    assert kept.names == ("2.png", "0.png")
    assert kept.groups == ("c", "a")
    assert kept.labels is not None
    assert kept.labels.tolist() == [2, 0]
    assert kept.classes == ("crow", "finch", "wren")


def test_a_link_to_itself_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "whole.png").touch()
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    assert find_specimens(tmp_path).names == ("a/loop.png", "a/whole.png")


def test_a_file_costs_some_hundred_bytes(tmp_path: Path) -> None:
    count = 5000
    for number in range(count):
        folder = tmp_path / f"species-{number % 50:02d}"
        folder.mkdir(exist_ok=True)
        if number < 50:
            (folder / "specimen-0000.jpg").touch()
        else:
            os.link(folder / "specimen-0000.jpg", folder / f"specimen-{number:04d}.jpg")
    tracemalloc.start()
    try:
        specimens = find_specimens(tmp_path)
        split = split_specimens(specimens, 0.2, 0.1, 0)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(specimens.names) == len(split.train) + len(split.val) + len(split.test) == count
    assert held / count < 200
    assert peak / count < 500
