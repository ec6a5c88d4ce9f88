"""What ends a search in order: signals, a Ray that is gone, machines that are gone. Tune calls it between its steps."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from typing import Any, Protocol

from phenoscape_tune.search.cluster import cluster_nodes  # first: it sets what Ray reads when it is imported

# isort: split
from phenoscape_tune.errors import UserError

# isort: split
import ray
from ray import tune
from ray.tune.experiment import Trial

PATIENCE = "PHENOSCAPE_TUNE_PATIENCE"  # variable: seconds to wait where no machine is left that a trial fits on
LOOK_SECONDS, NOTICE_SECONDS = 1.0, 60.0


class NotSaved:
    """Tune pickles its parts into a snapshot that nobody reads; the study cannot be pickled, and need not be."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Reports(Protocol):
    """What hears of a search's trials: the runner's scheduler."""

    interrupted: bool

    def hear(self, trial: Trial) -> None:
        """A trial is alive."""


class Interrupt(NotSaved, tune.Callback):
    """Ctrl-C and SIGTERM: tell the scheduler, then let Tune end in order; a second one ends at once.

    So does a signal that Ray's processes have heard too, as a whole process group or service is ended by: without them
    there is no order, and Ray would wait a minute for them and end this process without a word.
    """

    def __init__(self, reports: Reports, advice: str) -> None:
        self._reports = reports
        self._advice = advice
        self._installed = False
        self.over = threading.Event()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._installed:
            return
        self._installed = True
        address = ray.get_runtime_context().gcs_address
        tunes_own = signal.getsignal(signal.SIGINT)

        def interrupt(number: int, frame: Any) -> None:
            if self._reports.interrupted:
                self._end_at_once()
            self._reports.interrupted = True
            threading.Thread(target=self._watch_ray, args=(address,), daemon=True).start()
            if callable(tunes_own):
                tunes_own(signal.SIGINT, frame)

        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, interrupt)

    def _end_at_once(self) -> None:
        print(f"\n{self._advice}", file=sys.stderr, flush=True)
        os._exit(130)  # the journal is on disk at every report: there is nothing left to save

    def _watch_ray(self, address: str) -> None:
        """End at once where Ray is gone before the search has ended."""
        host, _, port = address.rpartition(":")
        while not self.over.wait(1.0):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            except TimeoutError:
                continue  # busy, and not gone
            except OSError:
                if not self.over.is_set():
                    self._end_at_once()


def _patience(joined: bool) -> float:
    """Seconds to wait where no machine is left: one may join a cluster; a Ray of our own is gone for good."""
    told = os.environ.get(PATIENCE, "600" if joined else "60")
    try:
        return float(told)
    except ValueError:
        raise UserError(f"{PATIENCE}: '{told}' is no number of seconds; write for example 600") from None


class Waiting(NotSaved, tune.Callback):
    """Says that no trial runs although some wait, and ends the search in order where no machine is left for them."""

    def __init__(self, reports: Reports, cpus: int, gpus: float, joined: bool) -> None:
        self._reports = reports
        self._cpus, self._gpus = cpus, gpus
        self._patience = _patience(joined)
        self._looked = self._since = time.monotonic()
        self._told = False

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._reports.hear(trial)  # what it waited for a machine is not its silence

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS or self._reports.interrupted:  # trials are many, and steps more
            return
        self._looked = now
        states = {trial.status for trial in trials}
        if Trial.RUNNING in states or Trial.PENDING not in states:
            self._since, self._told = now, False
            return
        waited = now - self._since
        if waited < min(NOTICE_SECONDS, self._patience):
            return
        left = any(node.cpus >= self._cpus and node.gpus >= self._gpus for node in cluster_nodes())
        each = f"a trial needs CPUs: {self._cpus}{f', GPUs: {self._gpus:g}' if self._gpus else ''}"
        if not self._told:
            self._told = True
            gone = "no machine that is left has as many; one may come back"
            why = "the machines are busy, or still starting" if left else gone
            print(f"no trial has run for {waited:.0f} s: {each}; {why}", file=sys.stderr, flush=True)
        if not left and waited >= self._patience:
            print(f"no machine for {waited:.0f} s; {each}; the search ends here", file=sys.stderr, flush=True)
            signal.raise_signal(signal.SIGINT)
