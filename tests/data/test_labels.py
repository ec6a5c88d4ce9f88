from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from phenoscape_tune.data.labels import doubt_of_classes
from phenoscape_tune.data.specimens import find_specimens
from phenoscape_tune.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def write_csv(root: Path, text: str, encoding: str = "utf-8") -> Path:
    path = root / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


def write_rows(root: Path, labels: dict[str, str]) -> Path:
    return write_csv(root, "filename,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))


def test_class_folders_give_labels_below_the_folder_that_all_share(tmp_path: Path) -> None:
    touch(tmp_path, "images/wren/1.JPG", "images/wren/more/2.tif", "images/finch/1.webp", "images/.hidden/3.png")
    touch(tmp_path, "notes.txt", "images/wren/._1.jpg")
    found = find_specimens(tmp_path)
    assert found.names == ("images/finch/1.webp", "images/wren/1.JPG", "images/wren/more/2.tif")
    assert found.classes == ("finch", "wren")
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [0, 1, 1]
    assert found.groups == found.names
    assert found.label_source == "labels from 2 class sub-folders (finch, wren)"


def test_of_many_class_folders_three_are_named(tmp_path: Path) -> None:
    found = find_specimens(touch(tmp_path, *(f"{name}/1.png" for name in ("wren", "finch", "crow", "owl", "tit"))))
    assert found.label_source == "labels from 5 class sub-folders (crow, finch, owl and 2 more)"


@pytest.mark.parametrize(
    ("classes", "doubtful"),
    [
        (("2019", "2020-05-03", "2021_06"), True),
        (("100CANON", "101_PANA", "102MSDCF"), True),
        (("1", "2", "3"), True),
        (("finch", "wren"), False),
        (("2019", "wren"), False),  # one that is none of these is enough
        (("Morpho 1", "Morpho 2"), False),
        (("12 mm", "14 mm"), False),
        ((), False),
    ],
)
def test_folders_named_by_numbers_dates_or_cameras_are_doubted(classes: tuple[str, ...], doubtful: bool) -> None:
    told = doubt_of_classes(classes)
    assert (told is not None) == doubtful
    if told is not None:
        assert f"({', '.join(classes)})" in told
        assert "objective: {metric: reference_contrast}" in told


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["1.png", "2.png"], "no labels: images lie directly in the folder"),
        (["wren/1.png", "wren/2.png"], "no labels: images lie directly in one folder"),
        (
            ["1.png", "wren/1.png", "finch/1.png"],
            "no labels: 1 of 3 images lie directly in {root}, beside 2 sub-folders",
        ),
    ],
)
def test_no_labels_says_why(tmp_path: Path, names: list[str], source: str) -> None:
    found = find_specimens(touch(tmp_path, *names))
    assert found.labels is None
    assert found.classes == ()
    assert found.label_source == source.format(root=tmp_path.name)


def test_parts_of_a_split_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/wren/1.png", "train/finch/1.png", "Val/wren/2.png")
    with pytest.raises(UserError, match=r"Val, train.*Point data_dir at one of them"):
        find_specimens(tmp_path)
    assert find_specimens(tmp_path / "train").classes == ("finch", "wren")


def test_csv_gives_labels_and_groups(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png", "3.png")
    text = "Filename, label, group\na\\1.png, wren, ring 7\n./a/2.png, finch,\n3.png, wren, ring 7\n9.png, wren, x\n"
    found = find_specimens(tmp_path, write_csv(tmp_path, text, "utf-8-sig"))
    assert dict(zip(found.names, found.groups, strict=True)) == {
        "3.png": "ring 7", "a/1.png": "ring 7", "a/2.png": "a/2.png"
    }  # fmt: skip
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == ["wren", "wren", "finch"]
    assert found.label_source == "labels of 2 classes from labels.csv (1 rows name no image here)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n", "must begin with the header filename,label"),
        ("filename;label\n1.png;wren\n", "separated by commas"),
        ("filename,label\n1.png,wren\n1.png,finch\n2.png,finch\n", "line 3: 1.png stands twice"),
        (
            "filename,label\n1.png,wren\n",
            r"labels 1 of 2 images \(wren ×1; no label: 2\.png\); at least 2 classes with 2",
        ),
        ("filename,label\n1.png,wren\n2.png,\n", r"labels 1 of 2 images \(wren ×1; no label: 2\.png\)"),
        ("filename,label\nz.png,wren\n1.png,wren\n", r"2\.png\) and has 1 rows that name no image in .* \(z\.png\)"),
        ("filename,label\n1.png,wren\n2.png,wren\n", "gives all 2 images the label 'wren'"),
        (
            "filename,label\na/1.png,x\na/2.png,y\n",
            r"2 of 2 rows name no image in .* \(a/1.* 2 of 2 images .* \(1\.png, 2",
        ),
    ],
)
def test_csv_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "1.png", "2.png")
    with pytest.raises(UserError, match=message):
        find_specimens(tmp_path, write_csv(tmp_path, text))


