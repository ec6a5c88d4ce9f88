"""How long a trial takes to start: this project against Ray's documented nesting, in one run.

Every trial does nothing but report three epochs. Ours: the project's own runner (one Tuner, reused actors, TorchTrainer
in the trial's process). Nested: a Tune function that calls TorchTrainer(num_workers=1).fit() with TuneReportCallback,
as Ray documents it; fewer trials, without early stopping, and with a deadline, since it may hang.

    python benchmarks/trial_start.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import record

EPOCHS = 3


def trivial_trial(task: dict[str, Any]) -> None:
    """Our trial with a training function that only reports."""
    from ray import tune

    from phenoscape_tune.training.launch import run_in_process

    def train() -> None:
        for epoch in range(1, EPOCHS + 1):
            tune.report({"epoch": epoch, "objective": 0.5 + task["hparams"]["lr"], "seconds": 0.0, "told": time.time()})

    run_in_process(train, task["name"])


def measure_ours(trials: int) -> dict[str, Any]:
    from phenoscape_tune.config import build_config
    from phenoscape_tune.evaluate.objective import METRICS
    from phenoscape_tune.search import runner
    from phenoscape_tune.search.conductor import Conductor, Task
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.plan import make_plan
    from phenoscape_tune.search.space import build_space
    from phenoscape_tune.search.study import Study

    handed_out: dict[str, float] = {}
    first_report: dict[str, float] = {}

    class Timed(Conductor):
        def next_task(self) -> Task | None:
            task = super().next_task()
            if task is not None:
                handed_out[task.record.name] = time.time()
            return task

        def report(self, name: str, row: Any) -> bool:
            first_report.setdefault(name, row["told"])
            return super().report(name, row)

    with tempfile.TemporaryDirectory() as folder:
        space = build_space({
            "parameters": {"lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1}},
            "budget": {"trials": trials}, "confirm": None,
        })  # fmt: skip
        plan = make_plan(space, build_config({"out_dir": folder}), EPOCHS, Path(folder), METRICS["knn_accuracy"])
        conductor = Timed(plan, Study(Path(folder) / "study.journal", space.parameters, seed=0))
        started = time.time()
        with Display(conductor, quiet=True, concurrent=1) as display:
            runner.run_search(conductor, display, concurrent=1, cpus=1, gpus=0.0, trial=trivial_trial)
        wall = time.time() - started
    starts = [first_report[name] - handed_out[name] for name in handed_out]
    return {"trials": len(starts), "wall_s": wall, "first_start_s": starts[0], "starts_s": starts[1:]}


def measure_nested(trials: int, deadline: float) -> dict[str, Any]:
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def worker() -> None:
        import ray.train

        for epoch in range(1, EPOCHS + 1):
            ray.train.report({"epoch": epoch, "told": time.time()})

    def nested(config: dict[str, Any]) -> None:
        callbacks: list[Any] = [TuneReportCallback()]
        TorchTrainer(
            worker,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name=f"nested-{config['i']}", storage_path=config["folder"], callbacks=callbacks),
        ).fit()

    handed_out: dict[str, float] = {}
    first_report: dict[str, float] = {}

    class Times(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            handed_out[trial.trial_id] = time.time()

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:  # fmt: skip
            if "told" in result:
                first_report.setdefault(trial.trial_id, result["told"])

    folder = tempfile.mkdtemp()
    tuner = tune.Tuner(
        tune.with_resources(nested, {"cpu": 0.5}),
        param_space={"i": tune.grid_search(list(range(trials))), "folder": folder},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=folder, name="nested", verbose=0, callbacks=[Times()]),
    )
    started = time.time()
    thread = threading.Thread(target=tuner.fit, daemon=True)
    thread.start()
    thread.join(deadline)
    wall = time.time() - started
    starts = [first_report[name] - handed_out[name] for name in first_report if name in handed_out]
    return {
        "trials": trials,
        "reported": len(starts),
        "finished": not thread.is_alive(),
        "wall_s": wall,
        "starts_s": starts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24, help="trials of ours")
    parser.add_argument("--nested", type=int, default=4, help="nested trials")
    parser.add_argument("--deadline", type=float, default=300, help="seconds for all nested trials")
    parser.add_argument("--results", type=Path, default=record.RESULTS / "trial_start.json")
    args = parser.parse_args()

    from phenoscape_tune.search.cluster import start_ray

    start_ray(2, verbose=False)
    ours = measure_ours(args.trials)
    print(f"ours:   {ours['trials']} trials in {ours['wall_s']:.1f} s; the first started in "
          f"{ours['first_start_s']:.2f} s, the others in {statistics.median(ours['starts_s']):.3f} s "
          f"({min(ours['starts_s']):.3f} to {max(ours['starts_s']):.3f})", flush=True)  # fmt: skip
    nested = measure_nested(args.nested, args.deadline)
    state = "finished" if nested["finished"] else f"not finished after {args.deadline:.0f} s"
    result = {**record.describe(), "ours": ours, "nested": nested}
    if nested["starts_s"]:
        slow, fast = statistics.median(nested["starts_s"]), statistics.median(ours["starts_s"])
        result["start_ratio"] = slow / fast
        print(f"nested: {nested['reported']} of {nested['trials']} trials reported, {state}; started in {slow:.1f} s "
              f"({min(nested['starts_s']):.1f} to {max(nested['starts_s']):.1f})\n"
              f"ratio of the start-up times: {slow / fast:.0f}")  # fmt: skip
    else:
        print(f"nested: no trial reported, {state}")
    record.append(args.results, result)
    os._exit(0)  # a nested trial that hangs would keep the process


if __name__ == "__main__":
    main()
