"""Which score of a short SimCLR trial ranks configurations as the final linear probe does?

Reads the features that `benchmarks/learning_curves.py` leaves. `score` appends one JSON line for each recorded run: its
configuration, every score after every epoch (epoch 0: the untrained network), and the final linear probe's accuracy.
Runs in the table are skipped, so it may be repeated while the recording goes on. `table` prints what follows from it.

    python benchmarks/objectives.py score --scratch curves
    python benchmarks/objectives.py table
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: the recording shares the cores

import numpy as np
from learning_curves import REFERENCES, STUDIES, configurations
from scipy.stats import rankdata

TABLE = Path(__file__).parent / "results" / "learning_curves.jsonl"
FEW = (2, 5, 10, 20)  # labelled images a class
DRAWS = 3  # independent draws of them
NEIGHBOURS = 10
FOLDS = 5
AVERAGED = 3  # a search compares the mean of a trial's last three evaluations
RUNGS = (0.1, 0.2, 0.6, 1.0)
RESAMPLES = 1000
# Losses, and those where the literature takes the smaller for the better.
LOWER_IS_BETTER = ("contrast", "uniformity", "alignment", "val_loss", "train_loss")

# Means of two scores, taken when the table is printed: a reference of one strength favours trials trained near it.
COMBINED = {
    f"{kind}_{'+'.join(names)}": [f"{kind}_{name}" for name in names]
    for kind in ("contrast", "retrieval")
    for names in (("weak", "moderate"), ("weak", "moderate", "strong"))
}
NEEDED = ("bank", "val", "view_rotations", *(f"view_{name}" for name in REFERENCES))

Array = np.ndarray


# ---------------------------------------------------------------- scores that are measured, not offered


def unit(x: Array) -> Array:
    """Rows of x (n, D) at length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def centred_views(views: Array) -> Array:
    """(q, n, D) minus the mean over all, L2-normalised."""
    return unit(views - views.mean((0, 1)))


def whiten(views: Array, shrinkage: float = 0.5) -> Array:
    """(q, n, D) with the covariance of all views, shrunk towards a multiple of the identity, made the identity."""
    x = (views - views.mean((0, 1))).reshape(-1, views.shape[-1])
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values = np.maximum(values, 0) * (1 - shrinkage) + shrinkage * max(values.mean(), 1e-30)
    return (x @ vectors / np.sqrt(values)).reshape(views.shape)


def neighbour_agreement(views: Array, k: int = NEIGHBOURS) -> float:
    """Share of an image's k nearest images in view 1 that are among its k nearest in view 2; (2, n, D)."""
    sets = []
    for x in centred_views(views):
        similarity = x @ x.T
        np.fill_diagonal(similarity, -np.inf)
        near = np.zeros(similarity.shape, bool)
        np.put_along_axis(near, np.argpartition(-similarity, k, axis=1)[:, :k], True, axis=1)
        sets.append(near)
    return float((sets[0] & sets[1]).sum() / (k * len(sets[0])))


def rotation_accuracy(turned: Array) -> float:
    """How well ridge regression on standardised features tells an image's four quarter turns apart, cross-validated.

    SelfAugment (arXiv 2009.07724) ranks by the linear classification of turns. The folds are by image; (4, n, D).
    """
    count, n, _ = turned.shape
    fold = np.tile(np.arange(n) % FOLDS, count)
    x, targets = standardise(turned.reshape(count * n, -1)), np.repeat(np.arange(count), n)
    hits = [ridge(x[fold != f], targets[fold != f], x[fold == f]).argmax(1) == targets[fold == f] for f in range(FOLDS)]
    return float(np.concatenate(hits).mean())


def standardise(x: Array) -> Array:
    """Columns of x at mean 0 and deviation 1; constant ones at 0."""
    deviation = x.std(0)
    return (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)


def ridge(x: Array, labels: Array, queries: Array) -> Array:
    """Ridge regression of the classes' indicators on standardised features, penalty n / 100: outputs (Q, C)."""
    targets = np.eye(int(labels.max()) + 1)[labels]
    mean, middle = x.mean(0), targets.mean(0)
    x = x - mean
    weights = np.linalg.solve(x.T @ x + len(x) / 100 * np.eye(x.shape[1]), x.T @ (targets - middle))
    return (queries - mean) @ weights + middle


