"""What labels tell of embeddings: accuracy on images that no classifier saw, with its 95 % interval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.files import write_whole

if TYPE_CHECKING:  # --help must not pay for torch
    import numpy as np

    from phenoscape_tune.data.images import Images


def measure_downstream(
    config: TrainConfig,
    images: Images,
    features: np.ndarray,
    *,
    own_images: bool,
    own_parts: bool,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """kNN and linear probe on the run's test part; where it has none, and for new data, by cross-validation.

    Args:
        config: names the split.
        features: (N, D) float32 of the packed images.
        own_images, own_parts: whether the run was trained on these images, and on the training part of this split.
        say: gets a line before long work.

    Returns:
        `queries`: indices of the images that were classified, of all without labels; `classifiers` by name, empty
        where `why_not` says the reason; else `method`, `classes` (images each), `left_out`.
    """
    import numpy as np

    from phenoscape_tune.data.split import split_specimens
    from phenoscape_tune.evaluate import downstream

    specimens = images.specimens
    everything = np.arange(len(features))
    told: dict[str, Any] = {"queries": list(everything), "classifiers": {}, "left_out": 0}
    labels = specimens.labels
    if labels is None:
        return told | {"why_not": specimens.label_source}
    if say is not None:
        say(f"kNN and linear probe of {int((labels >= 0).sum()):,} labelled images ...")
    judged = None
    if own_parts:
        split = split_specimens(specimens, config.val_fraction, config.test_fraction, config.split_seed)
        bank, queries = (part[labels[part] >= 0] for part in (split.train, split.test))
        if len(bank) and len(queries):
            judged = downstream.hold_out(features, labels, bank, queries)
            told["method"] = f"the run's test part ({len(queries):,} images) by its training part ({len(bank):,})"
    if judged is None:
        judged = downstream.cross_validate(features, labels, specimens.groups)
        if judged is None:
            return told | {"why_not": "fewer than two classes have labelled images of two specimens"}
        told["left_out"] = int((labels >= 0).sum()) - len(judged.images)
        why = "these images were seen in training, without their labels" if own_images else "new data"
        told["method"] = (
            f"{downstream.FOLDS}-fold cross-validation by specimen of {len(judged.images):,} images ({why})"
        )
    truth = labels[judged.images]
    groups = np.array([specimens.groups[i] for i in judged.images], dtype=object)
    names = np.array([specimens.classes[c] for c in truth], dtype=object)
    told["queries"] = list(judged.images)
    told["classes"] = {name: int((names == name).sum()) for name in sorted(set(names))}
    told["classifiers"] = {
        name: accuracy_row(predicted == truth, names, groups, config.split_seed)
        for name, predicted in judged.predicted.items()
    }
    return told


def accuracy_row(correct: np.ndarray, names: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, Any]:
    """Balanced accuracy with its 95 % interval: the search's bootstrap over specimens, stratified by class.

    A bootstrap of classes that are all right, or all wrong, knows no spread; the interval is therefore at least that
    of two right and two wrong specimens more in each class (Agresti and Coull, The American Statistician 52, 1998).

    Args:
        correct: (n,) bool; names, groups: (n,) class and specimen of each image.
    """
    import numpy as np

    from phenoscape_tune.search.confirm import bootstrap_gain

    # A gain over nothing, of one seed: its interval is that of measuring alone.
    measured = bootstrap_gain(correct[None].astype(float), names.astype(str), seed, groups.astype(str))
    classes, variance = np.unique(names.astype(str)), 0.0
    for name in classes:
        own = names == name
        specimens = len(set(groups[own]))
        share = (correct[own].mean() * specimens + 2) / (specimens + 4)
        variance += share * (1 - share) / (specimens + 4) / len(classes) ** 2
    half = max(measured.high - measured.value, 1.96 * variance**0.5)
    return {
        "balanced_accuracy": measured.value,
        "ci95": [max(0.0, float(measured.value - half)), min(1.0, float(measured.value + half))],
        "accuracy": float(correct.mean()),
    }


def tell_downstream(path: Path, told: dict[str, Any]) -> None:
    """Print what `measure_downstream` returned as a small table, and write it to `path`."""
    from phenoscape_tune.evaluate.embeddings import readable
    from phenoscape_tune.evaluate.knn import K

    if not told["classifiers"]:
        print(f"no accuracy: {told['why_not']}")
        return
    titles = {"knn": f"kNN (k = {K} at most)", "probe": "linear probe"}
    print(f"{readable(told['method'])}\n{'':24}balanced accuracy   95 % interval")
    for name, row in told["classifiers"].items():
        low, high = row["ci95"]
        print(f"{titles[name]:24}{row['balanced_accuracy']:17.3f}   {low:.3f} to {high:.3f}")
    if told["left_out"]:
        print(f"left out: {told['left_out']} labelled images of classes with a single specimen")
    kept = {key: told[key] for key in ("method", "classes", "left_out")}
    kept["classes"] = {readable(name): count for name, count in kept["classes"].items()}
    write_whole(path, json.dumps(kept | {"classifiers": told["classifiers"]}, indent=2) + "\n")
