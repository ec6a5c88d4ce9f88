"""The project's own search in virtual time: its conductor, sampler, early stopping, confirmation and verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from surrogate import AVERAGED, KEYS, Surrogate

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.evaluate.objective import Metric
from phenoscape_tune.layers import get_key
from phenoscape_tune.search.conductor import Conductor, Task
from phenoscape_tune.search.plan import make_plan
from phenoscape_tune.search.space import SearchSpace, build_space
from phenoscape_tune.search.study import Study
from phenoscape_tune.search.verdict import Outcome, decide

GRACE, FACTOR = 3, 3


class OwnSearch:
    """The project's search as the clock runs it.

    Args:
        surrogate: for the ranges and the points.
        metric: what is searched for.
        chosen: what a search-space file says beside its parameters, where it differs from this search's.
        trials: its budget.
        seed: of this search.
        folder: for its journal.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        metric: Metric,
        chosen: dict[str, Any],
        trials: int,
        seed: int,
        folder: Path,
    ) -> None:
        space = build_space({
            "parameters": surrogate.parameters,
            "budget": {"trials": trials},
            "confirm": {"top_k": 3, "seeds": 3},
            **chosen,
            "scheduler": {"grace_epochs": GRACE, "reduction_factor": FACTOR, **chosen.get("scheduler", {})},
        })  # fmt: skip
        base = build_config({"seed": seed * 100, "max_epochs": surrogate.epochs})
        plan = make_plan(space, base, surrogate.epochs, folder, metric)
        known = Study(plan.folder / "study.journal", space.parameters, plan.seed, metric.higher_is_better)
        self.conductor = Conductor(plan, known)
        self.space: SearchSpace = space
        self._surrogate = surrogate
        self._tasks: dict[str, Task] = {}

    def ask(self) -> tuple[str, np.ndarray, int, int] | None:
        task = self.conductor.next_task()
        if task is None:
            return None
        self._tasks[task.record.name] = task
        return task.record.name, self.point(task.config), task.config.seed, len(task.record.curve) + 1

    def report(self, name: str, epoch: int, value: float, seconds: float) -> bool:
        row = {"epoch": epoch, "objective": value, "seconds": seconds}
        if self._tasks[name].test and epoch == self._surrogate.epochs:
            curve = [*self.conductor.live[name].curve, value]
            row["test_objective"] = float(np.mean(curve[-AVERAGED:]))
        return self.conductor.report(name, row)

    def point(self, config: TrainConfig) -> np.ndarray:
        mapping = config.to_mapping()
        return self._surrogate.point({key: get_key(mapping, key) for key in KEYS})

    def pick(self) -> np.ndarray | None:
        """The best of what was searched, whether or not best.yaml takes it."""
        if self.conductor.done:
            return self.point(self.conductor.config_of((self.outcome.candidate or self.outcome.best).record))
        leading = next(iter(self.conductor.ranked()), None)
        return None if leading is None else self.point(self.conductor.config_of(leading))

    @property
    def outcome(self) -> Outcome:
        """Of a search that is done."""
        found = decide(self.conductor)
        assert found is not None
        return found
