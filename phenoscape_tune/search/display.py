"""What a person sees of a search: the plan, one calm table of trials while it runs, the outcome at the end."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from phenoscape_tune.evaluate.objective import METRICS, WITH_LABELS, WITHOUT_LABELS
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.marks import derived_keys, short, tell_values
from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.priority import BATCH_SIZE, CONFIRM, RECHECK, REFINE, Stage
from phenoscape_tune.search.record import CAPPED, COMPLETED, FAILED, INFEASIBLE, PRUNED, RUNNING, TrialRecord
from phenoscape_tune.search.story import tell_ceiling
from phenoscape_tune.search.verdict import Outcome, outcome_edges
from phenoscape_tune.terminal import open_console

if TYPE_CHECKING:  # the search's driver must not pay for torch
    from phenoscape_tune.training.capacity import Capacity

_STYLES = {COMPLETED: "green", CAPPED: "green", PRUNED: "dim", FAILED: "red", INFEASIBLE: "magenta", RUNNING: "cyan"}
_SHOWN_ENDED = 12  # rows of ended trials in the live table
_AROUND = 5  # lines of a screen that are no rows: the two of the head, the header, what else runs, the cursor's
_WIDE = 100  # columns from which there is room for whole names, and for reasons
_SILENCE = 300.0  # seconds after which a pipe is told how far the running trials are


def describe_plan(plan: Plan, devices: str, data: str | None, concurrent: int, memory: Sequence[str] = ()) -> list[str]:
    """The plan, line by line; a line a stage begins `stage <n> <name>: <keys>`.

    `memory`: lines on what is told of the GPUs' memory, and of the disk.
    """
    lines = [f"search {plan.folder}"]
    if data:
        lines.append(data)
    lines.append(f"objective: {_describe_objective(plan)}")
    for stage in plan.stages:
        keys = ", ".join(stage.keys) or "none (the configuration as it is)"
        remark = f" ({_REMARKS[stage.name]})" if stage.name in _REMARKS and plan.space.order == "staged" else ""
        lines.append(f"stage {stage.label}: {keys}; {_count(stage.trials, 'trial')}{remark}")
    if plan.confirmations:
        dropping = ", after each seed without the worst" if plan.drop and plan.top_k > 1 and plan.repeats > 1 else ""
        lines.append(
            f"then {CONFIRM}: the best {plan.top_k} and the defaults, each with "
            f"{_count(plan.repeats, 'fresh seed')}{dropping}: {_count(plan.confirmations, 'trial')}"
        )
    levels = ", ".join(map(str, plan.rungs.levels)) or "none"
    lines.append(
        f"trials: {sum(s.trials for s in plan.stages)} + {plan.confirmations} confirmations; "
        f"epochs a trial: {plan.rungs.max_epochs}, compared at {levels} (one in {plan.rungs.factor} goes on)"
        f"{tell_ceiling(plan)}"
    )
    lines.append(f"devices: {devices}, {_count(concurrent, 'trial')} at a time")
    lines += memory
    budget = plan.space.budget
    limits = [f"{budget.hours:g} hours"] if budget.hours else []
    limits += [f"{budget.gpu_hours:g} GPU hours"] if budget.gpu_hours else []
    ends = f", or {' or '.join(limits)}, whichever ends first (the confirmation is set aside)" if limits else ""
    lines.append(
        f"estimated cost: at most {plan.epochs_at_most:,} epochs of training{ends}; the time is told after the first"
    )
    if plan.capacity is not None:
        lines.append(describe_capacity(plan.capacity))
    lines += [f"note: {note}" for note in plan.notes]
    return lines


_REMARKS = {
    BATCH_SIZE: "each at lr times the root of its ratio to the batch size before",
    RECHECK: "only where the batch size changed; else its trials go to later stages that can use them",
    REFINE: "all keys, around the winner",
}


def _describe_objective(plan: Plan) -> str:
    if plan.metric is not None:
        return f"{plan.metric.title} ({'higher' if plan.metric.higher_is_better else 'lower'} is better)"
    if plan.space.objective.metric == "auto":
        return f"{WITH_LABELS.title} where there are labels, else {WITHOUT_LABELS.title}"
    return METRICS[plan.space.objective.metric].title


def describe_capacity(capacity: Capacity) -> str:
    """What the device holds and how fast it is, in one line."""
    speeds = ", ".join(f"{size}: {speed:.0f}" for size, speed in capacity.images_per_second.items())
    if capacity.out_of_memory:
        limit = f"at most {capacity.largest} images fit at once; larger batches go through the network in parts"
    else:
        limit = f"{capacity.largest} images fit at once"
    return f"batch sizes on this device: {limit}; images/s by size: {speeds}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe_outcome(conductor: Conductor, outcome: Outcome | None, best: Path | None) -> list[str]:
    """Baseline, winner, gain, and the two commands to go on with."""
    plan = conductor.plan
    if outcome is None or best is None:
        keys = ", ".join(plan.space.parameters)
        if any("budget of time" in record.reason for record in conductor.records()):
            return ["no trial was completed before the budget of time ended; give it more hours, or fewer max_epochs"]
        return [
            f"no valid trial: none ran to its end (the reasons are in {plan.folder / 'leaderboard.csv'}). "
            f"Try smaller values, above all of lr; searched: {keys}"
        ]
    lines = []
    if outcome.baseline is not None:
        lines.append(f"baseline  {_told(outcome.baseline.objective, outcome.baseline.sd)}  (the defaults)")
    values = outcome.best.record.values
    shown = "  ".join(f"{key}={format_value(value)}" for key, value in values.items()) or "the defaults"
    lines.append(f"winner    {_told(outcome.best.objective, outcome.best.sd)}  {shown}  ({outcome.best.record.name})")
    lines.append(f"gain      {outcome.verdict}")
    lines += [f"edge      {edge}" for edge in outcome_edges(conductor, outcome)]
    lines.append(f"train it  python scripts/train.py --config {_quoted(best)}")
    lines.append(f"look      {_quoted(plan.folder / 'report.html')}")
    lines.append(f"          tensorboard --logdir {_quoted(plan.folder)}")
    return lines


def _shortened(name: str) -> str:
    """A trial's name without the characters that tell it from those of other searches."""
    return name.rsplit("-", 1)[0]


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _told(objective: float, sd: float | None) -> str:
    return f"{objective:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")


