"""What trials side by side cost and bring: 1, 2, 4 and 8 of them on one machine, however few its cores.

Each number runs in a process of its own with a Ray of its own, and every trial reserves one CPU and uses one thread, as
`--concurrent` has it. Two searches each: trials that only report (what the driver and Ray cost), and real training of a
small network on packed JPEG images (images/s summed over the trials, from the moment when all of them have trained an
epoch until the first one ends). More trials than cores share the cores: there the summed rate tells what sharing costs.

Memory is the trials' processes', as Linux counts it: of pages that several processes share, each has its part (PSS).
Torch's libraries and the packed images are such pages.

    python benchmarks/concurrent_trials.py [--concurrent 1 2 4 8]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import many_images
import many_trials
import record

RESULTS = record.RESULTS / "concurrent_trials.json"
LOOK_SECONDS, START_SECONDS = 2.0, 600.0  # a look takes a process some hundredths of a second
DEFAULTS = "defaults"  # the stage of the baseline, which runs before all others, alone
PACKED = "images.npy"
Row = Mapping[str, Any]


def told_process(
    trial: Callable[[dict[str, Any]], None], folder: Path, concurrent: int
) -> Callable[[dict[str, Any]], None]:
    """The trial, which first leaves its process's number in a folder, and waits until all are ready."""

    def run(task: dict[str, Any]) -> None:
        import phenoscape_tune.training.launch
        import phenoscape_tune.training.loop  # noqa: F401 (takes seconds, which are no part of a trial)

        (folder / str(os.getpid())).touch()
        deadline = time.monotonic() + START_SECONDS
        while task["hparams"]["stage"] != DEFAULTS and len(os.listdir(folder)) < concurrent:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(os.listdir(folder))} of {concurrent} processes after {START_SECONDS:g} s")
            time.sleep(0.02)
        trial(task)

    return run


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process: rss and pss of all, packed_rss and packed_pss of the packed images. {} where it is gone."""
    found = {"rss": 0, "pss": 0, "packed_rss": 0, "packed_pss": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    packed = False
    for line in lines:
        key, _, value = line.partition(":")
        if key in ("Rss", "Pss"):
            size = int(value.split()[0]) * 1024
            found[key.lower()] += size
            if packed:
                found[f"packed_{key.lower()}"] += size
        elif "-" in key:  # the first line of a mapping: its addresses, and its file at the end
            packed = line.endswith(PACKED)
    return found


class Memory:
    """Looks at the processes whose numbers stand in a folder; keeps the look with the most processes and PSS."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.looks: list[list[dict[str, int]]] = []
        self.processor_seconds = 0.0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            look = [found for path in self._folder.iterdir() if (found := memory_of(int(path.name)))]
            self.looks.append(look)
            self.processor_seconds = time.thread_time()

    def most(self) -> dict[str, Any]:
        """MiB a process, and of all together, where the most was held."""
        if not any(self.looks):
            return {"processes": 0}
        look = max(self.looks, key=lambda look: (len(look), sum(found["pss"] for found in look)))
        told: dict[str, Any] = {"processes": len(look)}
        for key in look[0]:
            total = sum(found[key] for found in look) / 2**20
            told |= {f"{key}_mib_a_process": round(total / len(look), 1), f"{key}_mib": round(total)}
        return told


def search(
    concurrent: int, trials: int, epochs: int, config: Any, folder: Path, trial: Callable[[dict[str, Any]], None]
) -> tuple[list[tuple[float, str, Row]], dict[str, Any]]:
    """A search of the baseline and `trials` more. Every report of these (seconds, trial, row), and what the driver and
    memory did.
    """
    from phenoscape_tune.evaluate.objective import METRICS
    from phenoscape_tune.search.conductor import Conductor
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.plan import make_plan
    from phenoscape_tune.search.rungs import Rungs
    from phenoscape_tune.search.runner import run_search
    from phenoscape_tune.search.space import build_space
    from phenoscape_tune.search.study import Study

    reports: list[tuple[float, str, Row]] = []

    class Timed(Conductor):
        def report(self, name: str, row: Row) -> bool:
            if not name.startswith(f"{DEFAULTS}-"):
                reports.append((time.perf_counter(), name, row))
            return super().report(name, row)

    space = build_space({
        "parameters": {
            "lr": {"type": "loguniform", "low": 1e-4, "high": 1e-2},
            "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
        },
        "order": "joint", "budget": {"trials": trials + 1}, "confirm": None,
    })  # fmt: skip
    processes = folder / "processes"
    processes.mkdir(parents=True)
    plan = make_plan(space, config, epochs, folder, METRICS["knn_accuracy"])
    plan = replace(plan, rungs=Rungs(epochs, 3, epochs))  # all run to the end
    conductor = Timed(plan, Study(folder / "study.journal", space.parameters, seed=0))
    with Memory(processes) as memory, Display(conductor, quiet=True, concurrent=concurrent) as display:
        cpu = time.process_time()
        own = told_process(trial, processes, concurrent)
        assert run_search(conductor, display, concurrent=concurrent, cpus=1, gpus=0.0, trial=own)
        cpu = time.process_time() - cpu - memory.processor_seconds
    ended = [record.status for record in conductor.records()]
    assert ended == ["completed"] * (trials + 1), f"trials ended as {ended}"
    return reports, {"trials": trials, "driver_cpu_seconds_a_trial": cpu / (trials + 1), "memory": memory.most()}


