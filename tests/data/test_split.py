from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.data.specimens import Specimens
from phenoscape_tune.data.split import split_specimens
from phenoscape_tune.errors import UserError


def make_specimens(groups: list[str], labels: list[int] | None) -> Specimens:
    names = tuple(f"{index:04d}.png" for index in range(len(groups)))
    classes = tuple(f"class {index}" for index in range(max(labels) + 1)) if labels else ()  # -1: unlabelled
    return Specimens(Path("/x"), names, np.array(labels) if labels else None, classes, tuple(groups), "")


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
