"""Which optimiser is the better default at the guide's defaults (lr 0.001, batch 32, temperature 0.1)?

Trains SimCLR with each optimiser and several seeds on a folder of labelled images and appends one JSON line a run;
runs that are in the file already are skipped, so it can be stopped and started again.

    python benchmarks/optimizer_default.py --data cifar/train
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from phenoscape_tune.config import build_config
from phenoscape_tune.versions import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with class sub-folders")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--stem", default="standard")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "optimizer_default.jsonl")
    args = parser.parse_args()

    from phenoscape_tune.training.loop import train_simclr

    done = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    for seed in range(args.seeds):
        for optimizer in ("sgd", "adamw"):
            setting = {
                "optimizer": optimizer,
                "seed": seed,
                "epochs": args.epochs,
                "size": args.size,
                "stem": args.stem,
            }
            if any(row["setting"] == setting for row in done):
                continue
            with tempfile.TemporaryDirectory() as folder:
                config = build_config({
                    "data_dir": args.data, "out_dir": folder, "backbone": "resnet18", "input_size": args.size,
                    "stem": args.stem, "max_epochs": args.epochs, "optimizer": optimizer, "seed": seed,
                })  # fmt: skip
                rows = train_simclr(config, lambda row: None)
            result = {
                "setting": setting,
                "objective": [round(row["objective"], 4) for row in rows],
                "val_loss": [round(row["val_loss"], 4) for row in rows],
                "versions": versions(),
            }
            args.results.parent.mkdir(parents=True, exist_ok=True)
            with args.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(setting, "objective", round(rows[-1]["objective"], 4), flush=True)


if __name__ == "__main__":
    main()