def test_csv_lists_five_missing_names_at_most(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.png" for index in range(8)))
    listed = r"0\.png, 1\.png, 2\.png, 3\.png, 4\.png and 3 more"
    with pytest.raises(UserError, match=rf"labels 0 of 8 images \(none; no label: {listed}\)"):
        find_specimens(tmp_path, write_csv(tmp_path, "filename,label\n"))


FOUR = {"0.png": "wren", "1.png": "finch", "2.png": "wren", "3.png": "finch"}


def test_csv_may_label_a_handful_of_the_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.png" for index in range(8)))
    found = find_specimens(tmp_path, write_rows(tmp_path, {**FOUR, "4.png": "", "x.png": "owl"}))
    assert found.labels is not None
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == [1, 0, 1, 0, -1, -1, -1, -1]
    assert found.classes == ("finch", "wren")  # no owl is here
    assert found.label_source == "labels of 2 classes for 4 of 8 images from labels.csv (1 rows name no image here)"
    assert found.keep([5, 0]).labels.tolist() == [-1, 1]  # type: ignore[union-attr]


def test_a_third_class_may_be_smaller_but_two_need_two_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.png" for index in range(8)))
    found = find_specimens(tmp_path, write_rows(tmp_path, {**FOUR, "4.png": "owl"}))
    assert found.label_source == "labels of 3 classes for 5 of 8 images from labels.csv"
    table = write_rows(tmp_path, {"0.png": "wren", "1.png": "finch", "2.png": "wren", "3.png": "owl"})
    with pytest.raises(
        UserError, match=r"labels\.csv labels 4 of 8 images \(wren ×2, finch ×1, owl ×1; no label: 4\.p"
    ):
        find_specimens(tmp_path, table)


def test_a_row_without_a_label_still_names_the_group(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.png" for index in range(6)))
    rows = "0.png,a,g\n1.png,a,\n2.png,b,\n3.png,b,\n4.png,,g\n"
    found = find_specimens(tmp_path, write_csv(tmp_path, f"filename,label,group\n{rows}"))
    assert found.groups == ("g", "1.png", "2.png", "3.png", "g", "5.png")


def test_rows_that_mostly_name_no_image_are_refused_where_images_lack_labels(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{index}.png" for index in range(8)))
    others = {f"x{index}.png": "owl" for index in range(5)}
    with pytest.raises(UserError, match=r"5 of 9 rows name no image .* \(x0\.png, .* 4 of 8 images .* \(4\.png, 5"):
        find_specimens(tmp_path, write_rows(tmp_path, FOUR | others))
    others.popitem()
    found = find_specimens(tmp_path, write_rows(tmp_path, FOUR | others))
    assert found.label_source.endswith("for 4 of 8 images from labels.csv (4 rows name no image here)")


def test_a_table_of_a_larger_collection_fits_a_folder_that_it_labels_wholly(tmp_path: Path) -> None:
    touch(tmp_path, *FOUR)
    found = find_specimens(tmp_path, write_rows(tmp_path, FOUR | {f"x{index}.png": "owl" for index in range(9)}))
    assert found.label_source == "labels of 2 classes from labels.csv (9 rows name no image here)"


def test_missing_or_binary_csv_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist\. Write the path of a CSV file"):
        find_specimens(tmp_path, tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory\."):
        find_specimens(tmp_path, tmp_path)
    (tmp_path / "labels.csv").write_bytes(b"filename,label\n1.png,\xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read as a CSV file in UTF-8"):
        find_specimens(tmp_path, tmp_path / "labels.csv")
