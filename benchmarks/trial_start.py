"""How long a trial takes to start: this project against Ray's documented nesting and against plain Optuna, in one run.

Every trial does nothing but report three epochs. Ours: the project's own runner (one Tuner, reused actors, TorchTrainer
in the trial's process). Nested: a Tune function that calls TorchTrainer(num_workers=1).fit() with TuneReportCallback,
as Ray documents it; fewer trials, without early stopping, and with a deadline, since it may hang. Floor: Optuna alone,
in this process (ask, report, should_prune, tell), its journal in a file as ours is: what a trial costs without any
process, scheduler or isolation.

A start is the time from before the sampler is asked to the first report; the nested one is counted only from where
Tune starts the trial. The three take turns, and each turn gives one ratio and one difference of medians. The first
trial of a turn starts processes and imports torch: it is told apart, of ours and of the nested ones.

    python benchmarks/trial_start.py
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import record

EPOCHS = 3
VALUE = 0.5  # of every report: no trial is better than another, and none is stopped early
LR = (1e-5, 1e-1)  # the range that is searched
RATIO_GOAL, ABOVE_FLOOR_GOAL = 50.0, 0.5  # times the nested start; seconds above the floor
Measured = dict[str, Any]


def trivial_trial(task: dict[str, Any]) -> None:
    """Our trial with a training function that only reports."""
    from ray import tune

    from phenoscape_tune.training.launch import run_in_process

    def train() -> None:
        for epoch in range(1, EPOCHS + 1):
            tune.report({"epoch": epoch, "objective": VALUE, "seconds": 0.0, "told": time.time()})

    run_in_process(train, task["name"])


def states_in(journal: Path) -> list[str]:
    """Optuna's state of every trial that was run, by Optuna itself; a stage is told the last one's winner, not run."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(journal)))
    names = optuna.get_all_study_names(storage)
    trials = [trial for name in names for trial in optuna.load_study(study_name=name, storage=storage).trials]
    return [trial.state.name for trial in trials if "taken_over" not in trial.user_attrs]


def _measured(
    asked: Sequence[float], starts: Sequence[float], reports: list[int], journal: Path, wall: float
) -> Measured:
    return {
        "trials": len(starts),
        "wall_s": wall,
        "first_start_s": starts[0],
        "starts_s": list(starts[1:]),
        # From asking for a trial to asking for the next one: three reports, the end and what is written are in it.
        "turns_s": [after - before for before, after in itertools.pairwise(asked[1:])],
        "reports": reports,
        "states": states_in(journal),
    }


def measure_ours(trials: int) -> Measured:
    """A search of so many trials, one at a time, on the Ray that this process has started."""
    from phenoscape_tune.config import build_config
    from phenoscape_tune.evaluate.objective import METRICS
    from phenoscape_tune.search import runner
    from phenoscape_tune.search.conductor import Conductor, Task
    from phenoscape_tune.search.display import Display
    from phenoscape_tune.search.plan import make_plan
    from phenoscape_tune.search.space import build_space
    from phenoscape_tune.search.study import Study

    asked: dict[str, float] = {}
    first_report: dict[str, float] = {}
    reports: Counter[str] = Counter()

    class Timed(Conductor):
        def next_task(self) -> Task | None:
            before = time.time()
            task = super().next_task()
            if task is not None:
                asked[task.record.name] = before
            return task

        def report(self, name: str, row: Any) -> bool:
            first_report.setdefault(name, row["told"])
            reports[name] += 1
            return super().report(name, row)

    with tempfile.TemporaryDirectory() as folder:
        space = build_space({
            "parameters": {"lr": {"type": "loguniform", "low": LR[0], "high": LR[1]}},
            "budget": {"trials": trials}, "confirm": None,
        })  # fmt: skip
        plan = make_plan(space, build_config({"out_dir": folder}), EPOCHS, Path(folder), METRICS["knn_accuracy"])
        journal = Path(folder) / "study.journal"
        conductor = Timed(plan, Study(journal, space.parameters, seed=0))
        started = time.time()
        with Display(conductor, quiet=True, concurrent=1) as display:
            runner.run_search(conductor, display, concurrent=1, cpus=1, gpus=0.0, trial=trivial_trial)
        wall = time.time() - started
        starts = [first_report[name] - asked[name] for name in asked]
        return _measured(list(asked.values()), starts, [reports[name] for name in asked], journal, wall)


