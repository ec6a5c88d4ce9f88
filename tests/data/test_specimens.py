import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.data.specimens import Specimens, find_specimens, split_specimens
from phenoscape_tune.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def make_specimens(groups: list[str], labels: list[int] | None) -> Specimens:
    names = tuple(f"{index:04d}.png" for index in range(len(groups)))
    classes = tuple(f"class {index}" for index in range(max(labels) + 1)) if labels else ()  # -1: unlabelled
    return Specimens(Path("/x"), names, np.array(labels) if labels else None, classes, tuple(groups), "")


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
    assert found.label_source == "labels from 2 class sub-folders"


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


def write_csv(root: Path, text: str, encoding: str = "utf-8") -> Path:
    path = root / "labels.csv"
    path.write_text(text, encoding=encoding)
    return path


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


def write_rows(root: Path, labels: dict[str, str]) -> Path:
    return write_csv(root, "filename,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))


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
    with pytest.raises(UserError, match="cannot be read as a CSV"):
        find_specimens(tmp_path, tmp_path / "nowhere.csv")
    (tmp_path / "labels.csv").write_bytes(b"filename,label\n1.png,\xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read as a CSV file in UTF-8"):
        find_specimens(tmp_path, tmp_path / "labels.csv")


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
    table = write_csv(tmp_path, "filename,label,group\n1.png,a,x\n2.png,b,y\n")
    with pytest.raises(UserError, match="both name the specimens"):
        find_specimens(tmp_path, table, group_by=".")


def test_keep_takes_everything_along() -> None:
    kept = make_specimens(["a", "b", "c"], [0, 1, 2]).keep(np.array([2, 0]))
    assert kept.names == ("0002.png", "0000.png")
    assert kept.groups == ("c", "a")
    assert kept.labels is not None
    assert kept.labels.tolist() == [2, 0]
    assert kept.classes == ("class 0", "class 1", "class 2")


population = st.lists(st.tuples(st.integers(0, 25), st.integers(-1, 3)), min_size=1, max_size=80)
fraction = st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.4])


@settings(max_examples=150, deadline=None)
@given(population, fraction, fraction, st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
def test_split_properties(people, val_fraction, test_fraction, seed, labelled, shuffler) -> None:  # type: ignore[no-untyped-def]
    groups = [f"g{group}" for group, _ in people]
    labels = [label for _, label in people] if labelled else None
    specimens = make_specimens(groups, labels)
    split = split_specimens(specimens, val_fraction, test_fraction, seed)
    parts = (split.train, split.val, split.test)

    assert np.concatenate(parts).dtype == np.int64
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(people)))
    assert all((np.diff(part) > 0).all() for part in parts)
    in_parts = [{groups[index] for index in part} for part in parts]
    assert sum(len(part) for part in in_parts) == len(set(groups))

    order = list(range(len(people)))
    shuffler.shuffle(order)
    again = split_specimens(specimens.keep(order), val_fraction, test_fraction, seed)
    for part, other in zip(parts, (again.train, again.val, again.test), strict=True):
        assert {specimens.names[index] for index in part} == {specimens.names[order[index]] for index in other}

    main: dict[str, int] = {}
    for group in set(groups):
        own = [label for name, label in zip(groups, labels or [-1] * len(groups), strict=True) if name == group]
        known = [label for label in own if label >= 0] or [-1]
        main[group] = min(set(known), key=lambda label: (-known.count(label), label))
    for label in set(main.values()):
        total = sum(value == label for value in main.values())
        counts = [sum(main[group] == label for group in part) for part in in_parts]
        assert counts[0] >= 1
        for count, share in zip(counts[1:], (val_fraction, test_fraction), strict=True):
            assert abs(count - total * share) <= 1
            assert count >= (total >= 3 and share > 0)
            assert count == 0 or share > 0
        if labels and label >= 0 and total >= 3:
            for part, share in zip(parts, (1, val_fraction, test_fraction), strict=True):
                assert share == 0 or any(labels[index] == label for index in part)


def test_a_few_labels_reach_every_part_and_the_rest_is_split_alike() -> None:
    labels = [0] * 3 + [1] * 5 + [-1] * 92
    split = split_specimens(make_specimens([f"g{index}" for index in range(100)], labels), 0.15, 0.15, 3)
    counts = [np.bincount(np.array(labels)[part] + 1).tolist() for part in (split.train, split.val, split.test)]
    assert counts == [[64, 1, 3], [14, 1, 1], [14, 1, 1]]


def test_the_labelled_images_of_a_group_tell_its_label() -> None:
    # Twelve groups of four images, one of them labelled: counted with the others, every group would be unlabelled.
    groups, labels = [f"g{index // 4}" for index in range(48)], [-1, -1, 0, -1, 1, -1, -1, -1] * 6
    for seed in range(10):
        split = split_specimens(make_specimens(groups, labels), 0.17, 0.17, seed)
        counts = [sorted(labels[index] for index in part if labels[index] >= 0) for part in (split.val, split.test)]
        assert counts == [[0, 1], [0, 1]]


def test_split_depends_on_the_seed_and_keeps_the_test_part() -> None:
    specimens = make_specimens([f"g{index}" for index in range(100)], None)
    first, other = split_specimens(specimens, 0.2, 0.1, 0), split_specimens(specimens, 0.2, 0.1, 1)
    assert [len(first.train), len(first.val), len(first.test)] == [70, 20, 10]
    assert first.test.tolist() != other.test.tolist()
    assert split_specimens(specimens, 0.4, 0.1, 0).test.tolist() == first.test.tolist()


def test_split_is_the_same_in_every_version() -> None:
    split = split_specimens(make_specimens([f"g{index}" for index in range(8)], [0, 1] * 4), 0.25, 0.25, 7)
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([2, 3, 4, 7], [5, 6], [0, 1])


@pytest.mark.parametrize(("val", "test"), [(0.6, 0.4), (-0.1, 0.1), (0.1, -0.1)])
def test_split_that_leaves_no_training_images_is_refused(val: float, test: float) -> None:
    with pytest.raises(UserError, match=r"val_fraction: .* test_fraction: "):
        split_specimens(make_specimens(["a", "b"], None), val, test, 0)


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
