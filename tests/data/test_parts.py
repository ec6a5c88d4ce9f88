from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data import packing
from phenoscape_tune.data.parts import Parts, data_key, open_parts
from phenoscape_tune.errors import UserError

Tiny = Callable[..., TrainConfig]


def test_the_parts_are_described_and_cover_all_images(tiny: Tiny) -> None:
    parts = open_parts(tiny())
    members = np.concatenate([parts.split.train, parts.split.val, parts.split.test])
    assert sorted(members) == list(range(72))
    assert parts.channels == 3
    assert parts.classes == ("crow", "finch", "robin")
    assert "72 images" in parts.describe()


def test_a_batch_larger_than_the_training_part_names_both_numbers(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"batch_size: 64 .*51 of 72 images.*batch_size=32"):
        open_parts(tiny(batch_size=64, val_fraction=0.2, test_fraction=0.1))


def test_one_image_is_too_few(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "one" / "a.png")
    with pytest.raises(UserError, match="1 image is too few"):
        open_parts(tiny(data_dir=str(tmp_path / "one")))


def test_images_that_find_no_room_on_the_disk_are_decoded_anew(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage(10_000, 5_000, 5_000))
    notices: list[str] = []
    parts = open_parts(tiny(cache_dir=str(tmp_path / "cache")), notice=notices.append)
    assert parts.images.folder is None
    assert len(notices) == 1
    assert "5,000 bytes free" in notices[0]
    assert "decoded anew in each epoch" in notices[0]
    assert parts.images.pixels[np.arange(3)].shape[:2] == (3, 3)


def test_the_seed_and_lr_do_not_change_the_images_and_the_split_seed_does(tiny: Tiny) -> None:
    assert data_key(tiny(seed=1, lr=0.1)) == data_key(tiny(seed=2))
    assert data_key(tiny(split_seed=1)) != data_key(tiny(split_seed=2))
    splits = [open_parts(tiny(split_seed=seed)).split.val.tolist() for seed in (1, 2)]
    assert splits[0] != splits[1]


def label(birds: Path, path: Path, per_class: int, group: str = "") -> Path:
    """A labels CSV of `per_class` birds a class, with one specimen a class where `group` is given."""
    rows = [f"{folder.name}/{i:02d}.jpg,{folder.name}" for folder in sorted(birds.iterdir()) for i in range(per_class)]
    if group:
        path.write_text("filename,label,group\n" + "".join(f"{row},{group} {row.split(',')[1]}\n" for row in rows))
    else:
        path.write_text("filename,label\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_a_handful_of_labels_a_class_is_known_part_by_part(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    parts = open_parts(tiny(labels=str(label(birds, tmp_path / "few.csv", 4))))
    assert parts.partly_labelled
    assert parts.labels is not None
    assert (parts.labels >= 0).sum() == 12
    split = parts.split
    for part in (split.train, split.val, split.test):
        chosen = parts.labelled(part)
        assert chosen.tolist() == [index for index in part if parts.labels[index] >= 0]
        assert set(parts.labels[chosen]) == {0, 1, 2}
    assert parts.describe() == (
        f"72 images ({len(split.train)} train, {len(split.val)} validation, {len(split.test)} test; "
        "12 labelled: 6, 3, 3), labels of 3 classes for 12 of 72 images from few.csv"
    )


def test_all_or_no_labels_are_not_partly(tiny: Tiny, tmp_path: Path, birds: Path) -> None:
    every = open_parts(tiny())
    assert not every.partly_labelled
    assert every.labelled(every.split.val).tolist() == every.split.val.tolist()
    assert "labelled" not in every.describe()
    (tmp_path / "loose").mkdir()
    for path in birds.glob("*/*.jpg"):
        (tmp_path / "loose" / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    none = open_parts(tiny(data_dir=str(tmp_path / "loose")))
    assert none.labels is None
    assert not none.partly_labelled
    assert none.labelled(none.split.val).tolist() == []


def relabel(parts: Parts, **changes: object) -> Parts:
    return replace(parts, images=replace(parts.images, specimens=replace(parts.images.specimens, **changes)))


def test_the_fingerprint_knows_which_images_are_labelled(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    parts = open_parts(tiny(labels=str(label(birds, tmp_path / "few.csv", 4))))
    assert parts.labels is not None
    fewer, regrouped = parts.labels.copy(), tuple(f"g{index // 2}" for index in range(72))
    fewer[np.flatnonzero(fewer == 0)[0]] = -1
    told = {p.fingerprint for p in (parts, relabel(parts, labels=fewer), relabel(parts, groups=regrouped))}
    assert len(told) == 3


def test_labels_of_one_specimen_a_class_cannot_judge(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    table = label(birds, tmp_path / "rings.csv", 4, group="ring")
    with pytest.raises(UserError, match=r"12 readable labelled images \(specimens: crow ×1, finch ×1, robin ×1\)"):
        open_parts(tiny(labels=str(table)))


def test_labelled_images_that_cannot_be_read_do_not_count(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    for path in birds.glob("*/*.jpg"):
        copy = tmp_path / "copy" / path.relative_to(birds)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    for name in ("crow/00.jpg", "crow/01.jpg", "finch/00.jpg"):
        (tmp_path / "copy" / name).write_bytes(b"broken")
    config = tiny(data_dir=str(tmp_path / "copy"), labels=str(label(birds, tmp_path / "few.csv", 2)))
    with pytest.raises(UserError, match=r"few\.csv: the training and validation parts hold 3 readable labelled images"):
        open_parts(config)


def test_labels_that_the_split_puts_into_the_test_part_do_not_count(tiny: Tiny, birds: Path, tmp_path: Path) -> None:
    table = str(label(birds, tmp_path / "few.csv", 2))
    assert len(open_parts(tiny(labels=table)).split.test)
    with pytest.raises(UserError, match="parts hold 3 readable labelled images"):
        open_parts(tiny(labels=table, val_fraction=0.2, test_fraction=0.5))


def test_balance_needs_labels(tiny: Tiny, tmp_path: Path, birds: Path) -> None:
    parts = open_parts(tiny(balance=True))
    assert parts.balance_by(tiny(balance=True)) is parts.labels
    assert parts.balance_by(tiny()) is None
    (tmp_path / "loose").mkdir()
    for path in birds.glob("crow/*.jpg"):
        (tmp_path / "loose" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"balance: true needs labels, and .*loose has none .*write balance=false"):
        open_parts(tiny(data_dir=str(tmp_path / "loose"), balance=True))