def trials_per_second(reports: list[tuple[float, str, Row]], epochs: int) -> float:
    """Trials that ended a second, counted from the first one's end."""
    ends = sorted(at for at, _, row in reports if row["epoch"] == epochs)
    return (len(ends) - 1) / (ends[-1] - ends[0])


def images_per_second(reports: list[tuple[float, str, Row]], images: int, epochs: int) -> float:
    """Images trained on a second, all trials together, while all of them train."""
    since = max(at for at, _, row in reports if row["epoch"] == 1)
    until = min(at for at, _, row in reports if row["epoch"] == epochs)
    if until <= since:
        record.refuse(
            f"{epochs} epochs are too few here: one trial had ended before all had trained one; --epochs more"
        )
    # Of each trial the epochs within, the parts of the first and the last one included.
    done = 0.0
    for name in {name for _, name, _ in reports}:
        times = [at for at, own, _ in reports if own == name]
        for begun, ended in itertools.pairwise(times):
            within = max(0.0, min(until, ended) - max(since, begun))
            done += images * within / (ended - begun)
    return done / (until - since)


def measure(concurrent: int, images: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both searches with so many trials side by side."""
    from phenoscape_tune.config import build_config
    from phenoscape_tune.data.parts import open_parts
    from phenoscape_tune.search.cluster import start_ray
    from phenoscape_tune.search.trial import run_trial

    start_ray(concurrent, verbose=False)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        trivial = build_config({"warmup_epochs": 0})
        reports, told = search(
            concurrent, args.trials, many_trials.EPOCHS, trivial, scratch / "trivial", many_trials.trivial_trial
        )
        found: dict[str, Any] = {"concurrent": concurrent, "reporting": told}
        told["trials_per_second"] = trials_per_second(reports, many_trials.EPOCHS)
        if args.epochs:
            config = build_config({
                "data_dir": str(images), "cache_dir": str(images.parent / "cache"), "backbone": "test_resnet.r160_in1k",
                "stem": "standard", "input_size": 64, "batch_size": 64, "warmup_epochs": 0, "num_workers": 1,
                "accelerator": "cpu",
            })  # fmt: skip
            training = len(open_parts(config).split.train)  # packs, the first time
            reports, told = search(concurrent, concurrent, args.epochs, config, scratch / "real", run_trial)
            told["images_per_second"] = images_per_second(reports, training, args.epochs)
            told["training_images"] = training
            found["training"] = told
    return found


def tell(found: dict[str, Any], one: dict[str, Any]) -> str:
    """A line for a person; `one` is the first number's, to which the others are related."""
    reporting = found["reporting"]
    told = (
        f"{found['concurrent']} side by side: {reporting['trials_per_second']:.1f} trials/s that only report, "
        f"{1000 * reporting['driver_cpu_seconds_a_trial']:.0f} ms of the driver's processor each"
    )
    if "training" in found:
        training, memory = found["training"], found["training"]["memory"]
        share = training["images_per_second"] / one["training"]["images_per_second"]
        told += (
            f"; training {training['images_per_second']:.0f} images/s together, {share:.2f} times "
            f"{one['concurrent']}'s; {memory['pss_mib_a_process']:.0f} MiB a trial (PSS; RSS "
            f"{memory['rss_mib_a_process']:.0f}), of the packed images {memory['packed_pss_mib_a_process']:.1f} "
            f"({memory['packed_rss_mib_a_process']:.1f})"
        )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=120, help="trials that only report, for each number")
    parser.add_argument("--epochs", type=int, default=6, help="of real training; 0: none")
    parser.add_argument("--images", type=int, default=1500, help="to train on (with validation and test)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(int(args.one[0]), Path(args.one[1]), args)))
        return
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        if args.epochs:
            many_images.write_folder(images, args.images)
        for concurrent in args.concurrent:
            # In a process of its own: memory and Ray's state of one number must not colour the next.
            command = [
                *(sys.executable, __file__, "--one", str(concurrent), str(images)),
                *("--trials", str(args.trials), "--epochs", str(args.epochs)),
            ]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            measured.append(json.loads(output.splitlines()[-1]))
            print(tell(measured[-1], measured[0]), flush=True)
    result: dict[str, Any] = {**record.describe(), "numbers": measured}
    if args.epochs and len(measured) > 1:
        first, last = (found["training"]["memory"] for found in (measured[0], measured[-1]))
        extra = last["processes"] - first["processes"]
        if extra > 0:
            result["mib_an_extra_trial"] = (last["pss_mib"] - first["pss_mib"]) / extra
            print(f"each trial more holds {result['mib_an_extra_trial']:.0f} MiB more (PSS)")
    record.append(args.results, result)


if __name__ == "__main__":
    main()
