"""What a person sees of a run: TensorBoard, training.log. Ranks that do not write get a monitor that does nothing."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from phenoscape_tune import ranks
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.data.false_colour import pictures_of
from phenoscape_tune.data.parts import Parts
from phenoscape_tune.data.spectra_figure import render_spectra
from phenoscape_tune.evaluate.neighbours import draw_neighbours
from phenoscape_tune.files import is_full_disk
from phenoscape_tune.training.board import NEIGHBOURS, VIEWS, TrialRow, end_of, stage_tag, start_of, tag_of

LOGGER = logging.getLogger("phenoscape_tune")
# Every step, for whoever shows a bar: a record's `msg` is a Progress. None of it goes to a log.
PROGRESS = logging.getLogger("phenoscape_tune.progress")
PROGRESS.propagate = False
PROGRESS.setLevel(logging.INFO)
# Attributes of a record: what an epoch comes to, in few words; that a line is of a step.
BRIEF, STEP = "brief", "step"
SHOWN_PAIRS = 8


@dataclass(frozen=True)
class Progress:
    """How far a run is: `step` of `steps` in `epoch` of `epochs`, all counted from 1; the loss where it is known."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    loss: float | None = None


class Monitor:
    """The monitor of ranks that do not write; `RunMonitor` has the same methods."""

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close what is open."""

    def step(self, epoch: int, step: int, steps: int, values: Mapping[str, float]) -> None:
        """A training step that is logged; `step` counts from 1 within the epoch."""

    def progress(self, progress: Progress) -> None:
        """A training step that has been launched; costs microseconds where nobody looks."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """The end of an epoch, with all that was measured in it."""

    def advise(self, lines: Sequence[str]) -> None:
        """Advice on the run, as warnings."""

    def views(self, pairs: Tensor, channels: Channels) -> None:
        """Augmented views (2B, C, S, S) in [0, 1] of one batch."""

    def spectra(self, spectra: ClassSpectra) -> None:
        """The mean spectrum of each class of the training part."""

    def neighbours(self, parts: Parts, queries: np.ndarray, found: Sequence[np.ndarray]) -> None:
        """Images (indices) with those that are nearest to them in the end."""


class _LogFile(logging.FileHandler):
    """A log that raises where the disk is full; logging would print a traceback for every line, and go on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        error = sys.exc_info()[1]
        if is_full_disk(error) and error is not None:
            raise error
        super().handleError(record)


def _say_all_but_full_disk(thrown: threading.ExceptHookArgs) -> None:
    if not is_full_disk(thrown.exc_value):
        threading.__excepthook__(thrown)


