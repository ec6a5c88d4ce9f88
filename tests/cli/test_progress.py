from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from pseudo_terminal import shown_lines
from rich.console import Console

from phenoscape_tune.cli.progress import ProgressBar, show_training
from phenoscape_tune.training.monitor import LOGGER, PROGRESS, Progress


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _the_log_of_a_run() -> Iterator[None]:
    level, before = LOGGER.level, list(PROGRESS.handlers)
    LOGGER.setLevel(logging.INFO)
    yield
    LOGGER.setLevel(level)
    assert PROGRESS.handlers == before


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None, _environ={"TERM": "xterm"})


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(bar: ProgressBar, console: Console) -> str:
    with console.capture() as capture:
        console.print(bar._bar.get_renderable())
    return capture.get()


def told(progress: Progress) -> logging.LogRecord:
    return logging.LogRecord(PROGRESS.name, logging.INFO, "", 0, progress, None, None)  # type: ignore[arg-type]


def test_the_bar_has_epoch_loss_speed_and_the_time_that_is_left() -> None:
    clock, console = Clock(), terminal()
    bar = ProgressBar(console, clock)
    bar.emit(told(Progress(1, 4, 1, 10, 200.0, 3.21987)))
    assert "epoch 1/4" in shown(bar, console)
    assert "time left: after the first steps" in shown(bar, console)
    clock.now += 19 * 60
    bar.emit(told(Progress(2, 4, 10, 10, 412.3)))
    line = shown(bar, console)
    for part in ("epoch 2/4", " 50 %", "loss 3.220", "412 images/s", "0:20:00 left"):
        assert part in line


def test_a_resumed_run_counts_its_own_time_only() -> None:
    clock, console = Clock(), terminal()
    bar = ProgressBar(console, clock)
    bar.emit(told(Progress(81, 100, 1, 10, 200.0)))
    clock.now += 9
    bar.emit(told(Progress(81, 100, 10, 10, 200.0)))
    assert "0:03:10 left" in shown(bar, console)


def test_on_a_terminal_the_log_runs_above_the_bar() -> None:
    console = terminal()
    with show_training(quiet=False, console=console):
        LOGGER.info("epoch 1/4  train_loss 3.1  [not markup]")
        PROGRESS.info(Progress(1, 4, 1, 10, 200.0, 3.2))
    text = printed(console)
    assert "epoch 1/4  train_loss 3.1  [not markup]\n" in text
    assert "200 images/s" in text


EPOCH = {"brief": "epoch 1/4  train_loss 3.100"}


@pytest.mark.parametrize("verbose", [False, True])
def test_of_an_epoch_the_terminal_has_a_short_line_unless_more_is_wanted(verbose: bool) -> None:
    console = terminal()
    with show_training(quiet=False, verbose=verbose, console=console):
        LOGGER.info("epoch 1/4  train_loss 3.1  rankme 20", extra=EPOCH)
        LOGGER.info("epoch 1  step 50/100  loss 3.1", extra={"step": True})  # the bar has it
    text = printed(console)
    assert ("rankme" in text) == verbose
    assert ("epoch 1/4  train_loss 3.100" in text) == (not verbose)
    assert "step 50/100" not in text


def test_above_the_bar_lines_are_broken_between_words() -> None:
    console = terminal()
    words = " ".join(f"word{number}" for number in range(40))
    with show_training(quiet=False, console=console):
        LOGGER.info("%s :bird: done", words)
    lines = [line.strip() for line in shown_lines(printed(console)) if "word" in line]
    assert " ".join(lines) == f"{words} :bird: done"
    assert max(map(len, lines)) <= 100


def test_in_a_pipe_there_are_plain_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with show_training(quiet=False, console=Console(file=io.StringIO(), force_terminal=False)):
        LOGGER.info("epoch 1  step 50/100  loss 3.1", extra={"step": True})
        LOGGER.info("epoch 1/4  train_loss 3.1  rankme 20", extra=EPOCH)
        PROGRESS.info(Progress(1, 4, 1, 10, 200.0, 3.2))
    assert capsys.readouterr() == ("epoch 1  step 50/100  loss 3.1\nepoch 1/4  train_loss 3.100\n", "")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal()
    with show_training(quiet=True, console=console):
        LOGGER.info("epoch 1/4  train_loss 3.1")
        PROGRESS.info(Progress(1, 4, 1, 10, 200.0, 3.2))
    assert capsys.readouterr() == ("", "")
    assert printed(console) == ""


@pytest.mark.parametrize("quiet", [True, False])
def test_an_interruption_takes_the_bar_away(quiet: bool) -> None:
    handlers = list(LOGGER.handlers)
    with pytest.raises(KeyboardInterrupt), show_training(quiet, terminal()):
        raise KeyboardInterrupt
    assert LOGGER.handlers == handlers
