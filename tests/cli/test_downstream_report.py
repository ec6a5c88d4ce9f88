from __future__ import annotations

import numpy as np

from phenoscape_tune.cli.downstream_report import accuracy_row

NAMES = np.repeat(np.array(["a", "b"], dtype=object), 20)


def width(correct: np.ndarray, groups: list[str]) -> float:
    low, high = accuracy_row(correct, NAMES, np.array(groups, dtype=object), seed=0)["ci95"]
    return high - low


def test_what_is_all_right_is_not_sure() -> None:
    row = accuracy_row(np.ones(40, bool), NAMES, np.array([str(n) for n in range(40)], dtype=object), seed=0)
    assert row["balanced_accuracy"] == 1.0
    assert 0.85 < row["ci95"][0] < 0.97
    assert row["ci95"][1] == 1.0


def test_images_of_one_specimen_tell_less_than_as_many_specimens() -> None:
    correct = np.arange(40) // 4 % 2 == 0
    assert width(correct, [str(n // 4) for n in range(40)]) > 1.3 * width(correct, [str(n) for n in range(40)])
