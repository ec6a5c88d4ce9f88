"""Does SimCLR learn here? kNN accuracy of trained features against an untrained network's and raw pixels', three seeds.

Trains with the project's own `train_simclr`, then classifies the test part, which neither training nor any choice saw,
by its neighbours in the training part: with this project's k=20, T=0.07 and with lightly's k=200, T=0.1. A seed that
is in the results is skipped, so it may be stopped and started again.

    python benchmarks/learns.py --data cifar/train --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phenoscape_tune.config import build_config
from phenoscape_tune.data.parts import Parts, open_parts
from phenoscape_tune.evaluate import knn
from phenoscape_tune.layers import parse_overrides
from phenoscape_tune.training.evaluation import embed
from phenoscape_tune.training.launch import launch
from phenoscape_tune.training.run import RunOptions, start_run
from phenoscape_tune.versions import versions

RESULTS = Path(__file__).parent / "results" / "learns.jsonl"
VOTES = {"k=20, T=0.07": (20, 0.07), "k=200, T=0.1": (200, 0.1)}
SETTINGS: dict[str, Any] = {
    **{"backbone": "test_resnet.r160_in1k", "stem": "standard", "input_size": 32, "accelerator": "auto"},
    **{
        "lr": 0.004,
        "batch_size": 64,
        "temperature": 0.125,
        "max_epochs": 60,
        "val_fraction": 0.1,
        "test_fraction": 0.2,
    },
    **{"transforms": {"cj_strength": 0.4, "min_scale": 0.3}},
}


def accuracies(bank: Tensor, test: Tensor, parts: Parts) -> dict[str, float]:
    """Accuracy of each vote on the test part; bank (N, D) of the training part, test (n, D)."""
    assert parts.labels is not None
    known, wanted = (parts.labels[part] for part in (parts.split.train, parts.split.test))
    found = {}
    for name, (k, temperature) in VOTES.items():
        predicted = knn.predict(bank.cpu(), torch.from_numpy(known), test.cpu(), k=k, tau=temperature)
        found[name] = round(float((predicted.numpy() == wanted).mean()), 4)
    return found


def pixels(parts: Parts) -> tuple[Tensor, Tensor]:
    """Pixels of the training and the test part (n, C·S·S) minus the training part's mean."""
    train, test = (
        torch.from_numpy(parts.images.pixels[part]).flatten(1).float() for part in (parts.split.train, parts.split.test)
    )
    return train - train.mean(0), test - train.mean(0)


def measure(data: Path, seed: int, overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        values = {
            **SETTINGS,
            "data_dir": str(data),
            "seed": seed,
            "out_dir": f"{folder}/run",
            **parse_overrides(overrides),
        }
        config = build_config(values)
        parts = open_parts(config)
        device = torch.device("cuda" if torch.cuda.is_available() and config.accelerator != "cpu" else "cpu")
        untrained = start_run(config.model_copy(update={"out_dir": f"{folder}/random"}), device, RunOptions(), parts)
        random = accuracies(embed(untrained, parts.split.train), embed(untrained, parts.split.test), parts)
        started = time.perf_counter()
        launch(
            config,
            lambda row: print(f"seed {seed} epoch {row['epoch']} {row['objective']:.3f}", flush=True),
            None,
            parts,
        )
        seconds = time.perf_counter() - started
        last = Path(config.out_dir) / "checkpoints" / "last.ckpt"
        trained = start_run(config, device, RunOptions(resume=last), parts)
        found = accuracies(embed(trained, parts.split.train), embed(trained, parts.split.test), parts)
        changed = {key: value for key, value in values.items() if key not in ("data_dir", "out_dir")}
        return {
            **{"seed": seed, "trained": found, "untrained": random, "pixels": accuracies(*pixels(parts), parts)},
            **{"images": {"train": len(parts.split.train), "test": len(parts.split.test)}, "settings": changed},
            **{"seconds": round(seconds), "device": str(device), "date": f"{datetime.now(UTC):%Y-%m-%d}"},
            "versions": versions(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with class sub-folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key")
    args = parser.parse_intermixed_args()
    known = args.results.read_text().splitlines() if args.results.exists() else []
    done = {(row["seed"], json.dumps(row["settings"].get("backbone"))) for row in map(json.loads, known)}
    for seed in args.seeds:
        backbone = {**SETTINGS, **parse_overrides(args.overrides)}["backbone"]
        if (seed, json.dumps(backbone)) in done:
            continue
        row = measure(args.data, seed, args.overrides)
        with args.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
