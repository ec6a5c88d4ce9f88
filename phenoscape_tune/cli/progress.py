"""What `train.py` shows while it trains: a progress bar on a terminal, plain lines in pipes and files."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from phenoscape_tune.terminal import open_console
from phenoscape_tune.training.monitor import BRIEF, LOGGER, PROGRESS, STEP, Progress


class ProgressBar(logging.Handler):
    """A bar with epoch, loss, images per second and time left; above it run the lines of the log.

    Args:
        console: of the terminal.
        now: a clock, in seconds.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.INFO)
        self._now = now
        self._first: tuple[float, int] | None = None  # when the first step was told, and which it was
        self._loss = ""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[told]}"),
        )
        self._bar = Bar(*columns, console=console, refresh_per_second=2, transient=True, expand=True)
        self._task = self._bar.add_task("starting", total=None, told="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, Progress):
            self._move(record.msg)
        elif not getattr(record, STEP, False):  # what a step has to tell, the bar tells
            self._bar.console.print(self.format(record), markup=False, highlight=False, emoji=False)

    def _move(self, progress: Progress) -> None:
        done = (progress.epoch - 1) * progress.steps + progress.step
        total = progress.epochs * progress.steps
        # Between two readings the last loss stands: asking for one would wait for a GPU.
        if progress.loss is not None:
            self._loss = f"loss {progress.loss:.3f}  "
        told = f"{self._loss}{progress.images_per_second:.0f} images/s  {self._left(done, total)}"
        description = f"epoch {progress.epoch}/{progress.epochs}"
        self._bar.update(self._task, description=description, total=total, completed=done, told=told)

    def _left(self, done: int, total: int) -> str:
        """Time left at the speed since the first step, which the evaluations after each epoch are part of."""
        if self._first is None:
            self._first = (self._now(), done)
        since, first = self._first
        if done == first:
            return "time left: after the first steps"
        seconds = round((self._now() - since) / (done - first) * (total - done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


class _Brief(logging.Formatter):
    """Lines for people who look on: of an epoch what it comes to, and not all that was measured."""

    def format(self, record: logging.LogRecord) -> str:
        return getattr(record, BRIEF, None) or super().format(record)


@contextmanager
def show_training(quiet: bool, verbose: bool = False, console: Console | None = None) -> Iterator[None]:
    """Show, within, what goes to training.log: above a bar on a terminal, else on standard output; nothing if quiet.

    Of an epoch its losses and its objective; where `verbose` all that the log has.
    """
    if quiet:
        yield
        return
    console = console or open_console()
    form = logging.Formatter("%(message)s") if verbose else _Brief("%(message)s")
    if console.is_interactive:
        with ProgressBar(console) as bar, _listening(bar, LOGGER, form), _listening(bar, PROGRESS, form):
            yield
        return
    lines = logging.StreamHandler(sys.stdout)
    lines.setLevel(logging.INFO)
    with _listening(lines, LOGGER, form):
        yield


@contextmanager
def _listening(handler: logging.Handler, logger: logging.Logger, form: logging.Formatter) -> Iterator[None]:
    handler.setFormatter(form)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
