"""How many images go through the network at once on a device, and how fast.

Measured (`capacity_steps.py`) in a process of its own, which running out of memory may end; this one loads no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import save_config
from phenoscape_tune.training.memory import OutOfMemory

SMALLEST_SIZE = 2  # images
PROCESS_SECONDS = 600.0
USER_FAULT = 2  # exit code
# How a process ends that asks for more memory than there is: by the kernel's or an allocator's hand. Under a limit of
# the address space oneDNN (torch 2.15) now and then writes to memory that it did not get.
OUT_OF_MEMORY_SIGNALS = ("SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS")


@dataclass(frozen=True)
class Capacity:
    """What a device can do with a configuration's network, input size and precision.

    Attributes:
        largest: the most images, two views each, that went through a training step at once; 0 where none did.
        images_per_second: for each number of images that fitted.
        out_of_memory: whether a larger number did not fit; else it was not tried.
        explanation: what cut the measurement short, for the user; empty where nothing did.
    """

    largest: int = 0
    images_per_second: dict[int, float] = field(default_factory=dict)
    out_of_memory: bool = False
    explanation: str = ""

    def micro_batch(self, batch_size: int) -> int | None:
        """The `micro_batch_size` for a batch: None where it fits whole, else the largest power of two that fits.

        Raises OutOfMemory where not even two images fit.
        """
        if batch_size <= self.largest:
            return None
        if self.largest < SMALLEST_SIZE:
            raise OutOfMemory(
                f"out of memory with {SMALLEST_SIZE} images at a time (micro-batch), so batch_size {batch_size} cannot "
                "be trained; try a smaller input_size or backbone"
            )
        return 2 ** (self.largest.bit_length() - 1)


def measure_in_process(
    config: TrainConfig,
    channels: int,
    up_to: int,
    memory_gib: float | None = None,
    env: Mapping[str, str] | None = None,
    concurrent: int = 1,
    seconds: float = PROCESS_SECONDS,
) -> Capacity:
    """`measure_capacity` in a process of its own, which running out of memory may end.

    Args:
        config, channels, up_to: as there.
        memory_gib: memory of the run, in GiB; None: on a CPU `available_memory(concurrent)`, on a GPU all.
        env: environment variables of the process beside this one's: CUDA_VISIBLE_DEVICES, OMP_NUM_THREADS.
        concurrent: trials that will share the machine.
        seconds: time limit; what is known by then counts.

    Raises UserError where the configuration is at fault, or nothing could be measured; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="phenoscape-capacity-") as folder:
        path = Path(folder) / "config.yaml"
        save_config(config, path)
        command = [sys.executable, "-m", "phenoscape_tune.training.capacity_steps", str(path)]
        command += ["--channels", str(channels), "--up-to", str(up_to), "--concurrent", str(concurrent)]
        command += [] if memory_gib is None else ["--memory-gib", str(memory_gib)]
        try:
            ended = subprocess.run(
                command, capture_output=True, timeout=seconds, env={**os.environ, **(env or {})}, check=False
            )
        except subprocess.TimeoutExpired as timeout:
            return _cut_short(timeout.stdout, f"stopped after {seconds:g} s")
    if ended.returncode == 0:
        return _last_line(ended.stdout)
    name = signal.Signals(-ended.returncode).name if ended.returncode < 0 else ""
    if name in OUT_OF_MEMORY_SIGNALS:
        known = _last_line(ended.stdout)
        told = f"the process was ended by {name} above {known.largest} images, which counts as out of memory"
        return replace(known, out_of_memory=True, explanation=told)
    said = ended.stderr.decode(errors="replace").strip()
    if ended.returncode == USER_FAULT:
        raise UserError(said.rpartition("error: ")[2])
    raise _not_measured(said.splitlines()[-1] if said else f"the process ended with code {ended.returncode}")


def _cut_short(output: bytes | None, why: str) -> Capacity:
    known = _last_line(output or b"")
    if not known.images_per_second:
        raise _not_measured(why)
    return replace(known, explanation=f"{why}, above {known.largest} images")


def _not_measured(why: str) -> UserError:
    return UserError(f"batch_size: how many images fit could not be measured: {why}; set batch_size, micro_batch_size")


def _last_line(output: bytes) -> Capacity:
    """The last whole line that the process wrote; an empty Capacity where there is none."""
    for line in reversed(output.decode(errors="replace").splitlines()):
        with suppress(ValueError, TypeError, KeyError):
            values = json.loads(line)
            values["images_per_second"] = {int(k): v for k, v in values["images_per_second"].items()}
            return Capacity(**values)
    return Capacity()
