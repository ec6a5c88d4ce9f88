"""Records real learning curves: the evidence for a search's objective, and the table that searches are replayed on.

Trains SimCLR encoders with the project's own training steps on quasi-random configurations over learning rate,
temperature, batch size, jitter and crop. After every epoch the backbone's features of fixed held-out images go to
`--scratch`; `benchmarks/objectives.py` turns them into scores, so that a new score needs no new training. Several
processes may run at once; a run that is there already is skipped, so the recording can be stopped and started again.

    python benchmarks/learning_curves.py --study cifar --data cifar/train --scratch curves
    python benchmarks/learning_curves.py --study cifar-long --data cifar-long --scratch curves
    python benchmarks/learning_curves.py --study cifar-long-seeds --data cifar-long --scratch curves
    python benchmarks/learning_curves.py --study fashion --data fashion --scratch curves

cifar-long-seeds trains four configurations of cifar-long again, twice each: what a fresh seed changes. The images
of both are those of CIFAR-10's training part that are numbered 1000 to 1499 in each class.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

BATCH_SIZES = (32, 64, 128, 256)
TEMPERATURE, JITTER, CROP = (0.05, 0.5), (0.0, 1.0), (0.05, 0.8)
ROTATIONS = 3  # quarter turns beside the upright image
FRESH_SEEDS = 1000  # above any index
BANK = 1000  # training images whose features are kept after every epoch: the neighbours of the kNN score

# The settings of the fixed reference views; whatever is not named is the guide's default.
REFERENCES: dict[str, dict[str, float]] = {
    "moderate": {"cj_strength": 0.5, "min_scale": 0.2},
    "weak": {"cj_strength": 0.2, "min_scale": 0.5},
    "strong": {"cj_strength": 1.0, "min_scale": 0.08},
    "crop": {"cj_prob": 0.0, "random_gray_scale": 0.0, "gaussian_blur": 0.0, "min_scale": 0.2},
}
VIEWS = {"moderate": 4}  # two of the others


@dataclass(frozen=True)
class Study:
    """One set of configurations on one set of images."""

    configurations: int
    epochs: int
    base: dict[str, Any]
    batch_size: int | None = None  # None: varied
    seed: int = 0
    lr: tuple[float, float] = (3e-5, 3e-2)
    repeated: tuple[int, ...] = ()  # only these points of the sequence, over and over, each time with a fresh seed

    def training_seed(self, index: int) -> int:
        """Of the run `index`: none has another's, nor that of the run that it repeats."""
        return FRESH_SEEDS + index if self.repeated else index


_SMALL = {"input_size": 32, "val_fraction": 0.08, "test_fraction": 0.4}
STUDIES = {
    "cifar": Study(64, 20, _SMALL),
    "cifar-batch128": Study(32, 20, _SMALL, 128, seed=1),
    "cifar-long": Study(96, 32, {**_SMALL, "test_fraction": 0.2}, seed=4, lr=(1e-5, 1e-1)),
    "cifar-long-seeds": Study(
        8, 32, {**_SMALL, "test_fraction": 0.2}, seed=4, lr=(1e-5, 1e-1), repeated=(36, 88, 76, 44)
    ),
    "fashion": Study(48, 12, _SMALL, seed=2),
    "butterflies": Study(48, 24, {"input_size": 48, "val_fraction": 0.2, "test_fraction": 0.3}, seed=3),
}


def configurations(study: Study) -> list[dict[str, Any]]:
    """Scrambled Sobol points over the searched keys: the first n of more are the same points."""
    points = qmc.Sobol(5, scramble=True, seed=study.seed).random(256)
    low, high = np.log(study.lr)
    if study.repeated:
        points = np.resize(points[list(study.repeated)], (study.configurations, points.shape[1]))
    return [
        {
            "lr": float(np.exp(low + (high - low) * u[0])),
            "temperature": float(TEMPERATURE[0] + (TEMPERATURE[1] - TEMPERATURE[0]) * u[1]),
            "batch_size": study.batch_size or BATCH_SIZES[int(u[2] * len(BATCH_SIZES))],
            "transforms.cj_strength": float(JITTER[0] + (JITTER[1] - JITTER[0]) * u[3]),
            "transforms.min_scale": float(CROP[0] + (CROP[1] - CROP[0]) * u[4]),
        }
        for u in points[: study.configurations]
    ]


