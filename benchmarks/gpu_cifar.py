"""CIFAR-10 on one GPU, by the project's own commands: 32 trials in ten minutes, then the winner, 200 epochs.

The search (scripts/tune.py, gpu_cifar_space.yaml, gpu_cifar.yaml) sees 1,000 images of each class and stops by itself
after ten minutes, confirmation included. Its winner is trained (scripts/train.py) on 98 % of the training images; then
the test images, which nothing has seen, are classified by their neighbours among those: by this project's k=20, T=0.07
and by lightly's k=200, T=0.1. Reference, ResNet-18 with a 3x3 stem after 200 epochs of SimCLR: 0.828 to 0.848
(lightly's tables, k=200, T=0.1, best epoch; here it is the last).

    python benchmarks/gpu_cifar.py --data cifar [--out outputs/gpu-cifar] [--small]

--data has train/<class>/ and test/<class>/. What was interrupted goes on where it was with the same command. --small
goes the same way with few images, a tiny network and few epochs, on the CPU: it shows that the script works, no more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import record

from phenoscape_tune.files import write_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RESULTS = record.RESULTS / "gpu_cifar.json"
HERE = Path(__file__).parent
SECONDS = "seconds.json"
VOTES = {"k=20, T=0.07": (20, 0.07), "k=200, T=0.1": (200, 0.1)}
REFERENCE = {"from": 0.828, "to": 0.848, "what": "lightly's tables, 200 epochs, k=200, T=0.1, best epoch"}
TINY = ("backbone=test_resnet.r160_in1k", "stem=standard", "batch_size=32", "lr=0.03", "accelerator=cpu")


@dataclass(frozen=True)
class Size:
    """How much of it is done.

    Attributes:
        search_images, train_images, test_images: of each class, at most.
        trials, trial_epochs: of the search; hours: after which it ends.
        epochs: of the winner.
        overrides: keys of the configuration.
    """

    search_images: int = 1000
    train_images: int = 5000
    test_images: int = 1000
    trials: int = 32
    trial_epochs: int = 12
    hours: float = 1 / 6
    epochs: int = 200
    overrides: tuple[str, ...] = ()


FULL = Size()
SMALL = Size(20, 40, 20, trials=5, trial_epochs=3, hours=0.25, epochs=3, overrides=TINY)


def link_part(source: Path, target: Path, most: int) -> Path:
    """A folder of links to the first `most` images of each class of another one."""
    for own in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / own.name).mkdir(parents=True, exist_ok=True)
        for image in sorted(own.iterdir())[:most]:
            link = target / own.name / image.name
            if not link.is_symlink():
                link.symlink_to(image.resolve())
    return target


def seconds_taken(out: Path) -> dict[str, float]:
    """By script, what its commands in `out` have taken so far; nothing where that was not told."""
    kept = out / SECONDS
    return dict(json.loads(kept.read_text(encoding="utf-8"))) if kept.exists() else {}


def run_command(out: Path, script: str, *words: str) -> float:
    """One of the project's commands. Ends this script with its exit code where that is not 0.

    Returns the seconds that the command has taken, with what it took before it was interrupted (out/seconds.json).
    """
    command = [sys.executable, str(HERE.parent / "scripts" / script), *words]
    print("$ python", " ".join([f"scripts/{script}", *words]), flush=True)
    taken = seconds_taken(out)
    before, started = taken.get(script, 0.0), time.monotonic()
    running = subprocess.Popen(command)
    code: int | None = None
    while code is None:  # told every second: this script may itself be ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = running.wait(timeout=1)
        taken[script] = round(before + time.monotonic() - started, 1)
        write_whole(out / SECONDS, json.dumps(taken))
    if code:
        raise SystemExit(code)
    return taken[script]


def search(data: Path, folder: Path, size: Size) -> dict[str, Any]:
    """Search, or go on with the search; what it found, and how long all of it took."""
    if (folder / "summary.json").is_file():  # done before
        seconds = seconds_taken(folder.parent).get("tune.py")
    elif (folder / "search.yaml").is_file():
        seconds = run_command(folder.parent, "tune.py", "--resume", "--out", str(folder))
    else:
        seconds = run_command(
            folder.parent, "tune.py", "--space", str(HERE / "gpu_cifar_space.yaml"),
            "--config", str(HERE / "gpu_cifar.yaml"), "--out", str(folder),
            "--trials", str(size.trials), "--max-epochs", str(size.trial_epochs), "--hours", f"{size.hours:.4f}",
            f"data_dir={data}", *size.overrides,
        )  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    told = {key: summary[key] for key in ("objective", "baseline", "winner", "gain", "gain_ci95", "stages", "budget")}
    return {"command_seconds": seconds, **told}


def train(best: Path, data: Path, folder: Path, size: Size) -> dict[str, Any]:
    """Train the winner, or go on with it."""
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        seconds = run_command(folder.parent, "train.py", "--resume", str(last))
    else:
        # A start that was interrupted before its first epoch was saved leaves a folder that is begun anew.
        seconds = run_command(
            folder.parent, "train.py", "--config", str(best), "--overwrite", f"data_dir={data}", f"out_dir={folder}",
            f"max_epochs={size.epochs}", "val_fraction=0.02", "test_fraction=0",
        )  # fmt: skip
    return {"command_seconds": seconds}


def neighbours(run_folder: Path, test: Path, device: torch.device) -> dict[str, Any]:
    """Accuracy of each vote on the test images, among the training images of a run, by its last epoch."""
    import torch

    from phenoscape_tune.data.parts import Parts, open_parts
    from phenoscape_tune.evaluate import knn
    from phenoscape_tune.layers import load_config
    from phenoscape_tune.training import checkpoint
    from phenoscape_tune.training.evaluation import embed
    from phenoscape_tune.training.run import RunOptions, start_run

    last = run_folder / "checkpoints" / "last.ckpt"
    config = load_config(str(run_folder / "config.yaml"))

    def features(parts: Parts, part: Any, data_dir: str) -> Tensor:
        with tempfile.TemporaryDirectory() as scratch:  # where a run writes its configuration
            own = config.model_copy(update={"data_dir": data_dir, "out_dir": scratch})
            return embed(start_run(own, device, RunOptions(resume=last), parts), part).cpu()

    known = open_parts(config)
    asked = open_parts(config.model_copy(update={"data_dir": str(test), "val_fraction": 0.1}))
    assert known.labels is not None and asked.labels is not None and known.classes == asked.classes
    bank = features(known, known.split.train, str(config.data_dir))
    queries = features(asked, range_of(len(asked.labels)), str(test))
    labels = torch.from_numpy(known.labels[known.split.train])
    accuracy = {
        name: round(float((knn.predict(bank, labels, queries, k=k, tau=tau).numpy() == asked.labels).mean()), 4)
        for name, (k, tau) in VOTES.items()
    }
    rows = checkpoint.load(last).history
    return {
        "knn_accuracy": accuracy,
        "images": {"training": len(bank), "test": len(queries)},
        "epochs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "images_per_second": round(float(rows[-1]["images_per_second"])),
    }


def range_of(count: int) -> Any:
    """All of so many images."""
    import numpy as np

    return np.arange(count)


def check_data(folder: Path) -> None:
    """End the script where a folder is no CIFAR-10 in two parts."""
    for part in ("train", "test"):
        if not (folder / part).is_dir() or len([own for own in (folder / part).iterdir() if own.is_dir()]) < 2:
            record.refuse(
                f"--data {folder}: has no sub-folder {part} with a folder for each class; unpack cifar10.tar.gz there"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--out", type=Path, help="folder of search and run (default: outputs/gpu-cifar[-small])")
    parser.add_argument("--small", action="store_true", help="show on the CPU that the script works")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/; with --small in --out")
    args = parser.parse_args()
    check_data(args.data)
    if not args.small:
        record.need_gpu()
    import torch

    size, device = (SMALL, torch.device("cpu")) if args.small else (FULL, torch.device("cuda"))
    out = (args.out or Path("outputs") / ("gpu-cifar-small" if args.small else "gpu-cifar")).absolute()
    os.environ.setdefault("PHENOSCAPE_CACHE", str(out / "cache"))
    searched = link_part(args.data / "train", out / "search-images", size.search_images)
    trained = link_part(args.data / "train", out / "training-images", size.train_images)
    tested = link_part(args.data / "test", out / "test-images", size.test_images)
    found = {"search": search(searched, out / "search", size)}
    found["training"] = train(out / "search" / "best.yaml", trained, out / "winner", size)
    found["winner"] = neighbours(out / "winner", tested, device)
    told = ", ".join(f"{value:.3f} by {name}" for name, value in found["winner"]["knn_accuracy"].items())
    used = found["search"]["budget"]["used"]
    print(f"search: {json.dumps(used)}; winner after {found['winner']['epochs']} epochs: kNN accuracy {told}")
    what = "small, on the CPU: the script works, and no more" if args.small else "full"
    results = args.results or (out / RESULTS.name if args.small else RESULTS)
    record.append(results, {**record.describe(device), "what": what, "reference": REFERENCE, **found})
    print(f"appended to {results}")


if __name__ == "__main__":
    main()
