"""The deterministic, stratified split of specimens into training, validation and test parts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.errors import UserError


@dataclass(frozen=True)
class Split:
    """Three disjoint parts that together cover the specimens: sorted int64 indices."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def split_specimens(specimens: Specimens, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Train, validation and test parts: whole groups, stratified by label, the same for the same seed.

    Within each class the groups stand in the order of sha256("seed/group"), so that neither the order of listing
    nor a new image moves the others; the test part is taken first. A group with several labels counts to its most
    frequent one; the groups without any label are split like a class of their own. A class with three groups or more
    is in every part whose fraction is above 0; every class is in the training part.

    Raises UserError where the fractions (of the groups, 0 to 1) leave nothing for training.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"val_fraction: {val_fraction} and test_fraction: {test_fraction} must not be negative and must leave "
            "images for training: write two numbers whose sum is below 1, such as 0.2 and 0.1."
        )
    numbers: dict[str, int] = {}
    group_of = np.fromiter((numbers.setdefault(group, len(numbers)) for group in specimens.groups), np.int64)
    groups = list(numbers)
    label_of = _main_labels(specimens.labels, group_of, len(groups))
    part_of = np.zeros(len(groups), np.int8)  # of each group: 0 training, 1 validation, 2 test
    for label in np.unique(label_of):
        own = np.flatnonzero(label_of == label)
        own = own[_hash_order([groups[number] for number in own], seed)]
        n_val, n_test = _count_parts(len(own), val_fraction, test_fraction)
        part_of[own[:n_test]], part_of[own[n_test : n_test + n_val]] = 2, 1
    return Split(*(np.flatnonzero(part_of[group_of] == part) for part in range(3)))


def _hash_order(groups: Sequence[str], seed: int) -> np.ndarray:
    """int64 (n,): the indices of the groups' names in the order of sha256("seed/group")."""
    told = (f"{seed}/{group}".encode("utf-8", "surrogateescape") for group in groups)
    # 32 bytes a group, as four numbers whose order is that of the bytes; a list of a million digests takes 70 MB.
    digests = np.frombuffer(b"".join(hashlib.sha256(text).digest() for text in told), dtype=">u8").reshape(-1, 4)
    return np.lexsort(digests.T[::-1])


def _main_labels(labels: np.ndarray | None, group_of: np.ndarray, groups: int) -> np.ndarray:
    """int64 (groups,): each group's most frequent label, the smallest of several; -1 where none is labelled."""
    found = np.full(groups, -1, np.int64)
    known = np.empty(0, np.int64) if labels is None else np.flatnonzero(labels >= 0)
    if labels is None or not known.size:
        return found
    classes = int(labels.max()) + 1
    pairs, counts = np.unique(group_of[known] * classes + labels[known], return_counts=True)
    # The last one written to a group stands: the most frequent, and of equals the smallest.
    order = np.lexsort((-pairs, counts))
    found[pairs[order] // classes] = pairs[order] % classes
    return found


def _count_parts(groups: int, val_fraction: float, test_fraction: float) -> tuple[int, int]:
    """Validation and test groups of a class: largest remainders, at least one each where the class has three."""
    fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    quotas = [round(groups * fraction, 9) for fraction in fractions]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(3), key=lambda part: counts[part] - quotas[part])
    for part in by_remainder[: groups - sum(counts)]:
        counts[part] += 1
    needed = [part for part in range(3) if fractions[part] > 0 and (part == 0 or groups >= 3)]
    for part in needed:
        if counts[part] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[part] = 1
    return counts[1], counts[2]