def format_value(value: object) -> str:
    """A searched value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


class Display:
    """Shows a running search: a live table on a terminal, a line an event in a pipe or file, nothing if quiet.

    Args:
        concurrent: trials side by side.
        verbose: whether each epoch of each trial is told.
        console: standard output, if none is given.
    """

    def __init__(
        self,
        conductor: Conductor,
        quiet: bool,
        concurrent: int,
        verbose: bool = False,
        console: Console | None = None,
    ) -> None:
        self._conductor = conductor
        self._quiet = quiet
        self._concurrent = concurrent
        self._console = console or open_console()
        self._first_report: float | None = None
        self._epochs_before = sum(len(record.curve) for record in conductor.records())
        self._epochs_done = 0
        self._told: set[str] = {record.name for record in conductor.records() if record.ended}
        self._told_at = time.monotonic()
        self._verbose = verbose
        self._epochs_told = {record.name: len(record.curve) for record in conductor.records()}
        self._stage = ""
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if not self._quiet and self._console.is_interactive:
            self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=1, transient=True)
            self._live.start()
        elif not self._quiet:
            self._tell_stage()  # at once: the first report may be long in coming
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._console.print(self._table(), highlight=False)

    def update(self, epoch_done: bool) -> None:
        """Tell what is new; called after every report and end."""
        # From the first report on: what came before is start-up, and no measure of an epoch.
        if epoch_done and self._first_report is None:
            self._first_report = time.monotonic()
        self._epochs_done += epoch_done
        if not self._quiet and self._live is None:
            self._tell_stage()
        if self._verbose:
            self._tell_epochs()
        if self._quiet or self._live is not None:
            return
        for record in self._conductor.records():
            if not record.ended:
                self._told.discard(record.name)  # it waited at a ceiling, and goes on
            elif record.name not in self._told:
                self._told.add(record.name)
                self._tell(f"  {self._line(record)}; {self._remaining()}")
        if time.monotonic() - self._told_at >= _SILENCE:
            running = [f"{record.name} {self._epoch(record)}" for record in self._conductor.live.values()]
            self._tell(f"  running: {', '.join(running)}; {self._remaining()}")

    def _tell_stage(self) -> None:
        stage = self._conductor.stage
        if stage.name != self._stage:
            self._stage = stage.name
            self._tell(self._stage_line(stage))

    def _tell_epochs(self) -> None:
        for record in self._conductor.records():
            if len(record.curve) > self._epochs_told.get(record.name, 0):
                self._epochs_told[record.name] = len(record.curve)
                self.say(f"  {record.name} epoch {self._epoch(record)} objective {record.curve[-1]:.3f}")

    def _tell(self, line: str) -> None:
        print(line, flush=True)
        self._told_at = time.monotonic()

    def say(self, line: str) -> None:
        """Tell a line about a trial."""
        if self._quiet:
            return
        if self._live is None:
            self._tell(line)
        else:
            self._console.print(Text(line), soft_wrap=True)

    def _stage_line(self, stage: Stage) -> str:
        """A stage with its keys, and the values around which it searches."""
        before = self._conductor.before(stage)
        if stage.name == CONFIRM or before is None:
            return self._stage_title(stage)
        return f"{self._stage_title(stage)}; from {tell_values(before.values) or 'the defaults'}"

    def _stage_title(self, stage: Stage) -> str:
        keys = "the best and the defaults with fresh seeds" if stage.name == CONFIRM else ", ".join(stage.keys)
        return f"stage {stage.label}: {keys or 'the configuration as it is'}"

    def _line(self, record: TrialRecord) -> str:
        objective = "" if record.objective is None else f" objective {record.objective:.3f}"
        reason = f" ({record.reason})" if record.reason else ""
        return f"{record.name} {self._values(record)}: {record.status}{reason}, {len(record.curve)} epochs{objective}"

    def _epoch(self, record: TrialRecord) -> str:
        return f"{len(record.curve)}/{self._conductor.plan.rungs.max_epochs}"

    def _values(self, record: TrialRecord, whole: bool = True) -> str:
        """What a trial has that the others of its stage have not; names shortened unless `whole`."""
        if record.of:
            return f"repeats {record.of if whole else _shortened(record.of)}, seed {record.seed}"
        stage = next(stage for stage in self._conductor.stages if stage.name == record.stage)
        keys = [key for key in dict.fromkeys((*stage.keys, *derived_keys(stage))) if key in record.values]
        return " ".join(f"{short(key)}={format_value(record.values[key])}" for key in keys) or "defaults"

    def _remaining(self) -> str:
        if self._first_report is None or self._epochs_done < 2:
            return "time left: not known yet"
        plan, records = self._conductor.plan, self._conductor.records()
        ended = [record for record in records if record.ended and not record.of]
        # What early stopping saved so far is expected of the rest too.
        length = (sum(len(record.curve) for record in ended) / len(ended)) if len(ended) > 3 else plan.rungs.max_epochs
        total = sum(stage.trials for stage in plan.stages) * length + plan.confirmations * plan.rungs.max_epochs
        left = max(0.0, total - self._epochs_before - self._epochs_done)
        per_epoch = (time.monotonic() - self._first_report) / (self._epochs_done - 1)
        seconds = left * per_epoch
        spending = self._conductor.spending
        if spending is not None and spending.limited:
            # To the end of the budget the confirmation's share belongs too.
            seconds = min(seconds, max(0.0, spending.left(records)) / spending.concurrent)
        minutes = seconds / 60
        return "time left: under a minute" if minutes < 1 else f"time left: about {minutes:.0f} min"

    def _table(self) -> RenderableType:
        """What is running, and what has ended last, with the best so far: no more rows than the screen has."""
        conductor = self._conductor
        records = conductor.records()
        running = [record for record in records if record.name in conductor.live]
        ended = [record for record in records if record.ended]
        leader = next(iter(conductor.ranked()), None)
        room = max(2, self._console.height - _AROUND) if self._console.is_interactive else len(running) + _SHOWN_ENDED
        shown = running[: room - 1]
        last = ended[-min(_SHOWN_ENDED, room - len(shown)) :]
        if leader in ended and leader not in last:
            last[0] = leader
        wide = self._console.width >= _WIDE
        # At 80 columns the values of the last stage just fit between single spaces.
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 1 if wide else 0), header_style="bold")
        table.add_column("trial", no_wrap=True)
        table.add_column("values", ratio=1)
        for column in ("epoch", "objective"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("status", min_width=10, max_width=28)
        for record in [*last, *shown]:
            value = conductor.score(record) if record.ended and not record.of else record.objective
            objective = "" if value is None else f"{value:.3f}"
            mark = "*" if leader is not None and record.name == leader.name else ""
            status = RUNNING if record.name in conductor.live else record.status
            table.add_row(
                record.name if wide else _shortened(record.name),
                Text(self._values(record, wide), no_wrap=True, overflow="ellipsis"),
                self._epoch(record),
                objective + mark,
                Text(
                    record.reason if wide and status in (FAILED, INFEASIBLE) else status,
                    style=_STYLES.get(status, ""),
                    no_wrap=True,
                    overflow="ellipsis",
                ),
            )
        more = len(running) - len(shown)
        rest = [Text(f"... and {more} more running", style="dim")] if more else []
        return Group(*self._head(len(ended), leader), table, *rest)

    def _head(self, ended: int, leader: TrialRecord | None) -> list[Text]:
        """Two lines, each to be read at 80 columns: the stage; how far the search is."""
        plan = self._conductor.plan
        planned = sum(stage.trials for stage in plan.stages) + plan.confirmations
        best = "" if leader is None else f", best * {self._conductor.score(leader):.3f}"
        left = "" if self._conductor.done else f", {self._remaining()}"
        told = f"{ended} of {planned} trials ended, {self._concurrent} at a time{best}{left}"
        lines = (self._stage_title(self._conductor.stage), told)
        return [Text(line, style="bold", no_wrap=True, overflow="ellipsis") for line in lines]
