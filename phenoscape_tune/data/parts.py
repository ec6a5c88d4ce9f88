"""The images of a configuration, split into parts: the same for every trial and every process."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageColor

from phenoscape_tune.channel_keys import FEWEST_BANDS, MODALITY_OF
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.decoding import Notice, Progress
from phenoscape_tune.data.images import Images
from phenoscape_tune.data.packed import default_cache_dir, pack
from phenoscape_tune.data.packing import NoRoom
from phenoscape_tune.data.recipe import Recipe, Request
from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.split import Split, split_specimens
from phenoscape_tune.data.squares import Square
from phenoscape_tune.data.unpacked import open_unpacked
from phenoscape_tune.errors import UserError
from phenoscape_tune.settling import like_earlier, with_modality

log = logging.getLogger(__name__)

_DATA_KEYS = (
    *("data_dir", "labels", "group_by", "val_fraction", "test_fraction", "split_seed"),
    *("input_size", "resize", "background", "cache_dir", "max_unreadable", "pack"),
    *("modality", "channels", "channel_names", "bands", "value_scaling", "use_segmentation_mask", "crop_to_mask"),
)

FEW_A_CLASS = 20  # labelled images of the training and validation parts


@dataclass(frozen=True)
class Parts:
    """Images (N, C, S, S), and which of them are for training, validation and the final test."""

    images: Images
    split: Split

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) int64 class of each image, -1 for an unlabelled one; None where there are no classes at all."""
        return self.images.specimens.labels

    @property
    def few_labels(self) -> bool:
        """Whether the labelled images are too few a class to rank trials by (measured: docs/objectives.md)."""
        known = np.concatenate([self.labelled(self.split.train), self.labelled(self.split.val)])
        return self.partly_labelled and len(known) < FEW_A_CLASS * len(self.classes)

    @property
    def partly_labelled(self) -> bool:
        """Whether some images have a label and some have none."""
        return self.labels is not None and bool((self.labels < 0).any())

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.specimens.classes

    @property
    def channels(self) -> int:
        """C: how many channels the images have."""
        return int(self.images.pixels.shape[1])

    @property
    def fingerprint(self) -> str:
        """A short text that changes with all that a search compares on: the images' names, classes and split."""
        specimens = self.images.specimens
        labels = [] if specimens.labels is None else specimens.labels.tolist()
        split = [part.tolist() for part in (self.split.train, self.split.val, self.split.test)]
        told = [specimens.names, specimens.classes, labels, split]
        if self.partly_labelled:  # images of one group do not vote for each other
            told.append(specimens.groups)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def labelled(self, part: np.ndarray) -> np.ndarray:
        """The indices of ``part`` (int64, such as ``split.val``) whose images have a label, in the same order."""
        return part[:0] if self.labels is None else part[self.labels[part] >= 0]

    def balance_by(self, config: TrainConfig) -> np.ndarray | None:
        """The labels to sample classes evenly by; None where the configuration does not ask for it.

        Raises UserError where it does, and there are none.
        """
        if config.balance and self.labels is None:
            raise UserError(
                f"balance: true needs labels, and {config.data_dir} has none ({self.images.specimens.label_source}): "
                "write balance=false, or give labels (a sub-folder a class, or labels=path/to/labels.csv)"
            )
        return self.labels if config.balance else None

    def describe(self) -> str:
        """One line for a plan or a log."""
        parts = {"train": self.split.train, "validation": self.split.val, "test": self.split.test}
        told = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
        if self.partly_labelled:
            counts = [len(self.labelled(part)) for part in parts.values()]
            told += f"; {sum(counts):,} labelled: {', '.join(f'{count:,}' for count in counts)}"
        told = f"{len(self.images.pixels):,} images ({told}), {self.images.specimens.label_source}"
        if self.images.recipe.modality != "rgb":
            told += f"; {self.images.recipe.describe()}"
        return told + self.images.specimens.describe_others()


def data_key(config: TrainConfig) -> tuple[object, ...]:
    """What `open_parts` depends on: configurations with equal keys have the same images in the same parts."""
    return tuple(_fixed(getattr(config, name)) for name in _DATA_KEYS)


def open_images(config: TrainConfig, progress: Progress | None = None, notice: Notice | None = None) -> Images:
    """Find and pack (or reuse what is packed) the images of `config.data_dir`, however few.

    Where they are not to be packed, or there is no room for it, they are decoded whenever they are asked for.

    Raises UserError where the folder or the labels are not fit to be read, naming the numbers.
    """
    if config.data_dir is None:
        raise UserError("data_dir: is missing; write data_dir=path/to/your/images")
    labels = None if config.labels is None else Path(config.labels)
    specimens = find_specimens(Path(config.data_dir), labels, config.group_by, config.modality)
    request = make_request(config, specimens)
    cache_dir = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    if config.pack:
        try:
            return pack(
                specimens,
                request,
                cache_dir,
                num_workers=config.num_workers,
                max_unreadable=config.max_unreadable,
                progress=progress,
                notice=notice,
            )
        except NoRoom as fault:
            if notice is not None:
                notice(f"{fault} Until then the images are decoded anew in each epoch, as with pack: false.")
    return open_unpacked(
        specimens,
        request,
        cache_dir,
        num_workers=config.num_workers,
        keep_workers=config.persistent_workers,
        max_unreadable=config.max_unreadable,
        progress=progress,
        notice=notice,
    )