def measure_floor(trials: int) -> Measured:
    """Plain Optuna, in this process: TPE and its median pruner, a journal in a file."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked: list[float] = []
    starts: list[float] = []
    reports: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "study.journal"
        started = time.time()
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))), direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner(),
        )  # fmt: skip
        for _ in range(trials):
            asked.append(time.time())
            trial = study.ask()
            trial.suggest_float("lr", *LR, log=True)
            starts.append(time.time() - asked[-1])
            state, told = optuna.trial.TrialState.COMPLETE, 0
            for epoch in range(1, EPOCHS + 1):
                trial.report(VALUE, epoch)
                told = epoch
                if trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
            study.tell(trial, VALUE if state == optuna.trial.TrialState.COMPLETE else None, state=state)
            reports.append(told)
        wall = time.time() - started
        return _measured(asked, starts, reports, journal, wall)


def measure_nested(trials: int, deadline: float) -> Measured:
    """Ray's documented nesting; `finished` tells whether all trials ended within `deadline` seconds."""
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
    # The first one's process imports torch, and is counted with neither.
    starts = [first_report[name] - handed_out[name] for name in handed_out if name in first_report]
    return {
        "trials": trials,
        "reported": len(starts),
        "finished": not thread.is_alive(),
        "wall_s": wall,
        "first_start_s": starts[0] if starts else None,
        "starts_s": starts[1:],
    }


def compare(turns: list[dict[str, Measured]]) -> dict[str, Any]:
    """The results of turns of `ours`, `floor` and, where it was measured, `nested`: a ratio and a difference a turn."""
    middle = [{name: statistics.median(m["starts_s"]) for name, m in turn.items() if m["starts_s"]} for turn in turns]
    ratios = [turn["nested"] / turn["ours"] for turn in middle if "nested" in turn]
    above = [turn["ours"] - turn["floor"] for turn in middle]
    rows = [
        {"peer": "nested", "nested_over_ours": record.spread(ratios, 1) if ratios else None, "goal": RATIO_GOAL,
         "reached": bool(ratios) and statistics.median(ratios) >= RATIO_GOAL},
        {"peer": "floor", "ours_minus_floor_s": record.spread(above, 5), "goal": ABOVE_FLOOR_GOAL,
         "reached": statistics.median(above) <= ABOVE_FLOOR_GOAL},
    ]  # fmt: skip
    return {"results": rows, "turns": turns}


def say(name: str, found: Measured) -> None:
    if not found["starts_s"]:
        told = f"{found['reported']} of {found['trials']} trials reported in {found['wall_s']:.0f} s"
        print(f"{name}: {told}", flush=True)
        return
    starts = found["starts_s"]
    print(
        f"{name}: {found['trials']} trials in {found['wall_s']:.1f} s; the first started in "
        f"{found['first_start_s']:.3f} s, the others in {record.told(starts, 4)} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="of ours, the floor and the nested trials")
    parser.add_argument("--trials", type=int, default=12, help="trials a turn of ours and of the floor, at least 3")
    parser.add_argument("--nested", type=int, default=2, help="nested trials a turn; the first is told apart; 0: none")
    parser.add_argument("--deadline", type=float, default=180, help="seconds for the nested trials of a turn")
    parser.add_argument("--results", type=Path, default=record.RESULTS / "trial_start.json")
    args = parser.parse_args()
    if args.trials < 3 or args.turns < 1:
        record.refuse(f"--trials {args.trials} --turns {args.turns}: three trials and one turn are the fewest")

    from phenoscape_tune.search.cluster import start_ray

    start_ray(2, verbose=False)
    turns: list[dict[str, Measured]] = []
    nesting = args.nested > 0
    for number in range(1, args.turns + 1):
        print(f"turn {number} of {args.turns}", flush=True)
        turn = {"ours": measure_ours(args.trials), "floor": measure_floor(args.trials)}
        if nesting:
            turn["nested"] = measure_nested(args.nested, args.deadline)
            nesting = turn["nested"]["finished"]  # one that hangs keeps its processors
        for name, found in turn.items():
            say(name, found)
        if "nested" in turn and not nesting:
            print(f"nested: not finished after {args.deadline:.0f} s, and left out of further turns", flush=True)
        turns.append(turn)
    found = compare(turns)
    for row in found["results"]:
        print(row, flush=True)
    record.append(args.results, {**record.describe("cpu"), **found})
    print(f"appended to {args.results}", flush=True)
    os._exit(0)  # a nested trial that hangs would keep the process


if __name__ == "__main__":
    main()
