from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from phenoscape_tune.config import build_config
from phenoscape_tune.data.checks import Checks, check_images
from phenoscape_tune.data.findings import Finding
from phenoscape_tune.data.measurements import THUMBNAIL, Measurements, measure_images
from phenoscape_tune.data.parts import make_request
from phenoscape_tune.data.recipe import Recipe
from phenoscape_tune.data.sample import draw_specimen
from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.squares import Square
from phenoscape_tune.data.survey import answer

CLASSES = ("crow", "finch", "robin")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 x 10 different pictures, 64 px, in class sub-folders."""
    folder = tmp_path_factory.mktemp("drawn")
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for i in range(10):
            picture = Image.fromarray(draw_specimen(number, 64, np.random.default_rng([1, number, i])))
            picture.save(folder / name / f"{i:02d}.png", compress_level=1)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the drawn pictures to spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "images"))


def check(folder: Path, **changes: Any) -> Checks:
    config = build_config({"data_dir": str(folder), "input_size": 64, "batch_size": 8, **changes})
    labels = None if config.labels is None else Path(config.labels)
    specimens = find_specimens(folder, labels, config.group_by)
    recipe = answer(specimens, make_request(config, specimens), 2)
    return check_images(measure_images(specimens, config.input_size, recipe, 2), config)


def found(checks: Checks, name: str) -> Finding:
    (finding,) = (finding for finding in checks.findings if finding.check == name)
    return finding


def told(checks: Checks) -> set[str]:
    return {finding.check for finding in checks.findings if finding.entries}


def test_a_sound_folder_has_no_findings(folder: Path) -> None:
    checks = check(folder)
    assert told(checks) == set()
    assert checks.class_counts()["crow"] == {"images": 10, "specimens": 10, "train": 7, "validation": 2, "test": 1}


def test_unreadable_tiny_constant_and_blurred_images_are_named(folder: Path) -> None:
    (folder / "crow" / "text.jpg").write_text("no image")
    Image.open(folder / "crow" / "00.png").resize((20, 31)).save(folder / "crow" / "tiny.png")
    Image.new("RGB", (64, 64), (10, 20, 30)).save(folder / "finch" / "flat.png")
    blurred = Image.open(folder / "robin" / "03.png").filter(ImageFilter.GaussianBlur(6))
    blurred.rotate(90).save(folder / "robin" / "blur.png")
    checks = check(folder)
    names = {finding.check: [entry.get("name") for entry in finding.entries] for finding in checks.findings}
    assert names["unreadable"] == ["crow/text.jpg"]
    assert found(checks, "unreadable").entries[0]["reason"] == "not an image of a known kind"
    assert names["tiny"] == ["crow/tiny.png"]
    assert found(checks, "tiny").entries[0] == {"name": "crow/tiny.png", "width": 20, "height": 31}
    assert names["constant"] == ["finch/flat.png"]
    assert names["blurred"] == ["robin/blur.png"]
    assert {finding.check for finding in checks.faults} >= {"unreadable", "tiny", "constant"}
    assert "blurred" in {finding.check for finding in checks.hints}


def test_what_counts_as_tiny_is_the_side_that_resize_scales(folder: Path) -> None:
    Image.open(folder / "crow" / "00.png").resize((60, 20)).save(folder / "crow" / "long.png")
    assert "tiny" not in told(check(folder, resize="pad"))
    assert found(check(folder, resize="crop"), "tiny").count == 1


def test_a_folder_of_small_images_is_told_the_input_size_that_fits(folder: Path) -> None:
    tiny = found(check(folder, input_size=224), "tiny")
    assert tiny.count == 30
    assert "input_size=64" in tiny.remedy


def test_copies_in_one_part_are_duplicates_and_in_two_parts_leakage(folder: Path) -> None:
    split = check(folder).split
    names = find_specimens(folder).names
    original = names[split.test[0]]
    label = original.split("/")[0]
    # Copies until both kinds are there: where a copy lands is the split's choice.
    for number in range(12):
        shutil.copy(folder / original, folder / label / f"copy{number}.png")
    checks = check(folder)
    (group,) = found(checks, "duplicates").entries
    assert group["same"] == "bytes"
    assert len(group["names"]) == 13
    assert set(group["classes"]) == {label}
    (leak,) = found(checks, "leakage").entries
    assert len(set(leak["parts"])) > 1
    assert leak["copies"] == "exact"
    # As one specimen they stay together: copies still, no leakage.
    table = folder.parent / "labels.csv"
    rows = [f"{name},{name.split('/')[0]},{'one' if 'copy' in name or name == original else ''}" for name in
            find_specimens(folder).names]  # fmt: skip
    table.write_text("filename,label,group\n" + "\n".join(rows) + "\n")
    assert told(check(folder, labels=str(table))) == {"duplicates"}


def test_the_same_pixels_in_another_file_and_nearly_the_same(folder: Path) -> None:
    picture = Image.open(folder / "crow" / "00.png")
    picture.save(folder / "crow" / "same.bmp")
    picture.save(folder / "crow" / "near.jpg", quality=70)
    checks = check(folder, group_by=r"crow/(00|same|near)")
    (exact,) = found(checks, "duplicates").entries
    assert (exact["names"], exact["same"]) == (["crow/00.png", "crow/same.bmp"], "pixels")
    (near,) = found(checks, "near_duplicates").entries
    assert near["names"] == ["crow/00.png", "crow/near.jpg"]


def test_a_copy_in_another_class_is_a_conflict(folder: Path) -> None:
    shutil.copy(folder / "crow" / "00.png", folder / "finch" / "other.png")
    (conflict,) = found(check(folder), "conflicting_labels").entries
    assert set(conflict["classes"]) == {"crow", "finch"}


def test_a_specimen_of_two_classes_is_a_conflict(folder: Path) -> None:
    (conflict,) = found(check(folder, group_by=r"/(03)\.png"), "conflicting_labels").entries
    assert conflict["names"] == ["crow/03.png", "finch/03.png", "robin/03.png"]


def test_a_class_of_one_image_is_too_small_for_the_split_and_unbalanced(folder: Path) -> None:
    (folder / "owl").mkdir()
    Image.fromarray(draw_specimen(4, 64, np.random.default_rng(77))).save(folder / "owl" / "1.png")
    checks = check(folder)
    (small,) = found(checks, "small_classes").entries
    assert small["class"] == "owl"
    assert small["not_in"] == ["validation", "test"]
    assert found(checks, "imbalance").entries == ({"largest": "crow", "smallest": "owl", "ratio": 10.0},)
    assert "imbalance" not in told(check(folder, balance=True))
    assert found(check(folder, test_fraction=0), "small_classes").entries[0]["not_in"] == ["validation"]


def test_labels_that_name_no_file_and_classes_spelt_twice(folder: Path) -> None:
    rows = [f"{name},{name.split('/')[0]}" for name in find_specimens(folder).names]
    rows[0] = rows[0].replace(",crow", ",Crow ")
    table = folder.parent / "labels.csv"
    table.write_text("filename,label\n" + "\n".join([*rows, "crow/99.png,crow"]) + "\n")
    checks = check(folder, labels=str(table))
    assert found(checks, "label_rows").entries == ({"name": "crow/99.png"},)
    assert found(checks, "class_names").entries == ({"names": ["Crow", "crow"]},)


def test_an_expression_that_matches_nothing_is_a_fault_and_one_that_misses_some_a_hint(folder: Path) -> None:
    nothing = found(check(folder, group_by=r"ring(\d+)"), "group_by")
    assert nothing.fault
    assert nothing.count == 30
    some = found(check(folder, group_by=r"(crow|finch)/0\d"), "group_by")
    assert not some.fault
    assert some.count == 10


def test_too_few_images_for_the_batch(folder: Path) -> None:
    (few,) = found(check(folder, batch_size=64), "too_few_images").entries
    assert few["batch_size"] == 64


def test_names_that_are_not_utf8_are_kept(folder: Path) -> None:
    name = os.fsdecode(b"crow/\xff\xfe.png")
    try:
        shutil.copy(folder / "crow" / "00.png", folder / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (group,) = found(check(folder), "duplicates").entries
    assert group["names"] == ["crow/00.png", name]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(-1, 3), st.sampled_from([0.0, 1.0, 30.0]), st.integers(0, 400)),
        min_size=1,
        max_size=60,
    ),
    st.booleans(),
)
def test_properties(images: list[tuple[int, int, float, int]], labelled: bool) -> None:
    n = len(images)
    names = tuple(f"{i:03d}.png" for i in range(n))
    labels = np.array([label for _, label, _, _ in images]) if labelled else None
    specimens = Specimens(Path("/x"), names, labels, ("a", "b", "c", "d") if labelled else (), names, "")
    pictures = np.random.default_rng(0).integers(0, 256, (9, THUMBNAIL, THUMBNAIL, 3)).astype(np.uint8)
    which = np.array([picture for picture, *_ in images])
    measured = Measurements(
        specimens=specimens,
        unreadable=(),
        sizes=np.array([(side + 1, 50) for *_, side in images], dtype=np.int32),
        file_digests=tuple(bytes([picture]) for picture in which),
        pixel_digests=tuple(bytes([picture]) for picture in which),
        sharpness=np.array([float(side) if side else np.nan for *_, side in images], dtype=np.float32),
        spread=np.array([spread for *_, spread, _ in images], dtype=np.float32),
        thumbnails=pictures[which],
        moments=np.zeros((4, 3)),
        recipe=Recipe(Square(64, "pad", (128, 128, 128))),
        means=np.zeros((n, 3)),
        saturated=((),) * n,
    )
    checks = check_images(measured, build_config({"data_dir": "/x", "input_size": 64}))
    duplicates = found(checks, "duplicates")
    assert sum(len(entry["names"]) - 1 for entry in duplicates.entries) == n - len(set(which.tolist()))
    assert found(checks, "near_duplicates").count == 0
    assert found(checks, "split_groups").count == 0
    leaks = {tuple(entry["names"]) for entry in found(checks, "leakage").entries}
    assert leaks == {tuple(e["names"]) for e in duplicates.entries if len(set(e["parts"])) > 1}
    constant = {entry["name"] for entry in found(checks, "constant").entries}
    assert not constant & {entry["name"] for entry in found(checks, "blurred").entries}
    assert sum(own["images"] for own in checks.class_counts().values()) == (int((labels >= 0).sum()) if labelled else 0)
