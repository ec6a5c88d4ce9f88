"""The time that a search has left: what a stage may use of it, and what is set aside for the confirmation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from phenoscape_tune.search.confirm_rounds import count_slots
from phenoscape_tune.search.course import FLOOR, Course
from phenoscape_tune.search.priority import CONFIRM, DEFAULTS
from phenoscape_tune.search.record import TrialRecord
from phenoscape_tune.search.spending import RESERVE, Spending, affordable, epoch_seconds
from phenoscape_tune.search.study import confirm_stage

RESERVED_AT_MOST = 0.5  # of a budget of time: a search that only confirms has nothing to confirm


@dataclass
class TimedCourse(Course):
    """A course within a budget of time.

    Attributes:
        spending: what was spent, and the budget; None where a search is only looked at.
        live: the trials that run, by name.
    """

    spending: Spending | None = None
    live: dict[str, TrialRecord] = field(default_factory=dict)

    @property
    def _limit(self) -> Spending | None:
        """The spending, where a budget of time limits the search."""
        return self.spending if self.spending is not None and self.spending.limited else None

    def _reserved(self, limit: Spending) -> float:
        """Trial-seconds that are set aside for the confirmation: what it needs, or half the budget if that is less."""
        if self._stage.name in (DEFAULTS, CONFIRM):
            return 0.0
        candidates = min(
            self.plan.top_k, sum(record.stage != DEFAULTS for record in self.ranked()) + self.remaining_trials
        )
        # Side by side, the last ones may leave slots idle that nothing else can use.
        slots = count_slots(candidates, self.plan.repeats, self.plan.drop, limit.concurrent)
        needed = RESERVE * slots * self.plan.rungs.max_epochs * epoch_seconds(self.records())
        return min(needed, RESERVED_AT_MOST * limit.total)

    def _left(self) -> float:
        """Trial-seconds that are left before the reserve; infinite without a limit of time."""
        limit = self._limit
        return math.inf if limit is None else limit.left(self.records()) - self._reserved(limit)

    def _out_of_time(self) -> bool:
        """Whether the time that is left, or the stage's share of it, does not hold one more trial."""
        limit = self._limit
        if limit is None:
            return False
        records = self.records()
        each = epoch_seconds(records)
        if not each:  # nothing is known yet
            return False
        if self._stage.name == CONFIRM:
            whole = self.plan.rungs.max_epochs * each
            running = each * sum(self.plan.rungs.max_epochs - len(record.curve) for record in self.live.values())
            return limit.wall_left < whole or self._left() - running < whole
        # A trial that stops at the first rung is worth its start; what runs has a claim on as much.
        grace = self.plan.rungs.grace
        owed = each * sum(max(0, grace - len(record.curve)) for record in self.live.values())
        left, floor = self._left(), self.study.get_note(self._stage, FLOOR)
        if self.study.trials(self._stage) and floor is not None:  # every stage may start one, if there is time at all
            left = min(left, limit.left(records) - floor)
        return left - owed < grace * each

    def _must_know_the_time(self) -> bool:
        """Whether what comes next depends on a budget of time of which nothing is known yet."""
        budget = self.plan.space.budget
        if self.spending is not None or budget.hours is budget.gpu_hours is None or self._stage.name == CONFIRM:
            return False
        # A stage may be passed over: what was begun after it tells as well that this one is done.
        later = self._stages[len(self.winners) + 1 :]
        confirmation = [confirm_stage(len(self._stages), 0)] if self.plan.repeats else []
        following = [*later, *confirmation]
        return bool(following) and not any(map(self.study.knows, following))

    def _leave_time_to_others(self) -> None:
        """Set down what a stage that has just been opened has to leave to those after it."""
        stage, limit = self._stage, self._limit  # with no more trials than its ranges have values
        # The stage's share of the time that is left, by its share of the trials that are left; told once, and kept. As
        # what it has to leave to others, so that slots which idle while its last trials run count as its own time.
        if limit is not None and stage.name not in (DEFAULTS, CONFIRM) and self.study.get_note(stage, FLOOR) is None:
            share = max(0, stage.trials - len(self.study.trials(stage))) / max(1, self.remaining_trials)
            self.study.set_note(stage, FLOOR, limit.left(self.records()) - max(0.0, self._left()) * share)

    def _affordable_confirmation(self) -> tuple[int, int]:
        """Candidates and fresh seeds of the confirmation: the plan's, or as many as the budget of time allows."""
        top_k, repeats = self.plan.top_k, self.plan.repeats
        # Without the reserve's margin, which the trials that were running may have used.
        limit = self._limit
        each = 0.0 if limit is None else self.plan.rungs.max_epochs * epoch_seconds(self.records())
        if limit is None or not each:
            return top_k, repeats
        rounds = int(max(0.0, limit.left(self.records())) / each / limit.concurrent)
        return affordable(top_k, repeats, rounds * limit.concurrent, self.plan.drop, limit.concurrent)
