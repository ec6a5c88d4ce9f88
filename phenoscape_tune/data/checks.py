"""What is wrong, or worth a look, in a folder of images before training: a finding a check, with the files' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.duplicates import group_equal, group_near
from phenoscape_tune.data.findings import Description, Finding
from phenoscape_tune.data.label_checks import (
    count_classes,
    find_class_faults,
    find_conflicts,
    find_label_faults,
    find_split_groups,
    find_unmatched,
)
from phenoscape_tune.data.measurements import SATURATED, Measurements
from phenoscape_tune.data.split import Split, split_specimens

CONSTANT = 2.0  # levels of 0..255 that no channel's standard deviation exceeds
# Blurred: the logarithm of the sharpness that many robust standard deviations below the folder's median (Iglewicz and
# Hoaglin 1993: 3.5), and the sharpness itself that many times below, where a folder is very even.
BLUR_DEVIATIONS, BLUR_RATIO, FEWEST_FOR_BLUR = 3.5, 4.0, 20


@dataclass(frozen=True)
class Checks:
    """All that was found in one folder."""

    measured: Measurements
    split: Split
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.fault and finding.entries)

    @property
    def hints(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.fault and finding.entries)

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The split's parts by name, int64 indices each."""
        return {"train": self.split.train, "validation": self.split.val, "test": self.split.test}

    def class_counts(self) -> dict[str, dict[str, int]]:
        """Images of each class in all, specimens, and images in each part."""
        return count_classes(self.measured.specimens, self.parts)


def check_images(
    measured: Measurements, config: TrainConfig, progress: Callable[[int, int], None] | None = None
) -> Checks:
    """Judge what was measured, with the split that training would make; `progress` is of comparing images.

    Raises UserError as `split_specimens` and `read_label_rows` do.
    """
    specimens = measured.specimens
    split = split_specimens(specimens, config.val_fraction, config.test_fraction, config.split_seed)
    parts = {"train": split.train, "validation": split.val, "test": split.test}
    part_of = np.empty(len(specimens.names), dtype=object)
    for part, indices in parts.items():
        part_of[indices] = part
    describe = Description(specimens, part_of)
    constant = np.flatnonzero(measured.spread < CONSTANT)
    equal = group_equal(measured.pixel_digests)
    near = _group_near(measured, equal, constant, progress)
    findings = [
        Finding(
            "unreadable",
            "files that cannot be read as an image",
            "repair or remove them; training leaves them out, and refuses above max_unreadable "
            f"({config.max_unreadable:.0%})",
            True,
            tuple({"name": name, "reason": reason} for name, reason in measured.unreadable),
        ),
        _find_tiny(measured, config),
        Finding(
            "constant",
            f"nearly one colour: no channel's standard deviation reaches {CONSTANT:g} of 255 levels",
            "remove them: their two views are alike whatever the encoder learns",
            True,
            tuple({"name": specimens.names[i], "deviation": round(float(measured.spread[i]), 3)} for i in constant),
        ),
        _find_blurred(measured, constant),
        _find_saturated(measured),
        Finding(
            "duplicates",
            "groups of images with the same bytes or the same pixels",
            "keep one of each: in a batch a copy counts as another image that must look different",
            True,
            tuple(
                {
                    **describe(group),
                    "same": "bytes" if len({measured.file_digests[i] for i in group}) == 1 else "pixels",
                }
                for group in equal
            ),
        ),
        Finding(
            "near_duplicates",
            "groups of nearly equal images (re-saved, resized, brightened, tinted), by the correlation of thumbnails",
            "look at them, and keep one of each where they are copies",
            False,
            tuple(describe(group) for group in near),
        ),
        Finding(
            "leakage",
            "groups of copies, exact or near, that lie in different parts of the split",
            "keep one of each, or give them one specimen (group_by, or a group column): what was trained on is tested",
            True,
            tuple(
                {**describe(group), "copies": kind}
                for kind, groups in (("exact", equal), ("near", near))
                for group in groups
                if len(set(part_of[group])) > 1
            ),
        ),
        find_split_groups(specimens, part_of),
        find_conflicts(specimens, describe, [*equal, *near]),
        *find_class_faults(specimens, parts, config),
        *find_label_faults(specimens, config),
        find_unmatched(specimens, config),
        _find_few(parts, config),
    ]
    return Checks(measured, split, tuple(findings))


