"""What a search does next: stages in their order, trials in each, early stopping, confirmation.

Knows nothing of Ray or of training: it hands out tasks and hears of reports and ends, and everything it decides
follows from the study. What runs the tasks (`runner.py`; a replay of recorded curves) is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.evaluate.objective import collapsed, trial_objective
from phenoscape_tune.search.ceiling import next_ceiling
from phenoscape_tune.search.confirm_rounds import worst
from phenoscape_tune.search.course import CEILING, DROPPED, ENDED_BY, WIDENED
from phenoscape_tune.search.priority import BATCH_SIZE, CONFIRM, Stage
from phenoscape_tune.search.record import CAPPED, COMPLETED, FAILED, FAILURES, INFEASIBLE, PRUNED, TrialRecord
from phenoscape_tune.search.sampler import derive_seed
from phenoscape_tune.search.spending import epoch_seconds
from phenoscape_tune.search.time_limit import TimedCourse

# Seconds without a report after which a trial is taken for hung: of the slower epochs so far, but no less than half an
# hour (the first report of a process also waits for images, kernels and compilation); before any is known.
HUNG_EPOCHS, HUNG_AT_LEAST, HUNG_UNKNOWN = 20, 1800.0, 6 * 3600.0
ENDED_BADLY = (FAILED, INFEASIBLE)  # what these measured is no score


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
class Conductor(TimedCourse):
    """The state of a search. `next_task` and `report` are all that a runner needs."""

    done: bool = False

    def next_task(self) -> Task | None:
        """The next trial to run; None while the stage's others are running, or when the search is done."""
        while not self.done:
            orphans = [r for r in self.study.trials(self._stage) if not r.ended and r.name not in self.live]
            if orphans:
                # Those that were running come first, as they would without a stop.
                orphan = min(orphans, key=lambda record: record.called)
                if not orphan.called or self._left() > 0:
                    return self._start(orphan, resume=True)
                self.study.tell(orphan, PRUNED, f"the budget of time ended at epoch {len(orphan.curve)}")
                continue
            if self._may_start():
                return self._start(self._ask(), resume=False)
            if self.live:
                return None
            self._close_stage()
        return None

    def _may_start(self) -> bool:
        """Whether the stage starts one more trial: within its number, its share of the time, and its range."""
        started = len(self.study.trials(self._stage))
        if started >= self._stage.trials or self.study.get_note(self._stage, ENDED_BY):
            return False
        exhausted = self.study.exhausted(self._stage)
        looks = self._first_part is not None and (started == self._first_part or exhausted)
        if looks and self.study.get_note(self._stage, WIDENED) is None:
            if self.live:
                return False  # which values win is known when all have ended
            self._widen()
            exhausted = self.study.exhausted(self._stage)
        if exhausted:
            self.study.set_note(self._stage, ENDED_BY, "its values, all tried")
            return False
        if self._out_of_time():
            self.study.set_note(self._stage, ENDED_BY, "the budget of time")
            return False
        if self._stage.name == CONFIRM and started == sum(map(len, self.rounds)):
            if self.live:
                return False  # who is dropped is known when all with this seed have ended
            self._drop()
        return True

    def _drop(self) -> None:
        """Take the worst candidate out of the confirmation; what was decided is on record."""
        dropped, left = self.study.get_note(self._stage, DROPPED) or [], self.without_baseline(self.rounds[-1])
        out = worst(left, self.study.trials(self._stage), self.plan.objective.sign)
        self.study.set_note(self._stage, DROPPED, [*dropped, out])

    def settle(self) -> bool:
        """Close the stages whose trials have all ended, starting nothing; returns whether the search is done."""
        while not self.done:
            records = self.study.trials(self._stage)
            ended = len(records) >= self._stage.trials or self.study.get_note(self._stage, ENDED_BY)
            if not ended or not all(record.ended for record in records) or self._must_know_the_time():
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
        elapsed = {} if self.spending is None else {"elapsed": self.spending.elapsed}
        record = self.study.report(record, {**row, **elapsed})
        self.live[name] = record
        if row["epoch"] > known and self._collapsed(row):
            told = f"RankMe {row['rankme']:.1f}, feature std {row['feature_std']:.1g}"
            self._end(record, FAILED, f"collapsed at epoch {row['epoch']}: all images have the same features ({told})")
            return False
        if row["epoch"] >= self.plan.rungs.max_epochs:
            self._end(record, COMPLETED)
            return False
        if row["epoch"] <= known:  # a resumed trial's history: decided before
            return True
        if self._left() <= 0:
            self._end(record, PRUNED, f"the budget of time ended at epoch {row['epoch']}")
            return False
        if self._goes_on(record):
            return True
        del self.live[name]
        self._stop(record)
        return False

    def fail(self, name: str, reason: str, status: str = FAILED) -> None:
        """Hear that a trial cannot go on."""
        if name in self.live:
            self._end(self.live[name], status, reason)

    def give_back(self, name: str, reason: str, status: str = FAILED, started: bool = True) -> None:
        """Hear that a trial's process died: it is handed out again, to go on from its last checkpoint, or ends with
        `status` where that happened more than `max_failures` times; once more where it had not `started`, and the
        process was an earlier trial's."""
        record = self.live.get(name)
        if record is None:
            return
        failures, most = record.failures + 1, self.plan.space.max_failures
        self.study.note(record, FAILURES, failures)
        if failures > most + (not started):
            self._end(record, status, f"{reason}, {failures} time{'s' * (failures > 1)} (max_failures: {most})")
        else:
            del self.live[name]  # what has not ended and is not live, is given back first

    @property
    def report_timeout(self) -> float:
        """Seconds without a report after which a trial is taken for hung."""
        asked = self.plan.space.report_timeout
        if asked is not None:
            return asked
        each = epoch_seconds(self.records())
        return max(HUNG_AT_LEAST, HUNG_EPOCHS * each) if each else HUNG_UNKNOWN

    def _ask(self) -> TrialRecord:
        extra: dict[str, Any] = {"gpus": self.spending.gpus if self.spending else 0.0}
        if self._stage.name != CONFIRM:
            values = self._standing.values if self._standing else {}
            derive = self._scale_lr if self._stage.name == BATCH_SIZE else None
            return self.study.ask(self._stage, values, extra, derive)
        known = {record.name: record for stage in self._stages for record in self._known(stage)}
        # Seed by seed: an interrupted confirmation has whole comparisons.
        repeats = [(name, number) for number, names in enumerate(self.rounds) for name in names]
        name, number = repeats[len(self.study.trials(self._stage))]
        chosen = known[name]
        extra |= {"of": chosen.name, "seed": self.plan.seed + 1 + number}
        return self.study.ask(self._stage, chosen.values, extra)

    def _start(self, record: TrialRecord, resume: bool) -> Task:
        if record.called:
            record = self.study.start_again(record)
        self.live[record.name] = record
        return Task(record, self.config_of(record), resume)

    def _end(self, record: TrialRecord, status: str, reason: str = "") -> None:
        del self.live[record.name]
        self.study.tell(record, status, reason)

    def _judge_orphans(self) -> None:
        """End the trials whose last report is in the study while their end is not: they were cut off in between."""
        for record in self.study.trials(self._stage):
            if record.ended or record.called or record.name in self.live or not record.curve:
                continue
            if len(record.curve) >= self.plan.rungs.max_epochs:
                self.study.tell(record, COMPLETED)
            elif not self._goes_on(record):
                self._stop(record)
        self._let_go_on()

    def _goes_on(self, record: TrialRecord) -> bool:
        self._raise_ceiling(record)
        if self.is_exempt(record):
            return True
        return len(record.curve) < self.ceiling(self._stage) and self._is_among_best(record)

    def _is_among_best(self, record: TrialRecord) -> bool:
        """Whether early stopping lets a trial go on from the rung that it stands at."""
        return self.plan.rungs.goes_on(record.curve, self._others(record), self.plan.objective.higher_is_better)

    def _raise_ceiling(self, record: TrialRecord) -> None:
        """Raise the stage's ceiling where a trial that reached it shows that the ranking still changes (PASHA)."""
        ceiling, rungs = self.ceiling(self._stage), self.plan.rungs
        if ceiling < rungs.max_epochs and len(record.curve) >= ceiling:
            higher = next_ceiling(rungs, ceiling, [record.curve, *self._others(record)], self.plan.objective.sign)
            if higher > ceiling:
                self.study.set_note(self._stage, CEILING, higher)
                self._let_go_on()

    def _let_go_on(self) -> None:
        """Below a ceiling that has risen, the best of those that waited go on, and the others are over."""
        for record in self._waiting():
            if len(record.curve) >= self.ceiling(self._stage):
                continue
            if self._is_among_best(record):
                self.study.call(record)
            else:
                self._stop(record)

    def _waiting(self) -> list[TrialRecord]:
        return [record for record in self.study.trials(self._stage) if record.waiting]

    def may_go_on(self) -> list[TrialRecord]:
        """The trials that wait at the ceiling and may go on when it rises: they need their checkpoints.

        The best 1/factor of those that reach it go on, so that they are among as many as of all that can reach it.
        """
        waiting = self._waiting()
        if not waiting:
            return []
        yet = self._stage.trials - len(self.study.trials(self._stage)) + len(self.live)
        epochs, sign = len(waiting[0].curve), self.plan.objective.sign

        def score(curve: Sequence[float]) -> float:
            return sign * trial_objective(curve[:epochs])

        reached = sorted((score(curve) for curve in self._others() if len(curve) >= epochs), reverse=True)
        most = math.ceil((len(reached) + yet) / self.plan.rungs.factor)
        least = reached[min(most, len(reached)) - 1]
        return [record for record in waiting if score(record.curve) >= least]

    def _collapsed(self, row: Mapping[str, Any]) -> bool:
        """From the first rung on, and at the end: a network may still leave the collapsed state of its first steps."""
        first = min(self.plan.rungs.grace, self.plan.rungs.max_epochs)
        return "feature_std" in row and row["epoch"] >= first and collapsed(row["feature_std"])

    def _stop(self, record: TrialRecord) -> None:
        """End a trial that does not go on; at the ceiling it waits."""
        epoch = len(record.curve)
        if epoch >= self.ceiling(self._stage):
            self.study.pause(record, f"the ceiling is epoch {epoch}: the ranking is as it was a rung before")
        else:
            self.study.tell(record, PRUNED, f"not among the best 1/{self.plan.rungs.factor} at epoch {epoch}")

    def is_exempt(self, record: TrialRecord) -> bool:
        """Confirmations, and one random trial a stage, run to the end: early and final ranks can then be compared."""
        if record.stage == CONFIRM:
            return True
        stage = next(stage for stage in self._stages if stage.name == record.stage)
        return record.number == derive_seed(self.plan.seed, stage.name, "exempt") % stage.trials

    def _others(self, record: TrialRecord | None = None) -> list[tuple[float, ...]]:
        """The curves with which a trial of the stage is compared; those of all, where none is named."""
        # A collapsed network's label-free score can be better than a healthy one's (docs/objectives.md).
        known = (r for r in self._known(self._stage) if r.status not in ENDED_BADLY)
        curves = [r.curve for r in known if record is None or r.name != record.name]
        return curves if self._standing is None else [*curves, self._standing.curve]

    # Stages

    def _open(self, stage: Stage) -> None:
        super()._open(stage)
        self._judge_orphans()
        self._leave_time_to_others()

    def _close_stage(self) -> None:
        for record in self._waiting():
            self.study.tell(record, CAPPED)
        if self._stage.name != CONFIRM and self._advance():
            return
        confirmed = self._stage.name == CONFIRM
        self.done = confirmed or not self._open_confirmation(*self._affordable_confirmation())
