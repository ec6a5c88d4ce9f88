"""The ranks of a run on several devices: a process each on this machine, started, listened to and ended together.

Each rank runs the training function through a TorchTrainer of its own in Ray Train's local mode, which joins the
process group that torchrun's variables describe. A worker group of Ray Train reserves its devices anew, and where an
early stop ends the trial above it, group and reservation live on; these processes live on what the trial has reserved,
and end with it.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import NoSpaceLeft, UserError
from phenoscape_tune.training import checkpoint
from phenoscape_tune.training.memory import OutOfMemory
from phenoscape_tune.training.monitor import LOGGER, PROGRESS, Progress
from phenoscape_tune.training.run import Diverged, Row, RunOptions

log = logging.getLogger(__name__)

GRACE = 5.0  # seconds in which a stopped first rank may close its logs
SMALLEST = 2  # images of a micro-batch
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
# Imported once in the process that the ranks are forked from; it starts no thread and touches no GPU.
PRELOADED = ["torch", "torch._dynamo", "timm", "phenoscape_tune.training.launch"]

Train = Callable[[TrainConfig, Callable[[Row], None], RunOptions], list[Row]]


class RankDied(RuntimeError):
    """The process of a rank is gone (a signal, the machine's memory): the run may go on from its last checkpoint."""


def device_count(config: TrainConfig) -> int:
    """Devices of a run on this machine: GPUs, or on a CPU processes that share its cores.

    `auto` is every GPU that this process sees, and one CPU. Raises UserError where there are not as many.
    """
    gpus = torch.cuda.device_count() if config.accelerator != "cpu" and torch.cuda.is_available() else 0
    if config.devices == "auto":
        return max(1, gpus)
    known, what = (gpus, "GPU") if gpus else (os.cpu_count() or 1, "CPU core")
    if config.devices > known:
        plural = "" if known == 1 else "s"
        raise UserError(
            f"devices: {config.devices}: this machine has {known} {what}{plural}; set devices=auto or fewer"
        )
    return config.devices


def run_ranks(
    config: TrainConfig, report: Callable[[Row], None], options: RunOptions, count: int, train: Train
) -> list[Row]:
    """Train on `count` devices; the first rank's rows are passed to `report`, which may raise to stop the run.

    Args:
        train: runs one rank in a process of its own; importable by its name.

    Where memory runs out and `micro_batch_size` is auto, the ranks start anew from the last checkpoint with half as
    many images at once. Returns what the first rank does; raises as `train_simclr`, and RankDied where a rank ends
    without a word.
    """
    told = options.reported_epochs

    def count_and_report(row: Row) -> None:
        nonlocal told
        told = max(told, row["epoch"])
        report(row)

    micro, automatic = options.micro_batch or config.batch_size, config.micro_batch_size == "auto"
    while True:
        try:
            return _run_once(config, count_and_report, options, count, train)
        except OutOfMemory as error:
            micro //= 2
            if not automatic or micro < SMALLEST:
                raise
            log.warning("%s: the ranks start anew with %d images at a time", error, micro)
            notes, resume = options.notes, options.resume
            if told > options.reported_epochs:
                resume = Path(config.out_dir) / "checkpoints" / checkpoint.LAST
                if note := checkpoint.recover(resume.parent):
                    log.warning("%s", note)
                    notes = (*notes, note)
            options = replace(options, resume=resume, reported_epochs=told, micro_batch=micro, notes=notes)


@dataclass(frozen=True)
class _Rank:
    process: ForkServerProcess
    connection: Connection


def _run_once(
    config: TrainConfig, report: Callable[[Row], None], options: RunOptions, count: int, train: Train
) -> list[Row]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port, threads = _free_port(), max(1, torch.get_num_threads() // count)
    ranks: list[_Rank] = []
    try:
        for rank in range(count):
            ours, theirs = context.Pipe()
            environment = _environment(rank, count, port, config.accelerator)
            arguments = (theirs, environment, threads, train, config.given(), options, LOGGER.level)
            process = context.Process(target=_be_rank, args=arguments, name=f"rank {rank}", daemon=True)
            with _without_main():
                process.start()
            theirs.close()
            ranks.append(_Rank(process, ours))
        return _listen(ranks, report)
    finally:
        _end(ranks)


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the caller's script within: multiprocessing would run it again in each rank, which needs nothing of it, and
    a script without `if __name__ == "__main__"` would train again there."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def _listen(ranks: list[_Rank], report: Callable[[Row], None]) -> list[Row]:
    """Pass on what the ranks say until all are done; returns the first one's rows. Raises what a rank raised, or
    `report`."""
    talking = dict(enumerate(ranks))
    rows: list[Row] = []
    while talking:
        ready = wait([rank.connection for rank in talking.values()])
        for number, rank in list(talking.items()):
            if rank.connection not in ready:
                continue
            try:
                kind, content = rank.connection.recv()
            except (EOFError, ConnectionResetError):
                raise _death(number, rank) from None
            if kind == "row":
                report(content)
                try:
                    rank.connection.send("go")
                except BrokenPipeError:
                    raise _death(number, rank) from None
            elif kind == "log":
                LOGGER.log(*content)
            elif kind == "error":
                raise content
            elif kind == "progress":
                PROGRESS.info(content)
            else:
                del talking[number]
                rows = content if number == 0 else rows
    return rows


def _death(number: int, rank: _Rank) -> RankDied:
    rank.process.join(GRACE)
    return RankDied(f"the process of rank {number} ended without a word (exit code {rank.process.exitcode})")


def _end(ranks: list[_Rank]) -> None:
    """End all ranks, whatever they are at: nothing of theirs is lost that a checkpoint does not hold."""
    for rank in ranks[1:]:
        rank.process.kill()
    for rank in ranks[:1]:  # it writes the logs
        with suppress(OSError):
            rank.connection.send("stop")
        rank.process.join(GRACE)
        rank.process.kill()
    for rank in ranks:
        rank.process.join()
        rank.connection.close()


def _environment(rank: int, count: int, port: int, accelerator: str) -> dict[str, str]:
    """This process's environment with torchrun's variables, which Ray Train's local mode reads."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    # Local mode takes NCCL and a GPU for each rank wherever it sees GPUs.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if accelerator == "cpu" else {}
    told = {key: str(value) for key, value in own.items()}
    return {**loopback, **os.environ, **hidden, "MASTER_ADDR": "127.0.0.1", **told}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# In the process of a rank


class _Stopped(BaseException):
    """The run is stopped from outside: unwind."""


class _Relay(logging.Handler):
    """Sends log records to the process that started the ranks."""

    def __init__(self, send: Callable[[tuple[str, Any]], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        message = ("progress", record.msg) if isinstance(record.msg, Progress) else None
        self._send(message or ("log", (record.levelno, record.getMessage())))


def _be_rank(
    connection: Connection,
    environment: Mapping[str, str],
    threads: int,
    train: Train,
    config: Mapping[str, Any],
    options: RunOptions,
    level: int,
) -> None:
    """Run one rank, and say how it ended."""
    from phenoscape_tune.config import build_config

    _die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_watch, args=(connection, answers), daemon=True).start()
    first = environment["RANK"] == "0"
    if first:
        LOGGER.setLevel(level)
        for logger in (LOGGER, PROGRESS):
            logger.addHandler(_Relay(connection.send))

    def report(row: Row) -> None:
        if first:
            connection.send(("row", row))
            if answers.get() == "stop":
                raise _Stopped

    try:
        rows = train(build_config(config), report, options)
        connection.send(("done", rows if first else []))
    except _Stopped:
        pass
    except BaseException as error:
        connection.send(("error", _portable(error)))
        # The other ranks may wait for this one for ever: they are ended from outside, and so is this one.
        time.sleep(GRACE)
    # Not by the interpreter's own end: threads of torch that outlive it abort the process now and then.
    os._exit(0)


def _die_with_parent() -> None:
    """Have the system end this process with the one that it was forked from, which ends with the run's: a thread that
    watches (`_watch`) does not run where other code holds on to the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _watch(connection: Connection, answers: queue.SimpleQueue[str]) -> None:
    """Pass on what the starting process says, and end with it."""
    try:
        while True:
            answers.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """The error, or where another process may not know it a RuntimeError that tells of it."""
    if isinstance(error, Diverged):
        return error
    if isinstance(error, UserError | NoSpaceLeft | OutOfMemory | KeyboardInterrupt):
        return type(error)(str(error))
    first_line = (str(error).splitlines() or [""])[0]
    return RuntimeError(f"{type(error).__name__}: {first_line}"[:300])
