from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.parts import data_key, open_parts
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


def test_the_seed_and_lr_do_not_change_the_images_and_the_split_seed_does(tiny: Tiny) -> None:
    assert data_key(tiny(seed=1, lr=0.1)) == data_key(tiny(seed=2))
    assert data_key(tiny(split_seed=1)) != data_key(tiny(split_seed=2))
    splits = [open_parts(tiny(split_seed=seed)).split.val.tolist() for seed in (1, 2)]
    assert splits[0] != splits[1]
