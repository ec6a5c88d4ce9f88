"""How ranks of a trial start and end: this project's rank group against a worker group of Ray Train, in one run.

Every trial is a Tune function with two CPU ranks in a gloo process group; they report until Tune's scheduler stops the
trial at its third report. Ours: the ranks are processes of the trial itself, on what it has reserved. Worker group:
TorchTrainer(ScalingConfig(num_workers=2)) with TuneReportCallback within the Tune function, as Ray documents it.

Measured: seconds from the call in the Tune function to the first report; and from the scheduler's decision until the
ranks' processes, and the worker group's placement group, are gone. Every wait has a deadline.

    python benchmarks/rank_start.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import record

RANKS = 2
STOP_AT = 3  # reports of a trial before it is stopped
MOST = 600  # reports of a trial that nobody stops
INTERVAL = 0.2  # seconds between reports
POLL = 0.05  # seconds


def report_until_stopped(report: Callable[[dict[str, Any]], None]) -> None:
    """What every rank does, in either way of starting it."""
    import torch.distributed as dist

    for epoch in range(1, MOST + 1):
        pids: list[int] = [0] * RANKS
        dist.all_gather_object(pids, os.getpid())
        report({"epoch": epoch, "pids": pids, "told": time.time()})
        time.sleep(INTERVAL)


def be_rank(config: Any, report: Callable[[dict[str, Any]], None], options: Any) -> list[dict[str, Any]]:
    """One of our ranks: as `training.launch.train_rank`, with nothing to train."""
    from phenoscape_tune.training.launch import run_in_process

    run_in_process(lambda: report_until_stopped(report), "rank")
    return []


def our_trial(config: dict[str, Any]) -> None:
    import rank_start  # its processes import what they run by its name
    from ray import tune

    from phenoscape_tune.config import build_config
    from phenoscape_tune.training.rank_group import run_ranks
    from phenoscape_tune.training.run import RunOptions

    launched = time.time()
    resolved = build_config({"out_dir": config["folder"], "accelerator": "cpu", "devices": RANKS})
    run_ranks(resolved, lambda row: tune.report({**row, "launched": launched}), RunOptions(), RANKS, rank_start.be_rank)


def worker_group_trial(config: dict[str, Any]) -> None:
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker(settings: dict[str, Any]) -> None:
        import ray.train

        report_until_stopped(lambda row: ray.train.report({**row, **settings}))

    callbacks: list[Any] = [TuneReportCallback()]
    TorchTrainer(
        worker,
        train_loop_config={"launched": time.time()},
        scaling_config=ScalingConfig(num_workers=RANKS),
        run_config=RunConfig(
            name=tune.get_context().get_trial_name(), storage_path=config["folder"], callbacks=callbacks
        ),
    ).fit()


def group_count() -> int:
    """Placement groups of a bundle for each rank that are not removed. A trial's own has one bundle."""
    from ray.util import placement_group_table

    groups = placement_group_table().values()
    return sum(len(group["bundles"]) == RANKS and group["state"] != "REMOVED" for group in groups)


class Watch:
    """Waits, for each stopped trial, until its ranks and its placement group are gone."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.ends: list[dict[str, float | None]] = []
        self.threads: list[threading.Thread] = []

    def begin(self, pids: list[int]) -> None:
        thread = threading.Thread(target=self._wait, args=(pids, group_count()), daemon=True)
        thread.start()
        self.threads.append(thread)

    def _wait(self, pids: list[int], groups: int) -> None:
        started = time.monotonic()
        end: dict[str, float | None] = {"processes_s": None, "placement_group_s": None if groups else 0.0}
        while (passed := time.monotonic() - started) < self.patience and None in end.values():
            if end["processes_s"] is None and not any(map(_runs, pids)):
                end["processes_s"] = passed
            # The next trial's group may come meanwhile, but not before this one's processors are free.
            if end["placement_group_s"] is None and group_count() < groups:
                end["placement_group_s"] = passed
            time.sleep(POLL)
        self.ends.append(end)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def measure(trial: Any, trials: int, deadline: float, patience: float, reuse: bool) -> dict[str, Any]:
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    watch = Watch(patience)
    starts: dict[str, float] = {}

    class StopAtThird(FIFOScheduler):
        def __getstate__(self) -> dict[str, Any]:  # Tune's snapshot is not read
            return {}

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            starts.setdefault(trial.trial_id, result["told"] - result["launched"])
            if result["epoch"] < STOP_AT:
                return self.CONTINUE
            watch.begin(result["pids"])
            return self.STOP

    folder = tempfile.mkdtemp()
    tuner = tune.Tuner(
        # Enough is left beside it for a worker group of its own.
        tune.with_resources(trial, {"cpu": 0.5}),
        param_space={"i": tune.grid_search(list(range(trials))), "folder": folder},
        tune_config=tune.TuneConfig(max_concurrent_trials=1, scheduler=StopAtThird(), reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=folder, name="ranks", verbose=0),
    )
    started = time.monotonic()
    thread = threading.Thread(target=tuner.fit, daemon=True)
    thread.start()
    thread.join(deadline)
    wall = time.monotonic() - started
    for waiting in watch.threads:
        waiting.join(patience + 5)
    return {
        "trials": trials,
        "reported": len(starts),
        "finished": not thread.is_alive(),
        "wall_s": round(wall, 2),
        "starts_s": [round(start, 3) for start in starts.values()],
        "ends": [{key: None if s is None else round(s, 2) for key, s in end.items()} for end in watch.ends],
        "not_released": sum(None in end.values() for end in watch.ends),
    }


def tell(name: str, found: dict[str, Any], patience: float) -> str:
    starts = found["starts_s"]
    told = f"{found['reported']} of {found['trials']} trials reported in {found['wall_s']:.0f} s"
    told += "" if found["finished"] else ", not finished by the deadline"
    if starts:
        told += f"; first report after {starts[0]:.1f} s in the first, {statistics.median(starts[1:] or starts):.1f} s "
        told += "in the median of the others"
    released = [max(end.values()) for end in found["ends"] if None not in end.values()]
    if released:
        told += f"; released {min(released):.1f} to {max(released):.1f} s after the stop"
    if found["not_released"]:
        told += f"; not released within {patience:.0f} s: {found['not_released']}"
    return f"{name}: {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="trials of either kind")
    parser.add_argument("--deadline", type=float, default=240, help="seconds for all trials of a kind")
    parser.add_argument("--patience", type=float, default=60, help="seconds for a stopped trial's ranks to be gone")
    parser.add_argument("--results", type=Path, default=record.RESULTS / "rank_start.json")
    args = parser.parse_args()

    from phenoscape_tune.search.cluster import start_ray

    start_ray(2 * RANKS, verbose=False)  # logical: a trial and its worker group take 2.5
    result: dict[str, Any] = {
        **record.describe(), "dashboard_packages": find_spec("aiohttp_cors") is not None,
        "patience_s": args.patience, "deadline_s": args.deadline,
    }  # fmt: skip
    kinds = {"rank_group": (our_trial, True), "worker_group": (worker_group_trial, False)}
    for name, (trial, reuse) in kinds.items():
        result[name] = measure(trial, args.trials, args.deadline, args.patience, reuse)
        print(tell(name, result[name], args.patience), flush=True)
    record.append(args.results, result)
    os._exit(0)  # a trial that hangs would keep the process


if __name__ == "__main__":
    main()