def _group_near(
    measured: Measurements, equal: list[list[int]], constant: np.ndarray, progress: Callable[[int, int], None] | None
) -> list[list[int]]:
    """Groups of near-duplicates; of exact copies only the first stands for all, so that they are not told twice."""
    again = {i for group in equal for i in group[1:]} | set(constant.tolist())
    compared = np.array([i for i in range(len(measured.thumbnails)) if i not in again], dtype=np.int64)
    groups = group_near(measured.thumbnails[compared], progress)
    return [[int(compared[i]) for i in group] for group in groups]


def _find_tiny(measured: Measurements, config: TrainConfig) -> Finding:
    # What resize brings to input_size: the longer side where the image is padded, else the shorter one.
    sides = measured.sizes.max(axis=1) if config.resize == "pad" else measured.sizes.min(axis=1)
    tiny = np.flatnonzero(2 * sides < config.input_size)
    remedy = "remove them, or lower input_size: they are enlarged more than twofold"
    if 2 * len(tiny) > len(sides):
        remedy = f"most images are that small: input_size={max(8, int(np.median(sides)))} would fit them"
    return Finding(
        "tiny",
        f"images whose {'longer' if config.resize == 'pad' else 'shorter'} side is below half of input_size "
        f"({config.input_size} px)",
        remedy,
        True,
        tuple(
            {"name": measured.specimens.names[i], "width": int(width), "height": int(height)}
            for i, (width, height) in zip(tiny, measured.sizes[tiny], strict=True)
        ),
    )


def _find_blurred(measured: Measurements, constant: np.ndarray) -> Finding:
    sharpness = measured.sharpness.astype(np.float64)
    sharpness[constant] = np.nan
    known = np.flatnonzero(sharpness > 0)
    blurred, median = known[:0], float("nan")
    if len(known) >= FEWEST_FOR_BLUR:
        logs = np.log(sharpness[known])
        median = float(np.exp(np.median(logs)))
        deviation = 1.4826 * float(np.median(np.abs(logs - np.median(logs))))
        below = np.median(logs) - logs
        blurred = known[(below > BLUR_DEVIATIONS * deviation) & (below > np.log(BLUR_RATIO))]
        blurred = blurred[np.argsort(sharpness[blurred], kind="stable")]
    told = f" {median:,.1f}" if len(known) >= FEWEST_FOR_BLUR else f": told from {FEWEST_FOR_BLUR} images on"
    return Finding(
        "blurred",
        f"blurred against the folder: variance of the Laplacian at the encoder's size (median{told})",
        "look at them, the most blurred first; remove what shows no pattern",
        False,
        tuple(
            {
                "name": measured.specimens.names[i],
                "sharpness": round(float(sharpness[i]), 3),
                "of_median": round(float(sharpness[i]) / median, 4),
            }
            for i in blurred
        ),
    )


def _find_saturated(measured: Measurements) -> Finding:
    names = measured.recipe.channels.names
    return Finding(
        "saturated",
        f"channels of which more than {SATURATED:.0%} of the pixels have the largest value of a sensor",
        "leave such channels out (channels, bands), or such images: what is cut off cannot be told apart",
        True,
        tuple(
            {
                "name": measured.specimens.names[i],
                "reason": names[channels[0]] + (f" and {len(channels) - 1} more" if len(channels) > 1 else ""),
                "channels": [names[channel] for channel in channels],
            }
            for i, channels in enumerate(measured.saturated)
            if channels
        ),
    )


def _find_few(parts: dict[str, np.ndarray], config: TrainConfig) -> Finding:
    train, val = len(parts["train"]), len(parts["validation"])
    few = config.batch_size > train or train < 2 or val < 2
    return Finding(
        "too_few_images",
        "parts too small to train with this configuration",
        f"add images, or lower batch_size ({config.batch_size})",
        True,
        ({"train": train, "validation": val, "batch_size": config.batch_size},) if few else (),
    )
