"""Searches against each other in virtual time, on recorded learning curves: what quality at what cost.

Runs the project's own search code (conductor, sampler, early stopping, confirmation, verdict), and random search,
Ray's OptunaSearch and Ray's ASHA as they are shipped, two trials side by side. An epoch costs what it cost when the
curves of `results/learning_curves.jsonl` were recorded; `surrogate.py` answers between the recorded configurations. The
cost of the project's searches includes the baseline and the confirmation with fresh seeds; the others have neither.
Regret: the linear-probe accuracy of the best configuration of the space minus that of the best that the search found;
for the project's also minus that of what best.yaml holds, which keeps the defaults where a search finds no gain.

    python benchmarks/replay.py run --scratch replay      # appends to replay/cifar-long.jsonl; may be repeated
    python benchmarks/replay.py table --scratch replay    # writes results/replay.json and docs/pictures/replay.png
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from confirmations import RULES, shortened
from learning_curves import STUDIES
from own_searches import FACTOR, GRACE, OwnSearch
from peer_searches import PeerSearch, Search
from surrogate import NOISES, Surrogate, read_repeats, read_rows

from phenoscape_tune.evaluate.objective import METRICS, Metric
from phenoscape_tune.search import journal
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.verdict import Outcome

CONCURRENT = 2
REPLAYED = [name for name in STUDIES if f"{name}-seeds" in STUDIES]  # those whose noise was measured
LONG_BUDGET = 256  # trials of the searches of others

# Objective of the search → the scores of the table whose mean plays it. Raw losses are no objective of the project:
# here they show what a search would pick that ranked by them.
SCORES: dict[str, tuple[Metric, tuple[str, ...]]] = {
    "knn_accuracy": (METRICS["knn_accuracy"], ("knn",)),
    "reference_contrast": (METRICS["reference_contrast"], ("contrast_weak", "contrast_moderate")),
    "rankme": (METRICS["rankme"], ("rankme",)),
    "lidar": (METRICS["lidar"], ("lidar",)),
    "val_loss": (Metric("val_loss", "validation loss", higher_is_better=False), ("val_loss",)),
}


@dataclass(frozen=True)
class Strategy:
    """A way to search; `space` is what a search-space file of the project says beside its parameters, `peer` what
    `PeerSearch` is given."""

    name: str
    space: dict[str, Any] | None = None
    peer: dict[str, Any] | None = None


ORDERS: dict[str, dict[str, Any]] = {
    "staged": {"order": "staged"},
    "staged, refine": {"order": "staged", "refine": True},
    "joint": {"order": "joint"},
}
WITH_ASHA: dict[str, Any] = {"asha": {"grace_period": GRACE, "reduction_factor": FACTOR}}
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        *(Strategy(name, space) for name, space in ORDERS.items()),
        *(Strategy(f"{name}, PASHA", {**space, "scheduler": {"pasha": True}}) for name, space in ORDERS.items()),
        Strategy("random", peer={}),
        Strategy("random + ASHA", peer=WITH_ASHA),
        Strategy("TPE", peer={"tpe": True}),
        Strategy("TPE + ASHA", peer={"tpe": True, **WITH_ASHA}),
        Strategy("TPE + ASHA, Ray's defaults", peer={"tpe": True, "asha": {}}),
    )
}


# ---------------------------------------------------------------- the virtual clock


@dataclass
class Moment:
    """After a trial ended: device-seconds spent so far, and the true probe accuracy of what the search would give."""

    seconds: float
    probe: float


class Clock:
    """Runs a search in virtual time, `CONCURRENT` trials side by side."""

    def __init__(self, surrogate: Surrogate, concurrent: int = CONCURRENT) -> None:
        self.now = 0.0
        self._surrogate = surrogate
        self._concurrent = concurrent

    def run(self, search: Search) -> Iterator[Moment]:
        """Yields after each trial; ends with the search."""
        running: list[tuple[float, int, str, int, np.ndarray, float]] = []  # when its next epoch ends, and what it is
        count, spent = 0, 0.0
        while True:
            while len(running) < self._concurrent and (asked := search.ask()) is not None:
                name, x, seed, epoch = asked
                # Of its own: a search that runs more trials, or others before it, meets the same noise in each.
                stream = np.random.SeedSequence([seed, *np.frombuffer(name.encode(), np.uint8)])
                curve, seconds = self._surrogate.curve(x, np.random.default_rng(stream)), self._surrogate.seconds(x)
                count += 1
                heapq.heappush(running, (self.now + seconds, count, name, epoch, curve, seconds))
            if not running:
                return
            self.now, number, name, epoch, curve, seconds = heapq.heappop(running)
            spent += seconds
            if search.report(name, epoch, float(curve[epoch - 1]), seconds):
                heapq.heappush(running, (self.now + seconds, number, name, epoch + 1, curve, seconds))
            elif (point := search.pick()) is not None:
                yield Moment(spent, self._surrogate.true_probe(point))


def own_search(surrogate: Surrogate, metric: Metric, strategy: Strategy, trials: int, seed: int) -> dict[str, Any]:
    """One search of the project, replayed: its moments, and what it said of its gain."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        search = OwnSearch(surrogate, metric, strategy.space or {}, trials, seed, Path(folder))
        clock = Clock(surrogate)
        search.conductor.spending = Spending(search.space.budget, CONCURRENT, 0.0, clock=lambda: clock.now)
        moments = list(clock.run(search))
        # The last trial's end closes the search: what is given then is what the confirmation chose.
        records = search.conductor.records()
        outcomes = {"whole": (search.outcome, sum(record.seconds for record in records if record.of))}
        outcomes |= {name: shortened(search.conductor, rule) for name, rule in RULES.items()}
        return {
            "moments": moments,
            "seconds": sum(record.seconds for record in records),
            "defaults": surrogate.true_probe(search.point(search.conductor.plan.base)),
            "trials": sum(not record.of for record in records),
            "confirmed": {name: confirmed(surrogate, search, *outcome) for name, outcome in outcomes.items()},
        }


