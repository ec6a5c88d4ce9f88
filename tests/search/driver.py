"""Runs whole searches on objectives that cost nothing: what the tests of the conductor, report and display share."""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.conductor import Conductor, Task
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.plan import make_plan as plan_search
from phenoscape_tune.search.record import INFEASIBLE, TrialRecord
from phenoscape_tune.search.rungs import Rungs
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.spending import Spending
from phenoscape_tune.search.study import Study

SPACE: dict[str, Any] = {
    "parameters": {
        "temperature": {"type": "uniform", "low": 0.05, "high": 0.5},
        "lr": {"type": "loguniform", "low": 1e-5, "high": 1e-1},
    },
    "budget": {"trials": 11},
    "confirm": {"top_k": 2, "seeds": 2},
}
EPOCHS = 9


class DoesNotFit(Exception):
    """What an objective raises for a trial that runs out of memory."""


# Of an epoch: the objective, or a whole row of the report.
Objective = Callable[[TrainConfig, int], float | Mapping[str, float]]


def learn(config: TrainConfig, epoch: int) -> float:
    """Accuracy that rises with the epochs, best at lr 0.01 and temperature 0.2, with a little noise of the seed."""
    best = 0.9 - 0.1 * abs(math.log10(config.lr) + 2) - abs(config.temperature - 0.2)
    return max(0.0, best) * (1 - math.exp(-epoch / 3)) + 0.001 * (config.seed % 7)


def make_plan(
    folder: Path,
    base: TrainConfig | None = None,
    rungs: Rungs | None = None,
    metric_name: str = "knn_accuracy",
    **space: Any,
) -> Plan:
    """A plan in `folder`; `space` replaces keys of SPACE."""
    built = build_space({**SPACE, **space})
    base = base or build_config({"seed": 5, "max_epochs": 50})
    metric = METRICS[metric_name]
    return replace(plan_search(built, base, EPOCHS, folder, metric), rungs=rungs or Rungs(2, 2, EPOCHS))


def open_conductor(plan: Plan, spending: Spending | None = None, warm: Sequence[TrialRecord] = ()) -> Conductor:
    plan.folder.mkdir(parents=True, exist_ok=True)
    upwards = plan.objective.higher_is_better
    study = Study(plan.folder / "study.journal", plan.space.parameters, plan.seed, upwards)
    return Conductor(plan, study, spending=spending, warm=warm)


class Clock:
    """Seconds that pass only while a driver runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Driver:
    """Runs a conductor's tasks as the runner does, on an objective that costs nothing; keeps what it was handed.

    An epoch takes `seconds` of the clock, and trials run side by side.
    """

    conductor: Conductor
    objective: Objective = learn
    concurrent: int = 2
    clock: Clock = field(default_factory=Clock)
    seconds: Callable[[TrainConfig], float] = lambda config: 1.0
    handed: list[Task] = field(default_factory=list)
    to_the_end: Counter[str] = field(default_factory=Counter)

    def reports(self) -> Iterator[tuple[str, int]]:
        """Every report in its turn, as (trial, epoch); the search is over when it ends."""
        running: list[tuple[float, int, Task, int]] = []  # when an epoch is done, its turn among equals, its number
        turns = itertools.count()

        def go_on(task: Task, epoch: int) -> None:
            heapq.heappush(running, (self.clock.now + self.seconds(task.config), next(turns), task, epoch))

        while True:
            while len(self.conductor.live) < self.concurrent and (task := self.conductor.next_task()) is not None:
                self.handed.append(task)
                go_on(task, len(task.record.curve) + 1)
            if not running:
                return
            self.clock.now, _, task, epoch = heapq.heappop(running)
            name = task.record.name
            if self._report(name, task.config, epoch):
                go_on(task, epoch + 1)
            self.to_the_end[name] += epoch == self.conductor.plan.rungs.max_epochs
            yield name, epoch

    def _report(self, name: str, config: TrainConfig, epoch: int) -> bool:
        try:
            measured = self.objective(config, epoch)
        except DoesNotFit as error:
            self.conductor.fail(name, str(error), INFEASIBLE)
            return False
        row = measured if isinstance(measured, Mapping) else {"objective": measured}
        return self.conductor.report(name, {"epoch": epoch, "seconds": self.seconds(config), **row})

    def run(self, most: int | None = None) -> Conductor:
        for number, _ in enumerate(self.reports(), start=1):
            if number == most:
                break
        return self.conductor


def search(folder: Path, objective: Objective = learn, concurrent: int = 2, **plan: Any) -> Conductor:
    return Driver(open_conductor(make_plan(folder, **plan)), objective, concurrent).run()


def unbroken_search(folder: Path, objective: Objective = learn, **plan: Any) -> tuple[Conductor, int]:
    """A search that ran one trial after the other without a stop, and the number of its reports."""
    driver = Driver(open_conductor(make_plan(folder, **plan)), objective, concurrent=1)
    return driver.conductor, sum(1 for _ in driver.reports())


def stopped_search(folder: Path, stops: Sequence[int], objective: Objective = learn, **plan: Any) -> Driver:
    """The same search stopped after each of so many reports in all, in rising order, and gone on with to its end."""
    made = make_plan(folder, **plan)
    for before, stop in itertools.pairwise([0, *stops]):
        Driver(open_conductor(made), objective, concurrent=1).run(stop - before)
    driver = Driver(open_conductor(made), objective, concurrent=1)
    assert not driver.conductor.settle()  # as a resume asks first
    assert driver.run().done
    return driver


def by_name(conductor: Conductor) -> dict[str, TrialRecord]:
    return {record.name: record for record in conductor.records()}


# A confirmation that goes on without the worst candidate after each seed, and a search whose order its seeds upset.
DROPPING: dict[str, Any] = {"confirm": {"top_k": 3, "seeds": 3, "drop": True}}


def unsteady(config: TrainConfig, epoch: int) -> float:
    """The order of the search turns round with the first fresh seed, and is as it was with the next."""
    value = learn(config, epoch)
    return 0.9 - value if config.seed == 6 else value
