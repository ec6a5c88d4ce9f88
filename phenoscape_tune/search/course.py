"""The course of a search: its stages with their ranges and winners, each opened around the last winner.

Follows from the study alone. What runs within a stage, and when it ends, is `conductor.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.evaluate.objective import trial_objective
from phenoscape_tune.layers import get_key, set_key
from phenoscape_tune.search.ceiling import first_ceiling
from phenoscape_tune.search.confirm_rounds import count_repeats
from phenoscape_tune.search.edges import widen
from phenoscape_tune.search.parameter import Parameter
from phenoscape_tune.search.plan import Plan, most_trials, trial_devices
from phenoscape_tune.search.priority import BATCH_SIZE, CONFIRM, DEFAULTS, LR, RECHECK, REFINE, Stage
from phenoscape_tune.search.record import COMPLETED, SCORED, TrialRecord
from phenoscape_tune.search.study import Study, confirm_stage
from phenoscape_tune.settling import vary
from phenoscape_tune.storage import join_url

# Shares of a range, on its own scale: what a second look at a known winner searches, and of a stage's trials, what is
# kept back for a range that proves too narrow.
RECHECKED_SHARE, REFINED_SHARE, WIDENED_SHARE = 0.25, 0.6, 1 / 3
# Notes of a stage in the journal.
WIDENED, ENDED_BY, FLOOR, CEILING = "widened", "ended_by", "floor", "ceiling"
CANDIDATES, REPEATS, DROPPED, WARM = "candidates", "repeats", "dropped", "warm"


@dataclass
class Course:
    """The stages of a search so far.

    Attributes:
        warm: finished trials of an earlier search; a resumed search has them from its journal.
        winners: of the stages that ended, in their order; None where no trial was valid.
    """

    plan: Plan
    study: Study
    warm: Sequence[TrialRecord] = ()
    winners: list[TrialRecord | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stages = list(self.plan.stages)
        self._open(self._stages[0])
        # The earlier search may be gone when this one is resumed.
        if self.warm and self.study.get_note(self._stage, WARM) is None:
            self.study.set_note(self._stage, WARM, [asdict(record) for record in self.warm])
        known = self.study.get_note(self._stage, WARM) or []
        self.warm = [TrialRecord(**{**each, "curve": tuple(each["curve"]), "handle": ("", 0)}) for each in known]

    @property
    def stage(self) -> Stage:
        """The stage that is running."""
        return self._stage

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages so far and to come, the confirmation included once it has begun."""
        return (*self._stages, self._stage) if self._stage.name == CONFIRM else tuple(self._stages)

    @property
    def ranges(self) -> dict[str, Parameter]:
        """The range of each searched key, widened where a stage did that."""
        ranges = dict(self.plan.space.parameters)
        for stage in self._stages:
            ranges |= {key: Parameter(**value) for key, value in (self.study.get_note(stage, WIDENED) or {}).items()}
        return ranges

    def records(self, stage: Stage | None = None) -> list[TrialRecord]:
        """The trials of a stage, or of all stages in their order."""
        stages = self.stages if stage is None else (stage,)
        return [record for each in stages for record in self.study.trials(each)]

    @property
    def baseline(self) -> TrialRecord | None:
        """The trial of the defaults, once it was started."""
        records = self.study.trials(self._stages[0])
        return records[0] if records else None

    @property
    def remaining_trials(self) -> int:
        """Trials that the stages to come, and the running one, may still start; the confirmation's not counted."""
        return sum(max(0, stage.trials - len(self.study.trials(stage))) for stage in self._stages[len(self.winners) :])

    def ranked(self) -> list[TrialRecord]:
        """The comparable trials of all stages but the confirmation, best first."""
        # By name: a trial of an earlier search may be told to several stages.
        records = {record.name: record for stage in self._stages for record in self._known(stage)}
        return self.comparable(records.values())

    def before(self, stage: Stage) -> TrialRecord | None:
        """The best trial before a stage, around which it searches."""
        index = [each.name for each in self.stages].index(stage.name)
        return self.winners[index - 1] if 0 < index <= len(self.winners) else None

    def ceiling(self, stage: Stage) -> int:
        """Epochs at which a stage's trials end: all that a trial has, or fewer by PASHA's rule."""
        if not self.plan.space.scheduler.pasha or stage.name in (DEFAULTS, CONFIRM):
            return self.plan.rungs.max_epochs
        return self.study.get_note(stage, CEILING) or first_ceiling(self.plan.rungs)

    def compared_at(self, stage: Stage | None = None) -> int:
        """Epochs at which the trials of a stage, and the best before it, are compared; None: those of all stages."""
        if stage is not None:
            before = None if stage.name == CONFIRM else self.before(stage)
            return min([self.ceiling(stage), *([len(before.curve)] if before is not None else [])])
        return min(self.ceiling(each) for each in self._stages if each.name == DEFAULTS or self._known(each))

    def comparable(self, records: Iterable[TrialRecord], stage: Stage | None = None) -> list[TrialRecord]:
        """Those of some trials that are compared in a stage, or over all stages, best first: the completed ones, or by
        PASHA's rule all that reached the epochs at which that is done."""
        if not self.plan.space.scheduler.pasha:
            found = [(record, record.objective) for record in records if record.status == COMPLETED]
        else:
            epochs = self.compared_at(stage)
            valid = [record for record in records if record.status in SCORED and len(record.curve) >= epochs]
            found = [(record, trial_objective(record.curve[:epochs])) for record in valid]
        sign = self.plan.objective.sign
        return [record for record, _ in sorted(found, key=lambda pair: -sign * (pair[1] or 0.0))]

    def score(self, record: TrialRecord, stage: Stage | None = None) -> float | None:
        """A trial's objective at the epochs at which trials are compared in a stage, or over all stages; at its own end
        where that came before. None before the first epoch."""
        if not self.plan.space.scheduler.pasha:
            return record.objective
        return trial_objective(record.curve[: self.compared_at(stage)]) if record.curve else None

    def config_of(self, record: TrialRecord) -> TrainConfig:
        """The whole configuration of a trial."""
        own: dict[str, Any] = {"max_epochs": self.plan.rungs.max_epochs}
        for key, value in record.values.items():
            set_key(own, key, value)
        own["out_dir"] = str(self.plan.folder / "trials" / record.name)
        if self.plan.base.storage is not None:
            own["storage"] = join_url(self.plan.base.storage, "trials", record.name)
        own |= {"devices": trial_devices(self.plan.base), "early_stopping": None}
        if record.seed is not None:
            own["seed"] = record.seed
        if self.plan.base.T_max == self.plan.base.max_epochs:
            own["T_max"] = None  # it says "the whole run", and a trial's run is shorter
        if self.plan.base.warmup_epochs is not None:
            own["warmup_epochs"] = self.plan.warmup_epochs
        config = vary(self.plan.base, own, record.name)
        # Beyond what fits at once the batch stays reachable: it goes through the network in parts.
        capacity = self.plan.capacity
        micro = capacity.micro_batch(config.batch_size) if capacity and capacity.out_of_memory else None
        if micro is not None and config.micro_batch_size == "auto":
            config = config.model_copy(update={"micro_batch_size": micro})
        return config

    def _scale_lr(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """lr·√(B/B₀) for a batch of B images, within lr's range (SimCLR, arXiv 2002.05709, table B.1): at one learning
        rate for all the sizes the comparison would tell of the learning rate."""
        before = self.plan.base if self._standing is None else self.config_of(self._standing)
        lr = before.lr * math.sqrt(values[BATCH_SIZE] / before.batch_size)
        bounds = self.ranges[LR].bounds if LR in self.ranges else None
        return {LR: lr if bounds is None else min(max(lr, bounds[0]), bounds[1])}

    def candidates(self, top_k: int) -> list[TrialRecord]:
        """What the confirmation would repeat if it began now: the baseline, where it was completed, and the best
        `top_k` of the others."""
        baseline = self.baseline
        top = [record for record in self.ranked() if record.stage != DEFAULTS][:top_k]
        return [baseline, *top] if baseline is not None and baseline.status == COMPLETED else top

    @property
    def _standing(self) -> TrialRecord | None:
        """The winner of the last stage that ended."""
        return self.winners[-1] if self.winners else None

    def _known(self, stage: Stage) -> list[TrialRecord]:
        """The trials of a stage, with those of an earlier search that it was told."""
        return [*self.study.warm_trials(stage), *self.study.trials(stage)]

    @property
    def _first_part(self) -> int | None:
        """Trials before a stage looks whether its winner stands at the edge of its range; None where it never does."""
        if not self.plan.space.extend or self._stage.name in (DEFAULTS, CONFIRM, RECHECK, REFINE):
            return None
        first = self._stage.trials - max(1, round(WIDENED_SHARE * self._stage.trials))
        return first or None

    def _widen(self) -> None:
        """Widen the ranges at whose edge the stage's winner so far stands; once, and then it is on record."""
        winner = self._best(self._stage)
        configuration = {} if winner is None else self.config_of(winner).to_mapping()
        wider = {}
        # Batches have bounds of their own: the number of images, and what was measured.
        for key in [key for key in self._stage.keys if key != BATCH_SIZE] if winner is not None else []:
            parameter = widen(key, self.study.ranges(self._stage)[key], get_key(configuration, key))
            if parameter is not None:
                wider[key] = parameter
        note = {key: parameter.model_dump(mode="json", exclude_none=True) for key, parameter in wider.items()}
        self.study.set_note(self._stage, WIDENED, note)
        if wider:
            self.study.widen_stage(self._stage, wider, self._first_part or 0)

    def _open(self, stage: Stage) -> None:
        self._stage = stage
        winner = self._standing
        configuration = {} if winner is None else self.config_of(winner).to_mapping()
        standing = {key: get_key(configuration, key) for key in stage.keys} if winner else {}
        ranges = {key: self.ranges[key] for key in stage.keys}
        earlier = self._fitting(stage, self.records())
        warm = self._fitting(stage, self.warm)
        share = {RECHECK: RECHECKED_SHARE, REFINE: REFINED_SHARE}.get(stage.name)
        if share is not None:
            ranges = {key: parameter.narrowed(standing.get(key), share) for key, parameter in ranges.items()}
            tried = [standing, *(record.values for record in (*earlier, *warm))]
            stage = self._fit_to_values(stage, ranges, tried)
        self.study.open_stage(stage, winner, standing, ranges, earlier, warm)
        if wider := self.study.get_note(stage, WIDENED):
            widened = {key: Parameter(**value) for key, value in wider.items()}
            self.study.widen_stage(stage, widened, self._first_part or 0)

    def _fit_to_values(
        self, stage: Stage, ranges: Mapping[str, Parameter], tried: Sequence[Mapping[str, Any]]
    ) -> Stage:
        """The stage with no more trials than its ranges have untried values, where those can be counted."""
        grids = [parameter.grid for parameter in ranges.values()]
        if any(grid is None for grid in grids):
            return stage
        known = {
            tuple(values.get(key) for key in ranges)
            for values in tried
            if all(parameter.contains(values.get(key)) for key, parameter in ranges.items())
        }
        most = math.prod(len(grid or []) for grid in grids) - len(known)
        fitted = replace(stage, trials=min(stage.trials, most))
        self._stages[self._stages.index(stage)] = fitted
        self._stage = fitted
        return fitted

    def _fitting(self, stage: Stage, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials that differ from the standing winner in nothing but this stage's keys: it need not run them."""
        if stage.name in (DEFAULTS, CONFIRM):
            return []
        standing = {} if self._standing is None else self._standing.values
        defaults = self.plan.base.to_mapping()

        def fits(record: TrialRecord) -> bool:
            keys = {*self.plan.space.parameters, *record.values, LR} - set(stage.keys)
            wanted = {**standing, **(self._scale_lr(record.values) if stage.name == BATCH_SIZE else {})}
            default = {key: get_key(defaults, key) for key in keys}
            return all({**default, **record.values}[key] == {**default, **wanted}[key] for key in keys)

        taken_over = self._standing.name if self._standing else ""
        own = {key: get_key(defaults, key) for key in stage.keys}
        complete = [replace(record, values={**own, **record.values}) for record in records]
        return [record for record in complete if record.name != taken_over and fits(record)]

    def _best(self, stage: Stage) -> TrialRecord | None:
        """The standing winner, or the comparable trial of the stage that is better."""
        standing = [self._standing] if self._standing else []
        return next(iter(self.comparable([*standing, *self._known(stage)], stage)), None)

    def _advance(self) -> bool:
        """Take the stage's best for the winner and open the next stage; False where there is none."""
        self.winners.append(self._best(self._stage))
        if len(self.winners) < len(self._stages):
            upcoming = self._stages[len(self.winners)]
            if upcoming.name == RECHECK and not self._batch_changed():
                self._skip(upcoming)
        if len(self.winners) >= len(self._stages):
            return False
        self._open(self._stages[len(self.winners)])
        return True

    def _batch_changed(self) -> bool:
        return self._standing is not None and self.config_of(self._standing).batch_size != self.plan.base.batch_size

    def _skip(self, stage: Stage) -> None:
        """Pass over a stage; the later ones that can use them have its trials."""
        place, left = self._stages.index(stage), stage.trials
        self._stages[place] = replace(stage, trials=0)
        self.winners.append(self._standing)
        most = most_trials(self.plan.space, self.plan.base)
        for index in range(place + 1, len(self._stages)):
            heir = self._stages[index]
            given = int(min(left, max(0, most.get(heir.name, math.inf) - heir.trials)))
            self._stages[index], left = replace(heir, trials=heir.trials + given), left - given

    def _open_confirmation(self, top_k: int, repeats: int) -> bool:
        """Open the stage that repeats the best `top_k` trials and the baseline; False where nothing is to be compared.

        What was decided once stands in the journal.
        """
        if not self.plan.repeats:
            return False
        stage = confirm_stage(len(self._stages), 0)
        self.study.open_stage(stage, None)
        names = self.study.get_note(stage, CANDIDATES)
        if names is None:
            names = [record.name for record in self.candidates(top_k)]
            if all(self.baseline is not None and name == self.baseline.name for name in names):
                repeats = 0
            self.study.set_note(stage, REPEATS, repeats)
            self.study.set_note(stage, CANDIDATES, names)
        repeats = self.study.get_note(stage, REPEATS)
        if repeats:
            count = len(self.without_baseline(names))
            trials = count_repeats(count, repeats, self.plan.drop, baseline=count < len(names))
            self._open(replace(stage, trials=trials))
        return bool(repeats)

    @property
    def rounds(self) -> list[list[str]]:
        """Of the confirmation, the trials that each fresh seed repeats, as far as that is decided."""
        if self._stage.name != CONFIRM:
            return []
        names, repeats = (self.study.get_note(self._stage, key) for key in (CANDIDATES, REPEATS))
        dropped = self.study.get_note(self._stage, DROPPED) or []
        rounds = [[name for name in names if name not in dropped[:number]] for number in range(len(dropped) + 1)]
        if not self.plan.drop or len(self.without_baseline(rounds[-1])) <= 1:
            rounds += [rounds[-1]] * (repeats - len(rounds))
        return rounds

    def without_baseline(self, names: Sequence[str]) -> list[str]:
        """The candidates among trials that a confirmation repeats: all but the baseline."""
        return [name for name in names if self.baseline is None or name != self.baseline.name]