def make_request(config: TrainConfig, specimens: Specimens) -> Request:
    """What a configuration asks of the images of its folder: squares of 8/7 of `input_size`, so that a crop has room.

    Raises UserError for keys of another modality.
    """
    modality = specimens.modality
    key = config.misplaced_key(modality)
    if key == "use_segmentation_mask":
        raise UserError(
            f"use_segmentation_mask: true: the images in {config.data_dir} are RGB pictures, whose transparency is the "
            "mask and is always put on `background`; remove it"
        )
    if key is not None:
        of = MODALITY_OF[key]
        raise UserError(
            f"{key}: is for {of} images, and those in {config.data_dir} are {modality} "
            f"(modality: {config.modality}); remove it, or set modality={of}"
        )
    red, green, blue = ImageColor.getrgb(config.background)[:3]
    square = Square(round(8 / 7 * config.input_size), config.resize, (red, green, blue))
    if modality == "rgb":
        return Request(square)
    scaling = config.value_scaling
    scaled_by: tuple[str, ...] = ()
    if scaling in ("auto", "percentile"):
        train = split_specimens(specimens, config.val_fraction, config.test_fraction, config.split_seed).train
        scaled_by = tuple(specimens.names[index] for index in train)
    return Request(
        square,
        modality,
        channels=_fixed(config.channels or "full"),
        channel_names=_fixed(config.channel_names),
        bands=_fixed(config.bands),
        value_scaling=scaling,
        use_mask=config.use_segmentation_mask,
        crop_to_mask=config.crop_to_mask,
        scaled_by=scaled_by,
    )


def settle(config: TrainConfig, recipe: Recipe) -> TrainConfig:
    """The configuration, once its images are known: their modality, and its defaults for what was not written."""
    rgb, spectrum = recipe.channels.rgb is not None, recipe.modality == "hyperspectral"
    ordered = recipe.channels.wavelengths is not None and not rgb and len(recipe.channels) >= FEWEST_BANDS
    # The ultraviolet end of a spectrum is measured like the rest of it; a camera's ultraviolet by another filter.
    uv = bool(recipe.channels.uv) and not spectrum
    return with_modality(config, recipe.modality, rgb=rgb, uv=uv, ordered=ordered)


def settle_like(config: TrainConfig, earlier: TrainConfig) -> TrainConfig:
    """A configuration as it was settled on the images of an earlier run of it, without looking at them."""
    return like_earlier(with_modality(config, earlier.modality), earlier)


def _fixed(value: Any) -> Any:
    """A value that can be hashed: of a list its tuple."""
    return tuple(value) if isinstance(value, list) else value


def open_parts(config: TrainConfig, progress: Progress | None = None, notice: Notice | None = None) -> Parts:
    """Find, pack (or reuse what is packed) and split the images of `config.data_dir`.

    Raises UserError where the folder, the labels or the images are not fit to train on, naming the numbers.
    """
    started = time.perf_counter()
    images = open_images(config, progress, notice)
    where = "are not packed" if images.folder is None else f"are packed in {images.folder}"
    log.debug("%d images %s; opened in %.2f s", len(images.pixels), where, time.perf_counter() - started)
    split = split_specimens(images.specimens, config.val_fraction, config.test_fraction, config.split_seed)
    total, train = len(images.pixels), len(split.train)
    if len(split.val) < 2 or train < 2:
        kind = "" if images.recipe.modality == "rgb" else f"{images.recipe.modality} "
        few = f"{total} {kind}image{'s are' if total != 1 else ' is'} too few"
        if images.specimens.passed_over:
            few += f" ({images.specimens.passed_over:,} images of another modality beside them are passed over)"
        raise UserError(
            f"data_dir: {config.data_dir}: {few}: {train} for training and {len(split.val)} for validation; "
            "a few dozen at least are needed"
        )
    if config.step_images > train:
        most = 2 ** max(1, (train // config.accumulate_grad_batches).bit_length() - 1)
        raise UserError(
            f"batch_size: {_told_batch(config)} is larger than the training part of {config.data_dir} "
            f"({train} of {total} images); set batch_size={most} or less, or add images"
        )
    parts = Parts(images, split)
    parts.balance_by(config)  # refused before a search begins
    if parts.partly_labelled:
        _check_votes(config, parts)
    return parts


def _told_batch(config: TrainConfig) -> str:
    times = config.accumulate_grad_batches
    return f"{config.batch_size}, {times} of which are one step," if times > 1 else str(config.batch_size)


def _check_votes(config: TrainConfig, parts: Parts) -> None:
    """Raise UserError where labels are left for fewer than two classes that can be told: see `knn.leave_one_out`."""
    assert parts.labels is not None
    seen = parts.labelled(np.concatenate([parts.split.train, parts.split.val]))
    groups = parts.images.specimens.groups
    counts = Counter(c for c, _ in sorted({(int(parts.labels[index]), groups[index]) for index in seen}))
    if sum(count >= 2 for count in counts.values()) < 2:
        listed = ", ".join(f"{parts.classes[c]} ×{count}" for c, count in counts.most_common(5)) or "none"
        raise UserError(
            f"labels: {config.labels}: the training and validation parts hold {len(seen)} readable labelled images "
            f"(specimens: {listed}); at least 2 classes with labelled images of 2 specimens each are needed. "
            "Label images of more specimens, or leave labels out to compare trials without labels."
        )