def record(study: Study, index: int, data: Path, path: Path) -> None:
    """Train configuration `index` and write its features, labels and losses to `path` (.npz)."""
    import torch

    from phenoscape_tune.augment import build_views, plain_view
    from phenoscape_tune.config import build_config
    from phenoscape_tune.data.channels import RGB
    from phenoscape_tune.data.parts import open_parts
    from phenoscape_tune.layers import merge, set_key
    from phenoscape_tune.training.device_use import DeviceUse
    from phenoscape_tune.training.evaluation import embed, validate
    from phenoscape_tune.training.loop import train_epoch
    from phenoscape_tune.training.monitor import open_monitor
    from phenoscape_tune.training.run import Diverged, RunOptions, start_run
    from phenoscape_tune.training.step_clock import StepClock

    searched: dict[str, Any] = {}
    for key, value in configurations(study)[index].items():
        set_key(searched, key, value)
    fixed = {
        **{
            "data_dir": str(data),
            "backbone": "test_resnet.r160_in1k",
            "stem": "standard",
            "seed": study.training_seed(index),
        },
        **{"max_epochs": study.epochs, "accelerator": "cpu"},
    }
    with tempfile.TemporaryDirectory() as folder:
        config = build_config(merge(merge(fixed, study.base), {**searched, "out_dir": folder}))
        parts = open_parts(config)
        run = start_run(config, torch.device("cpu"), RunOptions(), parts)
        assert parts.labels is not None
        split, size = parts.split, config.input_size
        held_out = run.batches.take(split.val)
        bank = np.random.default_rng(0).permutation(split.train)[:BANK]
        views = {}
        for name, setting in REFERENCES.items():
            reference = build_views(build_config({"input_size": size, "transforms": dict(setting)}).transforms, RGB)
            generator = torch.Generator().manual_seed(0)
            count, (height, width) = VIEWS.get(name, 2), held_out.shape[-2:]
            drawn = reference.draw(len(held_out), height, width, generator, count)
            views[name] = reference.apply(held_out, drawn)
        upright = plain_view(held_out, size)
        views["rotations"] = torch.cat([torch.rot90(upright, k + 1, (2, 3)) for k in range(ROTATIONS)])

        @torch.no_grad()
        def features(images: torch.Tensor) -> np.ndarray:
            run.encoder.eval()
            chunks = [run.encoder.features(c.contiguous(memory_format=torch.channels_last)) for c in images.split(256)]
            return torch.cat(chunks).float().numpy().astype(np.float16)

        def embedded(part: np.ndarray) -> np.ndarray:
            return embed(run, part).numpy().astype(np.float16)

        rows: dict[str, list[Any]] = {}

        def note(**values: Any) -> None:
            for key, value in values.items():
                rows.setdefault(key, []).append(value)

        def note_features() -> None:
            note(bank=embedded(bank), val=features(upright), **{f"view_{k}": features(v) for k, v in views.items()})

        clock = StepClock(DeviceUse(run.device))
        with open_monitor(run.folder, None, 0, 1) as monitor:
            note_features()  # of the untrained network
            for epoch in range(1, config.max_epochs + 1):
                run.epoch = epoch
                started = time.process_time()  # one thread: what the epoch costs, whatever else the machine does
                try:
                    loss = train_epoch(run, monitor, clock)
                    seconds = time.process_time() - started
                    note(train_loss=loss, val_loss=validate(run)["val_loss"], seconds=seconds)
                except Diverged:
                    break
                note_features()
        final = {"train": embedded(split.train), "test": embedded(split.test)}
        if missing := config.max_epochs - len(rows["seconds"]):  # diverged: no number from there on
            for values in rows.values():
                values += [np.full_like(values[-1], np.nan, dtype=np.float16)] * missing
            final = {key: np.full_like(values, np.nan) for key, values in final.items()}
        arrays = {key: np.stack(values) for key, values in rows.items()} | final
        groups = {"train": split.train, "val": split.val, "test": split.test, "bank": bank}
        arrays |= {f"labels_{name}": parts.labels[members] for name, members in groups.items()}
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        path.with_suffix(".part").rename(path)


def claimed(study: str, count: int, scratch: Path) -> Iterator[tuple[int, Path]]:
    """Runs that are neither done nor taken by another living process."""
    for index in range(count):
        path = scratch / f"{study}-{index:03d}.npz"
        lock = path.with_suffix(".lock")
        if path.exists():
            continue
        try:
            lock.touch(exist_ok=False)
        except FileExistsError:
            if Path(f"/proc/{lock.read_text() or 0}").exists():
                continue
        lock.write_text(str(os.getpid()))
        yield index, path
        lock.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True, choices=STUDIES)
    parser.add_argument("--data", required=True, type=Path, help="folder with class sub-folders")
    parser.add_argument("--scratch", required=True, type=Path, help="folder for the features, about 60 MB a run")
    parser.add_argument("--first", type=int, help="only the first N configurations")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    args.scratch.mkdir(parents=True, exist_ok=True)
    study = STUDIES[args.study]
    for index, path in claimed(args.study, args.first or study.configurations, args.scratch):
        started = time.perf_counter()
        record(study, index, args.data, path)
        took = round(time.perf_counter() - started)
        print(json.dumps({"study": args.study, "index": index, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
