"""What a trial costs in a long search, of 10, 100 and 1,000 trials: wall time, the driver's memory, the output folder.

Every trial does nothing but report three epochs; what is measured is the search itself (sampler, journal, early
stopping, leaderboard) and Ray Tune under it, one trial at a time. Each size runs in a process of its own with a Ray of
its own. The ratio of the largest to the next size's time a trial is the claim: a search must not slow down as it grows.

    python benchmarks/many_trials.py [--sizes 10 100 1000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

RESULTS = record.RESULTS / "many_trials.json"
EPOCHS = 3


def trivial_trial(task: dict[str, Any]) -> None:
    """A trial whose training function only reports; the objective is best in the middle of the range."""
    import math

    from ray import tune

    from phenoscape_tune.training.launch import run_in_process

    def train() -> None:
        best = -abs(math.log10(task["hparams"]["lr"]) + 3) - abs(task["hparams"]["temperature"] - 0.2)
        for epoch in range(1, EPOCHS + 1):
            tune.report({"epoch": epoch, "objective": best + epoch / 100, "seconds": 0.0})

    run_in_process(train, task["name"])


def measure(trials: int) -> dict[str, Any]:
    """Run one search of so many trials in this process."""
    from phenoscape_tune.config import build_config
    from phenoscape_tune.evaluate.objective import METRICS
    from phenoscape_tune.search.cluster import start_ray
    from phenoscape_tune.search.conductor import Conductor, Task
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.plan import make_plan
    from phenoscape_tune.search.runner import run_search
    from phenoscape_tune.search.space import build_space
    from phenoscape_tune.search.study import Study

    handed_out: list[float] = []

    class Timed(Conductor):
        def next_task(self) -> Task | None:
            task = super().next_task()
            if task is not None:
                handed_out.append(time.perf_counter())
            return task

    start_ray(1, verbose=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        space = build_space({
            "parameters": {
                "lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1},
                "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
            },
            "order": "joint", "budget": {"trials": trials}, "confirm": None,
            "scheduler": {"grace_epochs": 1, "reduction_factor": 3},
        })  # fmt: skip
        plan = make_plan(space, build_config({"warmup_epochs": 0}), EPOCHS, folder, METRICS["knn_accuracy"])
        conductor = Timed(plan, Study(folder / "study.journal", space.parameters, seed=0))
        before, cpu_before = record.process_memory(), time.process_time()
        with Display(conductor, quiet=True, concurrent=1) as display:
            done = run_search(conductor, display, concurrent=1, cpus=1, gpus=0.0, trial=trivial_trial)
        ended, cpu = time.perf_counter(), time.process_time()
        after = record.process_memory()
        records = conductor.records()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        journal = (folder / "study.journal").stat().st_size
    # The first trial starts the actor's process and imports torch there.
    return {
        "trials": len(records),
        "done": done,
        "ended": {status: [r.status for r in records].count(status) for status in sorted({r.status for r in records})},
        "seconds_a_trial": (ended - handed_out[1]) / (len(handed_out) - 1),
        "driver_cpu_seconds_a_trial": (cpu - cpu_before) / len(records),
        "driver_mib_before": before / 2**20,
        "driver_mib_after": after / 2**20,
        "driver_kib_a_trial": (after - before) / 2**10 / len(records),
        "folder_bytes": size,
        "journal_bytes": journal,
        "seconds_of_each_100": [
            handed_out[at + 100] - handed_out[at] for at in range(1, len(handed_out) - 100, 100)
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="trials of each search")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    measured = []
    for size in args.sizes:
        # In a process of its own: memory and Ray's state of one size must not colour the next.
        command = [sys.executable, __file__, "--one", str(size)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        measured.append(found)
        print(f"{found['trials']} trials {found['ended']}: {1000 * found['seconds_a_trial']:.0f} ms a trial "
              f"({1000 * found['driver_cpu_seconds_a_trial']:.0f} ms of the driver's processor time); driver "
              f"{found['driver_mib_before']:.0f} -> {found['driver_mib_after']:.0f} MiB; folder "
              f"{found['folder_bytes'] / 2**20:.2f} MiB, journal {found['journal_bytes'] / 2**20:.2f} MiB",
              flush=True)  # fmt: skip
    result = {**record.describe(), "sizes": measured}
    if len(measured) > 1:
        result["ratio"] = measured[-1]["seconds_a_trial"] / measured[-2]["seconds_a_trial"]
        sizes = f"{measured[-1]['trials']} against {measured[-2]['trials']} trials"
        print(f"time a trial, {sizes}: {result['ratio']:.2f}")
    record.append(args.results, result)


if __name__ == "__main__":
    main()