class RunMonitor(Monitor):
    """Writes `logs/training.log` and `logs/tensorboard/` of a run's folder.

    Args:
        folder: the run's folder.
        trial: in a search, how the trial stands beside the others; written at once, so that one that is stopped early
            has its row in TensorBoard's HPARAMS tab too.
        resumed_at: epochs that are already in the logs; what TensorBoard holds beyond them is superseded.
        steps: training steps of an epoch.
    """

    def __init__(self, folder: Path, trial: TrialRow | None, resumed_at: int, steps: int) -> None:
        self._trial = trial
        logs = folder / "logs"
        (logs / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._file = _LogFile(logs / "training.log", encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._file.setLevel(logging.INFO)
        self._level = LOGGER.level
        if not LOGGER.isEnabledFor(logging.INFO):
            LOGGER.setLevel(logging.INFO)
        LOGGER.addHandler(self._file)
        # TensorBoard's thread passes its error on with the next call, and need not show it as well.
        self._excepthook, threading.excepthook = threading.excepthook, _say_all_but_full_disk
        try:
            self._open_board(logs / "tensorboard", resumed_at, steps)
            if trial is not None:
                self._write(start_of(trial))
                self._board.flush()
        except BaseException:
            self._release()
            raise

    def _open_board(self, folder: Path, resumed_at: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        earlier = _step_scalars(folder, resumed_at * steps) if resumed_at else {}
        self._board = SummaryWriter(str(folder), purge_step=resumed_at + 1 if resumed_at else None)
        # What is purged is purged of all tags, and those of steps count higher than those of epochs.
        for tag, scalars in earlier.items():
            for scalar in scalars:
                if scalar.step > resumed_at:
                    self._board.add_scalar(tag, scalar.value, scalar.step, scalar.wall_time)
        self._board.flush()

    def _write(self, summary: Any) -> None:
        writer = self._board.file_writer
        assert writer is not None
        writer.add_summary(summary)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._trial is not None:
                # A trial that is stopped early unwinds by a SystemExit.
                self._write(end_of(failed=isinstance(error, Exception)))
            self._board.close()
        finally:
            self._release()

    def _release(self) -> None:
        """The same process may run the next trial: its lines must not land in this one's log."""
        LOGGER.removeHandler(self._file)
        LOGGER.setLevel(self._level)
        threading.excepthook = self._excepthook
        self._file.close()

    def step(self, epoch: int, step: int, steps: int, values: Mapping[str, float]) -> None:
        total = (epoch - 1) * steps + step
        for key, value in values.items():
            self._board.add_scalar(f"step/{key}", value, total)
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        LOGGER.info("epoch %d  step %d/%d  %s", epoch, step, steps, shown, extra={STEP: True})

    def progress(self, progress: Progress) -> None:
        PROGRESS.info(progress)

    def advise(self, lines: Sequence[str]) -> None:
        for line in lines:
            LOGGER.warning("%s", line)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        for key, value in row.items():
            if key != "epoch" and isinstance(value, float):
                self._board.add_scalar(tag_of(key), value, row["epoch"])
        if self._trial is not None:
            self._board.add_scalar(stage_tag(self._trial.stage), row["objective_mean"], row["epoch"])
            self._board.add_scalar(tag_of("epoch"), row["epoch"], row["epoch"])  # HPARAMS shows the last of it
        self._board.flush()
        shown = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
        LOGGER.info("epoch %d/%d  %s", row["epoch"], epochs, shown, extra={BRIEF: _brief(row, epochs)})

    def views(self, pairs: Tensor, channels: Channels) -> None:
        for each in pictures_of(channels):
            rows = [view[:SHOWN_PAIRS, list(each.indices)].float().cpu().numpy() for view in pairs.chunk(2)]
            shown = np.stack(rows)  # (2, n, 3, S, S)
            _, n, _, height, width = shown.shape
            grid = shown.transpose(2, 0, 3, 1, 4).reshape(3, 2 * height, n * width)
            # The three are all that is left of the channels.
            picture = each if channels == RGB else replace(each, indices=(0, 1, 2)).brightened([grid])
            named = "" if channels == RGB else f": {each.title}"
            self._board.add_image(f"{VIEWS}{named}", picture.paint(grid), 0, dataformats="HWC")

    def spectra(self, spectra: ClassSpectra) -> None:
        self._board.add_image("views/mean spectra by class", render_spectra(spectra), 0, dataformats="HWC")

    def neighbours(self, parts: Parts, queries: np.ndarray, found: Sequence[np.ndarray]) -> None:
        specimens, file = parts.images.specimens, io.BytesIO()
        names = None if specimens.labels is None else [specimens.classes[c] if c >= 0 else "" for c in specimens.labels]
        # As JPEG it takes a quarter of the room.
        size = draw_neighbours(file, parts.images.pixels, queries, found, names, parts.images.channels, "JPEG")
        shown = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=file.getvalue())
        self._write(Summary(value=[Summary.Value(tag=NEIGHBOURS, image=shown)]))


def _brief(row: Mapping[str, Any], epochs: int) -> str:
    """The line of an epoch that fits 80 columns."""
    told = "  ".join(f"{key} {row[key]:.3f}" for key in ("train_loss", "val_loss", "objective") if key in row)
    error = f" ± {row['objective_error']:.3f}" if "objective_error" in row else ""
    seconds = f"  {row['seconds']:.3g} s" if "seconds" in row else ""
    return f"epoch {row['epoch']}/{epochs}  {told}{error}{seconds}"


def _step_scalars(folder: Path, until: int) -> dict[str, list[Any]]:
    """The scalars of training steps up to `until` that a TensorBoard folder holds, by tag, each step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Nothing is taken for purged here: a run may have been killed between a purge and what follows it.
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.startswith("step/")}
    last = {tag: {scalar.step: scalar for scalar in scalars} for tag, scalars in found.items()}
    return {tag: [by_step[step] for step in sorted(by_step) if step <= until] for tag, by_step in last.items()}


def open_monitor(folder: Path, trial: TrialRow | None, resumed_at: int, steps: int) -> Monitor:
    """The monitor of this rank: a writing one for rank 0; see `RunMonitor`."""
    return RunMonitor(folder, trial, resumed_at, steps) if ranks.rank() == 0 else Monitor()