def confirmed(surrogate: Surrogate, search: OwnSearch, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What a confirmation chose and said: the candidate and what best.yaml holds, the gain told and the one without
    noise, in the objective, and its seconds."""
    conductor, sign = search.conductor, search.conductor.plan.objective.sign
    candidate, held, defaults = (
        search.point(conductor.config_of(record))
        for record in ((outcome.candidate or outcome.best).record, outcome.best.record, conductor.records()[0])
    )
    gain = outcome.gain
    true = sign * (surrogate.true_objective(candidate) - surrogate.true_objective(defaults))
    return {
        "point": [round(float(share), 4) for share in candidate],
        "probe": round(surrogate.true_probe(candidate), 5),
        "held": round(surrogate.true_probe(held), 5),
        "clear": bool(gain and gain.clear),
        "gain": None if gain is None else round(gain.value, 5),
        "covered": bool(gain and gain.low <= true <= gain.high),
        "true_gain": round(true, 5),
        "seconds": round(seconds, 2),
    }


def peer_search(surrogate: Surrogate, metric: Metric, strategy: Strategy, trials: int, seed: int) -> dict[str, Any]:
    """One search of others, replayed."""
    search = PeerSearch(surrogate, trials, metric.higher_is_better, seed, **(strategy.peer or {}))
    moments = list(Clock(surrogate).run(search))
    point = search.pick()
    assert point is not None
    found = {"moments": moments, "point": [round(float(share), 4) for share in point], "trials": trials}
    return {**found, "probe": surrogate.true_probe(point), "seconds": moments[-1].seconds}


def memory_folder() -> str | None:
    """Where a journal costs nothing: no power is cut here."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def let_the_journal_be() -> None:
    """What a search costs in virtual time does not include its journal's way to the disk, nor waiting for others.

    For a process that does nothing but replay: it holds for all journals in it.
    """
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    journal.JournalLock.acquire = lambda self: True  # type: ignore[method-assign]
    journal.JournalLock.release = lambda self: None  # type: ignore[method-assign]


# ---------------------------------------------------------------- many of them


@cache
def surrogate_of(name: str, noise: str, objective: str) -> Surrogate:
    return Surrogate(name, read_rows(name), SCORES[objective][1], read_repeats(name), noise)


def replay_one(name: str, noise: str, objective: str, strategy: str, trials: int, seed: int) -> dict[str, Any]:
    """A line of the scratch file."""
    warnings.filterwarnings("ignore")  # length scales at their bounds: a key that hardly matters
    surrogate, metric, chosen = surrogate_of(name, noise, objective), SCORES[objective][0], STRATEGIES[strategy]
    search = own_search if chosen.space is not None else peer_search
    found = search(surrogate, metric, chosen, trials, seed)
    moments = [[round(moment.seconds, 1), round(moment.probe, 4)] for moment in found.pop("moments")]
    what = {"study": name, "noise": noise, "objective": objective, "strategy": strategy, "budget": trials, "seed": seed}
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in found.items()}
    return {**what, **rounded, "moments": moments}


def planned(args: argparse.Namespace) -> Iterator[tuple[str, str, str, str, int, int]]:
    """Seed by seed, so that what is there at any moment is a comparison."""
    for seed in range(args.seeds):
        for objective in args.objectives:
            for name, strategy in STRATEGIES.items():
                if args.strategies and name not in args.strategies:
                    continue
                for trials in args.budgets if strategy.space is not None else (args.long_budget,):
                    yield args.study, args.noise, objective, name, trials, seed


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def identity(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[key] for key in ("study", "noise", "objective", "strategy", "budget", "seed"))


def run(args: argparse.Namespace) -> None:
    args.scratch.mkdir(parents=True, exist_ok=True)
    path = args.scratch / f"{args.study}.jsonl"
    done = {identity(line) for line in read_lines(path)}
    waiting = [job for job in planned(args) if job not in done]
    with ProcessPoolExecutor(args.processes, initializer=let_the_journal_be) as pool, path.open("a") as file:
        for number, line in enumerate(pool.map(replay_one, *zip(*waiting, strict=True)), start=1) if waiting else ():
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            if number % 50 == 0 or number == len(waiting):
                print(f"{number}/{len(waiting)} searches replayed", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step, about in (("run", "replay searches"), ("table", "what follows from them")):
        sub = steps.add_parser(step, help=about)
        sub.add_argument("--study", default="cifar-long", choices=REPLAYED)
        sub.add_argument("--noise", default=NOISES[0], choices=NOISES, help="of a trial")
        sub.add_argument("--scratch", type=Path, default=Path("replay"))
        if step == "run":
            sub.add_argument("--seeds", type=int, default=50)
            sub.add_argument("--budgets", type=int, nargs="+", default=[12, 24, 36], help="trials of our searches")
            sub.add_argument("--long-budget", type=int, default=LONG_BUDGET, help="trials of the searches of others")
            sub.add_argument("--objectives", nargs="+", choices=SCORES, default=["knn_accuracy", "reference_contrast"])
            sub.add_argument("--strategies", nargs="+", choices=STRATEGIES)
            sub.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.step == "run":
        run(args)
    else:
        from replay_table import write_table

        write_table(args.study, args.noise, read_lines(args.scratch / f"{args.study}.jsonl"))


if __name__ == "__main__":
    main()