def spectrum_scores(features: Array) -> dict[str, float]:
    """NESum, stable rank (arXiv 2305.16562), minus the distance of alpha-ReQ's exponent from 1; features (n, D)."""
    values = np.linalg.eigvalsh(np.cov(features.T))[::-1]
    values = np.maximum(values, values[0] * 1e-12 + 1e-30)
    singular = np.linalg.svd(features, compute_uv=False)
    ranks = np.arange(3, min(50, len(values)))  # the paper leaves out the first and the last
    slope = np.polyfit(np.log(ranks + 1.0), np.log(values[ranks]), 1)[0]
    return {
        "nesum": float(values.sum() / values[0]),
        "stable_rank": float((singular**2).sum() / singular[0] ** 2),
        "alpha_req": float(-abs(-slope - 1)),
    }


def cluster_scores(bank: Array, views: Array) -> dict[str, float]:
    """Scores of a k-means of the bank (M, D) into sqrt(M) clusters; views (2, n, D) of other images.

    Cluster learnability (CLID, arXiv 2206.01251): whether a kNN vote of the other half predicts an image's cluster.
    Cluster agreement: adjusted mutual information of the clusters that an image's two views fall into.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score
    from sklearn.neighbors import KNeighborsClassifier

    middle = bank.mean(0)
    x = unit(bank - middle)
    kmeans = KMeans(int(math.sqrt(len(x))), n_init=1, max_iter=30, random_state=0).fit(x)
    half = len(x) // 2
    learner = KNeighborsClassifier(1).fit(x[:half], kmeans.labels_[:half])
    a, b = (kmeans.predict(unit(view - middle)) for view in views)
    return {
        "cluster_learnability": float(learner.score(x[half:], kmeans.labels_[half:])),
        "cluster_agreement": float(adjusted_mutual_info_score(a, b)),
    }


# ---------------------------------------------------------------- scores with a few labels


def draw_few(labels: Array, count: int, draw: int) -> Array:
    """Numbers of `count` images of each class (all where a class has fewer), the same for every run of a study."""
    rng = np.random.default_rng([count, draw])
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:count] for c in np.unique(labels)])


def few_label_scores(features: Array, labels: Array) -> dict[str, float]:
    """Leave-one-out scores of labelled images, each judged by all others; features (m, D), labels (m,).

    `few_knn` counts the right ones of the kNN vote (DINO's weights; k: the other images of a class). `few_soft` is the
    mean probability of the right class in a vote of all others, exp(s / 0.2): the objective of neighbourhood components
    analysis (Goldberger et al. 2004, equation 3) on cosines. It is the kNN vote without the rounding of each image to
    right or wrong, which is most of the noise where there are few. Of 48 estimators tried on the first 23 CIFAR-10 runs
    (nearest class mean, ridge regression, margins, log-likelihoods; as they are, centred, whitened; by accuracy or
    probability) none ranked clearly better at any number of labels.
    """
    cosine = unit(features) @ unit(features).T
    np.fill_diagonal(cosine, -np.inf)
    classes = np.eye(int(labels.max()) + 1)[labels]  # (m, C)
    k = max(1, min(20, int(np.bincount(labels).max()) - 1))
    nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]  # (m, k)
    weights = np.exp((np.take_along_axis(cosine, nearest, 1) - 1) / 0.07)
    right = (weights[:, :, None] * classes[nearest]).sum(1).argmax(1) == labels
    votes = np.exp((cosine - 1) / 0.2)
    share = (votes @ classes)[np.arange(len(labels)), labels] / votes.sum(1)
    return {"few_knn": float(right.mean()), "few_soft": float(share.mean())}


# ---------------------------------------------------------------- all scores of a run


def epoch_scores(f: dict[str, Array], epoch: int, labels: dict[str, Array]) -> dict[str, float | None]:
    """Every score of the features after one epoch."""
    import torch

    from phenoscape_tune.evaluate import knn, label_free, probe

    bank, val = (f[name][epoch].astype(np.float32) for name in ("bank", "val"))
    n = len(val)
    views = {k: f[f"view_{k}"][epoch].astype(np.float32).reshape(-1, n, val.shape[1]) for k in REFERENCES}
    moderate, pair = views["moderate"], views["moderate"][:2]
    turned = f["view_rotations"][epoch].astype(np.float32).reshape(-1, n, val.shape[1])

    def contrast(x: Array, temperature: float = label_free.TEMPERATURE) -> float:
        return label_free.reference_contrast(torch.as_tensor(x), temperature)

    tensors = torch.as_tensor(bank), torch.as_tensor(labels["bank"]), torch.as_tensor(val)
    scores: dict[str, float | None] = {
        "knn": knn.balanced_accuracy(knn.predict(*tensors).numpy(), labels["val"]),
        "probe_val": knn.balanced_accuracy(probe.predict(*tensors).numpy(), labels["val"]),
        **{f"contrast_{k}": contrast(v[:2]) for k, v in views.items()},
        **{f"contrast_t{t:g}": contrast(pair, t) for t in (0.1, 0.5)},
        "contrast_pairs": float(np.mean([contrast(moderate[list(p)]) for p in combinations(range(len(moderate)), 2)])),
        "contrast_white": contrast(whiten(pair)),
        **{f"retrieval_{k}": label_free.retrieval_accuracy(torch.as_tensor(v[:2])) for k, v in views.items()},
        "neighbours": neighbour_agreement(pair),
        "rotation": rotation_accuracy(np.stack([val, *turned])),
        "lidar": label_free.lidar(torch.as_tensor(moderate)),
        "rankme": label_free.rankme(tensors[2]),
        "uniformity": label_free.uniformity(tensors[2]),
        "alignment": label_free.alignment(torch.as_tensor(pair)),
        "feature_std": label_free.feature_std(tensors[2]),
        **spectrum_scores(val),
        **cluster_scores(bank, pair),
    }  # fmt: skip
    together, their_labels = np.concatenate([bank, val]), np.concatenate([labels["bank"], labels["val"]])
    for count in FEW:
        for draw in range(DRAWS):
            chosen = draw_few(their_labels, count, draw)
            for name, value in few_label_scores(together[chosen], their_labels[chosen]).items():
                scores[f"{name}{count}_{draw}"] = rounded(value, 3)
    return scores


def final_probe(f: dict[str, Array], labels: dict[str, Array]) -> dict[str, float]:
    """Accuracy and balanced accuracy on the test part of the linear probe trained on the training part."""
    import torch

    from phenoscape_tune.evaluate import knn, probe

    train, test = (torch.as_tensor(f[name].astype(np.float32)) for name in ("train", "test"))
    if not (torch.isfinite(train).all() and torch.isfinite(test).all()):  # diverged: as good as a guess
        return dict.fromkeys(("probe", "probe_balanced"), 1 / len(np.unique(labels["test"])))
    predicted = probe.predict(train, torch.as_tensor(labels["train"]), test).numpy()
    return {
        "probe": float((predicted == labels["test"]).mean()),
        "probe_balanced": knn.balanced_accuracy(predicted, labels["test"]),
    }


def rounded(value: float | None, digits: int = 4) -> float | None:
    """That many significant digits; None where there is no finite number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def score_run(study: str, index: int, path: Path) -> dict[str, Any]:
    """The table's line for one recorded run."""
    with np.load(path) as archive:
        f = {name: archive[name] for name in archive.files}
    labels = {name: f[f"labels_{name}"] for name in ("train", "val", "test", "bank")}
    epochs = len(f["seconds"])
    finite = np.all([np.isfinite(v).reshape(len(v), -1).all(1) for k, v in f.items() if k in NEEDED], axis=0)
    series = [epoch_scores(f, epoch, labels) if finite[epoch] else {} for epoch in range(epochs + 1)]
    scores = {name: [rounded(row.get(name)) for row in series] for name in series[0]}
    scores |= {name: [None, *map(rounded, f[name])] for name in ("val_loss", "train_loss")}
    return {
        "study": study,
        "index": index,
        "configuration": {
            key: rounded(value) if isinstance(value, float) else value
            for key, value in configurations(STUDIES[study])[index].items()
        },
        "epochs": epochs,
        "seconds": round(float(np.nanmedian(f["seconds"])), 2),
        **{name: round(value, 4) for name, value in final_probe(f, labels).items()},
        "scores": scores,
    }


def read_table(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def score(scratch: Path, table: Path) -> None:
    """Append the runs that are recorded and not in the table yet."""
    import torch

    torch.set_num_threads(1)
    done = {(row["study"], row["index"]) for row in read_table(table)}
    planned = [(name, index) for name, study in STUDIES.items() for index in range(study.configurations)]
    paths = {run: scratch / f"{run[0]}-{run[1]:03d}.npz" for run in planned}
    waiting = [run for run in planned if paths[run].exists() and run not in done]
    table.parent.mkdir(parents=True, exist_ok=True)
    for number, (study, index) in enumerate(waiting, start=1):
        started = time.perf_counter()
        line = json.dumps(score_run(study, index, paths[study, index]), separators=(",", ":"))
        with table.open("a") as file:
            file.write(line + "\n")
        seconds = time.perf_counter() - started
        print(f"{number}/{len(waiting)} {study} {index} in {seconds:.1f} s", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- what follows from the table


class Results:
    """The runs of one study (R), their probe accuracy (R,), and a search's view of every score at an epoch."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows
        for scores in (row["scores"] for row in rows):
            for name, parts in COMBINED.items():
                together = zip(*(scores[part] for part in parts), strict=True)
                scores[name] = [None if None in values else float(np.mean(values)) for values in together]
        self.epochs = rows[0]["epochs"]
        self.probe = np.array([row["probe"] for row in rows])
        self.batch = np.array([row["configuration"]["batch_size"] for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def rung(self, part: float) -> int:
        return max(1, round(part * self.epochs))

    def values(self, name: str, part: float) -> Array:
        """The mean of the last three evaluations up to the rung, larger is better, -inf where one is missing; (R,)."""
        last = self.rung(part)
        window = [row["scores"][name][max(1, last - AVERAGED + 1) : last + 1] for row in self.rows]
        sign = -1 if name.startswith(LOWER_IS_BETTER) else 1
        return np.array([-np.inf if None in w else sign * np.mean(w) for w in window])

    def only(self, keep: Array) -> Results:
        return Results([row for row, kept in zip(self.rows, keep, strict=True) if kept])


def spearman(a: Array, b: Array) -> Array:
    """Rank correlation along the last axis, ties at their mean rank; nan where one does not vary."""
    a, b = (rankdata(x, axis=-1) for x in (a, b))
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)


def resampled(size: int) -> Array:
    """Bootstrap draws (RESAMPLES, size) of configurations, the same for every score, so that scores compare paired."""
    return np.random.default_rng(0).integers(0, size, (RESAMPLES, size))


def interval(values: Array) -> str:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"{low:+.2f}, {high:+.2f}"


def variants(results: Results) -> dict[str, list[str]]:
    """Score names of the table; the draws of few labels, whose results are averaged, under one name."""
    names: dict[str, list[str]] = {}
    for name in results.rows[0]["scores"]:
        names.setdefault(name.rpartition("_")[0] if name.startswith("few_") else name, []).append(name)
    return names


def averaged(results: Results, names: Sequence[str], measure: Callable[[Array], Any], part: float) -> Any:
    """Mean over the variants of a score of what `measure` says of its values at a rung."""
    return np.mean([measure(results.values(name, part)) for name in names], axis=0)


def agreement(results: Results, names: Sequence[str], part: float) -> float:
    """Rank correlation of a score at a rung with the final probe."""
    return float(averaged(results, names, lambda x: spearman(x, results.probe), part))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ranking_table(results: Results, rungs: Sequence[float]) -> str:
    """Each score's rank correlation with the final probe at the rungs, and what its pick is worth; best first."""
    draws, probe, first = resampled(len(results)), results.probe, rungs[min(1, len(rungs) - 1)]
    better = probe >= np.median(probe)

    def bootstrap(x: Array) -> Array:
        return spearman(x[draws], probe[draws])

    references = {part: bootstrap(results.values("contrast_moderate", part)) for part in (first, rungs[-1])}
    lines = []
    for name, columns in variants(results).items():
        at = [agreement(results, columns, part) for part in rungs]
        cells = [f"{value:+.2f}" for value in at]
        for part in (first, rungs[-1]):
            sample = averaged(results, columns, bootstrap, part)
            pick = averaged(results, columns, lambda x: probe[x.argmax()], part)
            half = averaged(results, columns, lambda x: spearman(x[better], probe[better]), part)
            ahead = sample - references[part]
            cells += [interval(sample), interval(ahead), f"{pick:.3f}", f"{probe.max() - pick:.3f}", f"{half:+.2f}"]
        lines.append((at[-1] + at[min(1, len(at) - 1)], [name, *cells]))
    details = [f"{what} at {part:.0%}" for part in (first, rungs[-1]) for what in
               ("interval", "minus contrast_moderate", "its pick", "regret", "better half")]  # fmt: skip
    lines.sort(key=lambda line: -np.nan_to_num(line[0], nan=-9))
    return markdown(
        ["score", *(f"{part:.0%} ({results.rung(part)})" for part in rungs), *details], [c for _, c in lines]
    )


def fixed_batch_table(studies: dict[str, Results], rungs: Sequence[float]) -> str:
    """Rank correlation among configurations of one batch size: pooled studies, the mean within sizes of the others."""
    groups: dict[str, list[Results]] = {}
    if "cifar-batch128" in studies:
        pooled = list(studies["cifar-batch128"].rows)
        if "cifar" in studies:
            pooled += studies["cifar"].only(studies["cifar"].batch == 128).rows
        groups["batch 128, cifar"] = [Results(pooled)]
    for name, results in studies.items():
        if name != "cifar-batch128":
            sizes = [results.only(results.batch == size) for size in np.unique(results.batch)]
            groups[f"within, {name}"] = [part for part in sizes if len(part) >= 4]
    groups = {name: parts for name, parts in groups.items() if parts}
    if not groups:
        return ""
    lines = []
    for name, columns in variants(next(iter(groups.values()))[0]).items():
        values = [
            np.nanmean([agreement(r, columns, part) for r in parts]) for parts in groups.values() for part in rungs[1:]
        ]
        lines.append((float(np.mean(values)), [name, *(f"{v:+.2f}" for v in values)]))
    lines.sort(key=lambda line: -np.nan_to_num(line[0], nan=-9))
    header = [f"{k} ({sum(map(len, p))}) {part:.0%}" for k, p in groups.items() for part in rungs[1:]]
    return markdown(["score", *header], [cells for _, cells in lines])


def reference_table(results: Results) -> str:
    """Rank correlations of the reference augmentations' scores at the end: with each other, the probe, the keys.

    What ranks as the probe does follows a key (transforms.cj_strength) as much as the probe does, not more.
    """
    names = [name for name in variants(results) if name.startswith(("contrast_", "retrieval_"))]
    others = {f"contrast_{name}": results.values(f"contrast_{name}", 1.0) for name in REFERENCES}
    others["probe"] = results.probe
    for key in results.rows[0]["configuration"]:
        others[key.removeprefix("transforms.")] = np.array([row["configuration"][key] for row in results.rows])
    lines = [
        [name, *(f"{spearman(own, other):+.2f}" for other in others.values())]
        for name, own in [*((name, results.values(name, 1.0)) for name in names), ("probe", results.probe)]
    ]
    return markdown(["", *others], lines)


def print_tables(table: Path, rungs: Sequence[float]) -> None:
    rows = sorted(read_table(table), key=lambda row: (row["study"], row["index"]))
    compared = [name for name, study in STUDIES.items() if not study.repeated]
    studies = {s: Results(chosen) for s in compared if len(chosen := [r for r in rows if r["study"] == s]) >= 4}
    for name, results in studies.items():
        quartiles = ", ".join(f"{q:.3f}" for q in np.quantile(results.probe, [0, 0.25, 0.5, 0.75, 1]))
        print(f"## {name}: {len(results)} configurations, {results.epochs} epochs\n")
        print(f"Probe accuracy, minimum, quartiles, maximum: {quartiles}. Rank correlation with it:\n")
        print(ranking_table(results, rungs))
        print("Reference augmentations at the end, against each other, the probe and the searched keys:\n")
        print(reference_table(results))
    print("## At a fixed batch size\n")
    print(fixed_batch_table(studies, rungs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step, about in (("score", "scores of the recorded runs"), ("table", "what follows from the scores")):
        sub = steps.add_parser(step, help=about)
        sub.add_argument("--table", type=Path, default=TABLE)
        if step == "score":
            sub.add_argument("--scratch", type=Path, required=True, help="folder of learning_curves.py")
        else:
            sub.add_argument("--rungs", type=float, nargs="+", default=RUNGS, help="shares of a run's epochs")
    args = parser.parse_args()
    if args.step == "score":
        score(args.scratch, args.table)
    else:
        print_tables(args.table, args.rungs)


if __name__ == "__main__":
    main()
