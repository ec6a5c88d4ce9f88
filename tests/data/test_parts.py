from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phenoscape_tune.augment_checks import check_transforms
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data import packing
from phenoscape_tune.data.batches import Batches
from phenoscape_tune.data.parts import Parts, data_key, open_parts, settle, settle_like
from phenoscape_tune.data.statistics import measure
from phenoscape_tune.errors import UserError
from tests.data.test_cubes import write_cube, write_tiff

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


# ---- images of many channels ----


@pytest.fixture
def cubes(tmp_path: Path) -> Path:
    """2 x 12 cubes of 9 bands at 400 to 800 nm, which differ between the classes in one band."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("crow", "finch")):
        (tmp_path / "cubes" / name).mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(20000, 40000, (9, 10, 14), dtype=np.uint16)
            pixels[4] += np.uint16(20000 * number)
            write_cube(tmp_path / "cubes" / name / f"{index:02d}.hdr", pixels, wavelength=list(range(400, 801, 50)))
    return tmp_path / "cubes"


def test_the_modality_is_told_from_the_files_and_said(tiny: Tiny, cubes: Path) -> None:
    parts = open_parts(tiny(data_dir=str(cubes), input_size=16, batch_size=4))
    assert (parts.images.pixels.dtype, parts.images.pixels.shape) == (np.uint16, (24, 9, 14, 14))
    assert parts.images.specimens.names[0] == "crow/00.hdr"
    assert "hyperspectral, 9 of 9 channels (400 nm, 450 nm, ..., 800 nm)" in parts.describe()
    settled = settle(tiny(data_dir=str(cubes)), parts.images.recipe)
    assert settled.modality == "hyperspectral"
    assert settled.transforms.cj_prob == 0 < settled.transforms.shift_prob
    assert settle(settled, parts.images.recipe) == settled


@pytest.mark.parametrize("bands", ["all", "rgb", "every:3", [8, 0]])
def test_images_that_are_not_packed_have_the_same_pixels(tiny: Tiny, cubes: Path, bands: object) -> None:
    packed, unpacked = (
        open_parts(tiny(data_dir=str(cubes), input_size=12, batch_size=4, bands=bands, pack=pack)).images
        for pack in (True, False)
    )
    assert packed.recipe == unpacked.recipe
    chosen = np.array([3, 0, 23])
    np.testing.assert_array_equal(packed.pixels[chosen], unpacked.pixels[chosen])
    assert unpacked.pixels[chosen].dtype == unpacked.pixels.dtype == np.uint16
    batches = [list(Batches(i.pixels, 5, torch.device("cpu")).in_order(np.arange(24))) for i in (packed, unpacked)]
    assert all(torch.equal(*pair) for pair in zip(*batches, strict=True))
    assert batches[0][0].dtype == torch.uint16


def test_a_changed_data_file_is_packed_anew(tiny: Tiny, cubes: Path) -> None:
    config = tiny(data_dir=str(cubes), input_size=16, batch_size=4)
    before = open_parts(config).images
    assert open_parts(config).images.folder == before.folder
    data = cubes / "crow" / "00.bil"
    data.write_bytes(bytes(data.stat().st_size))
    os.utime(data, ns=(1, 1))
    after = open_parts(config).images
    assert after.folder != before.folder
    assert (after.pixels[0] == 0).any() and not (before.pixels[0] == 0).any()


def test_an_unreadable_cube_is_left_out_by_name(tiny: Tiny, cubes: Path) -> None:
    (cubes / "crow" / "00.bil").write_bytes(b"\0" * 7)
    (cubes / "crow" / "01.hdr").unlink()
    config = tiny(data_dir=str(cubes), input_size=16, batch_size=4, max_unreadable=0.1)
    notices: list[str] = []
    assert len(open_parts(config, notice=notices.append).images.pixels) == 22
    assert "crow/00.hdr: the header asks for 2,520 bytes" in notices[-1] and "has 7" in notices[-1]
    assert "crow/01.bil: no header" in notices[-1]
    with pytest.raises(UserError, match="2 of 24 images .* cannot be read"):
        open_parts(tiny(data_dir=str(cubes), input_size=16, batch_size=4))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": "rgb_only"}, "channels: is for multispectral images, and those in .* are hyperspectral"),
        ({"bands": "range:300-390nm"}, "no band lies there; the files' are from 400 to 800 nm .as in .*crow/00.hdr"),
        ({"use_segmentation_mask": True}, "none of the 9 channels of .*crow/00.hdr is a mask"),
    ],
)
def test_what_these_images_do_not_have_is_refused(tiny: Tiny, cubes: Path, keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_parts(tiny(data_dir=str(cubes), input_size=16, batch_size=4, **keys))


def test_the_keys_of_many_channels_are_refused_for_pictures(tiny: Tiny) -> None:
    for keys in ({"bands": "every:2"}, {"channels": "full"}, {"channel_names": ["red"]}):
        with pytest.raises(UserError, match="and those in .* are rgb"):
            open_parts(tiny(**keys))
    with pytest.raises(UserError, match="use_segmentation_mask: true: .* RGB pictures, whose transparency"):
        open_parts(tiny(use_segmentation_mask=True))


def test_a_range_of_values_that_was_measured_is_the_same_for_every_part_of_a_search(tiny: Tiny, cubes: Path) -> None:
    config = tiny(data_dir=str(cubes), input_size=16, batch_size=4, value_scaling="percentile")
    parts = open_parts(config)
    low, high = parts.images.recipe.value_range or (0, 0)
    assert 19000 < low < 21000 and 55000 < high < 60000
    assert open_parts(config).images.recipe == parts.images.recipe
    fixed = config.model_copy(update={"value_scaling": (low, high)})
    np.testing.assert_array_equal(open_parts(fixed).images.pixels[:], parts.images.pixels[:])


@pytest.mark.parametrize(
    ("wavelengths", "bands"), [((300, 330), "all"), ((400, 800), "all"), ((400, 800), "rgb"), ((350, 1000), "every:4")]
)
def test_the_defaults_told_by_the_files_are_those_told_by_the_configuration(
    tiny: Tiny, tmp_path: Path, wavelengths: tuple[int, int], bands: str
) -> None:
    known = np.linspace(*wavelengths, 9).tolist()
    for index in range(16):
        pixels = np.random.default_rng(index).integers(20000, 40000, (9, 10, 14), dtype=np.uint16)
        write_cube(tmp_path / f"{index:02d}.hdr", pixels, wavelength=known)
    written = tiny(data_dir=str(tmp_path), input_size=16, batch_size=4, bands=bands, modality="hyperspectral")
    recipe = open_parts(written).images.recipe
    settled = settle(written, recipe)
    if bands != "every:4":  # three of nine bands are a spectrum, and a configuration does not know of how many
        assert settled == written
    check_transforms(settled.transforms, recipe.channels)
    guessed = settle(written.model_copy(update={"modality": "auto"}), recipe)
    assert guessed.transforms == settled.transforms


@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d", "e"], ["red", "green", "blue", "x", "y"]])
def test_the_same_configuration_again_is_as_it_was_settled(tiny: Tiny, tmp_path: Path, names: list[str] | None) -> None:
    for index in range(16):
        write_tiff(tmp_path / f"{index:02d}.tif", np.random.default_rng(index).integers(0, 255, (5, 9, 9), np.uint8))
    config = tiny(data_dir=str(tmp_path), input_size=16, batch_size=4, channel_names=names)
    settled = settle(config, open_parts(config).images.recipe)
    check_transforms(settled.transforms, open_parts(config).images.channels)
    as_saved = build_config(settled.to_mapping())
    assert settle_like(config, as_saved).to_mapping() == settled.to_mapping()
    other = tiny(data_dir=str(tmp_path), channel_names=names, transforms={"gain_prob": 0.77})
    assert settle_like(other, as_saved).transforms.gain_prob == 0.77


def test_the_key_of_the_data_can_be_a_key_whatever_is_chosen(tiny: Tiny) -> None:
    keys = [
        tiny(modality="multispectral", channels=["red", 4], channel_names=["red", "b", "c", "d", "e"]),
        tiny(modality="hyperspectral", bands=[0, "550nm"]),
        tiny(value_scaling=[0, 10000]),
    ]
    assert len({data_key(config) for config in keys}) == 3


def test_statistics_hold_the_mean_spectrum_of_each_class(tiny: Tiny, cubes: Path) -> None:
    parts = open_parts(
        tiny(data_dir=str(cubes), input_size=16, batch_size=4, resize="squash", value_scaling="bit_depth")
    )
    found = measure(parts.images, parts.split.train)
    assert found.spectra is not None
    assert found.spectra.classes == ("crow", "finch")
    assert found.spectra.wavelengths == tuple(range(400, 801, 50))
    crow, finch = np.array(found.spectra.mean)
    assert np.flatnonzero(np.abs(crow - finch) > 0.2).tolist() == [4]
    assert crow == pytest.approx(np.full(9, 30000 / 65535), abs=0.01)
    assert measure(parts.images, parts.split.train) == found
