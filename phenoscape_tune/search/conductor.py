"""What a search does next: stages in their order, trials in each, early stopping, confirmation.

Knows nothing of Ray or of training: it hands out tasks and hears of reports and ends, and everything it decides
follows from the study. What runs the tasks (`runner.py`; a replay of recorded curves) is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phenoscape_tune.config import TrainConfig, build_config, get_key, merge, set_key
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS, Stage
from phenoscape_tune.search.sampler import derive_seed
from phenoscape_tune.search.study import COMPLETED, FAILED, PRUNED, Study, TrialRecord, confirm_stage


@dataclass(frozen=True)
class Task:
    """One trial to run: its record, its configuration, and whether it goes on from its own checkpoint."""

    record: TrialRecord
    config: TrainConfig
    resume: bool

    @property
    def test(self) -> bool:
        return self.record.stage == CONFIRM


@dataclass
class Conductor:
    """The state of a search. `next_task` and `report` are all that a runner needs."""

    plan: Plan
    study: Study
    gpus_per_trial: float = 0.0
    live: dict[str, TrialRecord] = field(default_factory=dict)
    winners: list[TrialRecord | None] = field(default_factory=list)
    done: bool = False

    def __post_init__(self) -> None:
        self._open(self.plan.stages[0])

    @property
    def stage(self) -> Stage:
        """The stage that is running."""
        return self._stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages so far and to come, the confirmation included once it has begun."""
        return (*self.plan.stages, self._stage) if self._stage.name == CONFIRM else self.plan.stages

    def records(self, stage: Stage | None = None) -> list[TrialRecord]:
        """The trials of a stage, or of all stages in their order."""
        stages = self.stages if stage is None else (stage,)
        return [record for each in stages for record in self.study.trials(each)]

    @property
    def baseline(self) -> TrialRecord | None:
        """The trial of the defaults, once it was started."""
        records = self.study.trials(self.plan.stages[0])
        return records[0] if records else None

    def next_task(self) -> Task | None:
        """The next trial to run; None while the stage's others are running, or when the search is done."""
        while not self.done:
            orphan = next((r for r in self.study.trials(self._stage) if not r.ended and r.name not in self.live), None)
            if orphan is not None:
                return self._start(orphan, resume=True)
            if len(self.study.trials(self._stage)) < self._stage.trials:
                return self._start(self._ask(), resume=False)
            if self.live:
                return None
            self._close_stage()
        return None

    def settle(self) -> bool:
        """Close the stages whose trials have all ended, starting nothing; returns whether the search is done."""
        while not self.done:
            records = self.study.trials(self._stage)
            if len(records) < self._stage.trials or not all(record.ended for record in records):
                break
            self._close_stage()
        return self.done

    def report(self, name: str, row: Mapping[str, Any]) -> bool:
        """Hear of one epoch; returns whether the trial goes on."""
        record = self.live.get(name)
        if record is None:  # ended already, and its last words are still under way
            return False
        if not math.isfinite(row["objective"]):
            self._end(record, FAILED, f"diverged at epoch {row['epoch']}")
            return False
        known = len(record.curve)
        record = self.study.report(record, row)
        self.live[name] = record
        if row["epoch"] >= self.plan.rungs.max_epochs:
            self._end(record, COMPLETED)
            return False
        if row["epoch"] <= known:  # a resumed trial's history: decided before
            return True
        if self._goes_on(record):
            return True
        self._end(record, PRUNED, self._pruned_reason(record))
        return False

    def fail(self, name: str, reason: str, status: str = FAILED) -> None:
        """Hear that a trial cannot go on."""
        if name in self.live:
            self._end(self.live[name], status, reason)

    def ranked(self) -> list[TrialRecord]:
        """Completed trials of all stages but the confirmation, best first."""
        completed = [r for r in self.records() if r.status == COMPLETED and r.stage != CONFIRM]
        return sorted(completed, key=_merit)

    def config_of(self, record: TrialRecord) -> TrainConfig:
        """The whole configuration of a trial."""
        own: dict[str, Any] = {"max_epochs": self.plan.rungs.max_epochs}
        for key, value in record.values.items():
            set_key(own, key, value)
        own["out_dir"] = str(self.plan.folder / "trials" / record.name)
        if record.seed is not None:
            own["seed"] = record.seed
        if self.plan.base.T_max == self.plan.base.max_epochs:
            own["T_max"] = None  # it says "the whole run", and a trial's run is shorter
        if self.plan.base.warmup_epochs is not None:
            own["warmup_epochs"] = self.plan.warmup_epochs
        return build_config(merge(self.plan.base.to_mapping(), own), record.name)

    def _ask(self) -> TrialRecord:
        extra: dict[str, Any] = {"gpus": self.gpus_per_trial}
        if self._stage.name != CONFIRM:
            return self.study.ask(self._stage, self._standing.values if self._standing else {}, extra)
        candidates = self._candidates()
        number = len(self.study.trials(self._stage))
        # Seed by seed: an interrupted confirmation has whole comparisons.
        chosen = candidates[number % len(candidates)]
        extra |= {"of": chosen.name, "seed": self.plan.seed + 1 + number // len(candidates)}
        return self.study.ask(self._stage, chosen.values, extra)

    def _candidates(self) -> list[TrialRecord]:
        baseline = self.baseline
        top = [record for record in self.ranked() if record.stage != DEFAULTS][: self.plan.top_k]
        return [baseline, *top] if baseline is not None and baseline.status == COMPLETED else top

    @property
    def _standing(self) -> TrialRecord | None:
        """The winner of the last stage that ended."""
        return self.winners[-1] if self.winners else None

    def _start(self, record: TrialRecord, resume: bool) -> Task:
        self.live[record.name] = record
        return Task(record, self.config_of(record), resume)

    def _end(self, record: TrialRecord, status: str, reason: str = "") -> None:
        del self.live[record.name]
        self.study.tell(record, status, reason)

    def _judge_orphans(self) -> None:
        """End the trials whose last report is in the study while their end is not: they were cut off in between."""
        for record in self.study.trials(self._stage):
            if record.ended or record.name in self.live or not record.curve:
                continue
            if len(record.curve) >= self.plan.rungs.max_epochs:
                self.study.tell(record, COMPLETED)
            elif not self._goes_on(record):
                self.study.tell(record, PRUNED, self._pruned_reason(record))

    def _goes_on(self, record: TrialRecord) -> bool:
        return self._exempt(record) or self.plan.rungs.goes_on(record.curve, self._others(record))

    def _pruned_reason(self, record: TrialRecord) -> str:
        return f"not among the best 1/{self.plan.rungs.factor} at epoch {len(record.curve)}"

    def _exempt(self, record: TrialRecord) -> bool:
        """Confirmations, and one random trial a stage, run to the end: early and final ranks can then be compared."""
        if record.stage == CONFIRM:
            return True
        return record.number == derive_seed(self.plan.seed, self._stage.name, "exempt") % self._stage.trials

    def _others(self, record: TrialRecord) -> list[tuple[float, ...]]:
        curves = [r.curve for r in self.study.trials(self._stage) if r.name != record.name]
        return curves if self._standing is None else [*curves, self._standing.curve]

    def _open(self, stage: Stage) -> None:
        self._stage = stage
        winner = self._standing
        configuration = {} if winner is None else self.config_of(winner).to_mapping()
        standing = {key: get_key(configuration, key) for key in stage.keys} if winner else {}
        self.study.open_stage(stage, winner, standing)
        self._judge_orphans()

    def _close_stage(self) -> None:
        if self._stage.name == CONFIRM:
            self.done = True
            return
        standing = self._standing
        completed = [r for r in self.study.trials(self._stage) if r.status == COMPLETED]
        self.winners.append(min([*([standing] if standing else []), *completed], key=_merit, default=None))
        if len(self.winners) < len(self.plan.stages):
            self._open(self.plan.stages[len(self.winners)])
            return
        candidates = self._candidates()
        repeats = self.plan.repeats
        if not repeats or all(candidate.stage == DEFAULTS for candidate in candidates):
            self.done = True
            return
        self._open(confirm_stage(len(self.plan.stages), len(candidates) * repeats))


def _merit(record: TrialRecord) -> float:
    assert record.objective is not None
    return -record.objective
