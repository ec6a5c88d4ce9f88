"""What channels beyond red, green and blue are worth: the same configuration trained on fewer and on all of them.

Trains configs/multispectral.yaml on rgb_only, uv_only and full, and configs/hyperspectral.yaml on the bands rgb,
uniform:32 (without a spectral stem, and with one) and all, on the generated specimens whose species red, green and blue
tell at best in pairs; for 40 and 24 epochs. kNN balanced accuracy on the validation part, the mean of the last three
epochs as a search compares it. A run that is in the results is skipped, so it may be stopped and started again; at the
end the table is printed.

    python benchmarks/spectral_channels.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phenoscape_tune.cli.common import ensure_data
from phenoscape_tune.config import build_config
from phenoscape_tune.data.parts import open_parts
from phenoscape_tune.layers import find_file, merge, parse_overrides
from phenoscape_tune.training.loop import train_simclr
from phenoscape_tune.versions import versions
from phenoscape_tune.yaml_file import load_mapping

RESULTS = Path(__file__).parent / "results" / "spectral.jsonl"
# Configuration and what is changed in it. A spectral stem of 48 is put before more than 48 channels alone.
RUNS: list[tuple[str, dict[str, Any]]] = [
    *[("multispectral", {"channels": value}) for value in ("rgb_only", "uv_only", "full")],
    ("hyperspectral", {"bands": "rgb"}),
    ("hyperspectral", {"bands": "uniform:32"}),
    ("hyperspectral", {"bands": "uniform:32", "spectral_stem": 30}),
    ("hyperspectral", {"bands": "all"}),
]
EPOCHS = {"multispectral": 40, "hyperspectral": 24}
# What an encoder that sees red, green and blue alone can reach: species come in pairs that it cannot tell.
CEILING = 0.5


def measure(name: str, change: dict[str, Any], seed: int, overrides: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        own = {"seed": seed, "max_epochs": EPOCHS[name], "out_dir": f"{folder}/run"}
        changed = {**change, **own, **parse_overrides(overrides)}
        config = ensure_data(build_config(merge(load_mapping(find_file(name, "configs")), changed)), quiet=False)
        parts = open_parts(config)

        def tell(row: dict[str, Any]) -> None:
            print(f"{name} {change} seed {seed} epoch {row['epoch']} {row['objective']:.3f}", flush=True)

        started, processor = time.perf_counter(), time.process_time()
        rows = train_simclr(config, tell, parts=parts)
        return {
            **{"config": name, "change": change, "seed": seed, "channels": parts.channels},
            **{"objective": round(rows[-1]["objective_mean"], 4), "error": round(rows[-1]["objective_error"], 4)},
            "curve": [round(row["objective"], 4) for row in rows],
            "images": {part: len(getattr(parts.split, part)) for part in ("train", "val")},
            "settings": {k: v for k, v in config.given().items() if k not in ("data_dir", "out_dir")},
            "seconds": round(time.perf_counter() - started),
            "processor_seconds": round(time.process_time() - processor),
            **{"load": round(os.getloadavg()[0], 1), "date": f"{datetime.now(UTC):%Y-%m-%d}", "versions": versions()},
        }


def table(rows: list[dict[str, Any]]) -> str:
    """A line a run of `RUNS`: mean and standard error over the seeds."""
    lines = [
        "| configuration | change | channels | kNN balanced accuracy | seeds | processor seconds a run |",
        "| --- " * 6 + "|",
    ]
    for name, change in RUNS:
        found = [row for row in rows if (row["config"], row["change"]) == (name, change)]
        if found:
            scores = [row["objective"] for row in found]
            error = f" ± {statistics.stdev(scores) / len(scores) ** 0.5:.3f}" if len(scores) > 1 else ""
            told = ", ".join(f"{key}: {value}" for key, value in change.items())
            seconds = statistics.mean(row["processor_seconds"] for row in found)
            lines.append(
                f"| {name} | {told} | {found[0]['channels']} | {statistics.mean(scores):.3f}{error} | {len(scores)} "
                f"| {seconds:.0f} |"
            )
    return "\n".join(lines)


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["multispectral", "hyperspectral"], help="one of the two configurations")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any configuration key")
    args = parser.parse_intermixed_args()
    for seed in args.seeds:
        for name, change in RUNS:
            done = [(row["config"], row["change"], row["seed"]) for row in read(args.results)]
            if (name, change, seed) in done or args.only not in (None, name):
                continue
            row = measure(name, change, seed, args.overrides)
            with args.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(read(args.results)))
    print(f"red, green and blue alone: at most {CEILING}")


if __name__ == "__main__":
    main()
