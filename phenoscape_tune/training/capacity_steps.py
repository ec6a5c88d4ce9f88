"""Training steps with more and more images at once, until memory runs out: what `capacity.py` is told.

As a command, in a process of its own where running out of memory must not hurt:
`python -m phenoscape_tune.training.capacity_steps CONFIG.yaml --channels 3 --up-to 256` (and `--memory-gib X`,
`--concurrent N`) prints a JSON line after each size, the last one the result.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import torch

from phenoscape_tune.augment import build_views
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import load_config
from phenoscape_tune.model import build_encoder
from phenoscape_tune.training.capacity import SMALLEST_SIZE, USER_FAULT, Capacity
from phenoscape_tune.training.device import autocast_dtype, default_device
from phenoscape_tune.training.gradient_cache import GradientStep
from phenoscape_tune.training.memory import OutOfMemory, available_memory, is_out_of_memory, limited_memory
from phenoscape_tune.training.schedule import build_optimizer, set_learning_rate

FIRST_SIZE = 8  # images
CPU_SECONDS, GPU_STEPS = 1.5, 5  # timed at each size
GIB = 2**30

Report = Callable[[Capacity], None]


def measure_capacity(
    config: TrainConfig,
    channels: int,
    sizes_up_to: int,
    device: torch.device,
    memory_limit: int | None = None,
    report: Report = lambda capacity: None,
) -> Capacity:
    """Double the micro-batch until memory runs out or `sizes_up_to` is reached, training and timing at each size.

    Below 8 images it is halved instead, down to 2; between the last size that fits and the first that does not, the
    middle is tried too. The rest of a much larger batch (its views) has to fit beside the micro-batch, and is not
    measured here. Image and weights are random, and the learning rate is 0.

    Args:
        config: network, input size, precision, optimizer and augmentation are used.
        channels: C of the images.
        sizes_up_to: most images that are tried.
        device: of the run.
        memory_limit: bytes that the run may take. On a CPU beyond what the process holds with the network loaded, by
            default `available_memory()`; on a GPU of its memory, by default all.
        report: called after each size with what is known so far.

    Raises UserError as `build_encoder` does, and for fewer than two images. On a CPU the limit is one of address space,
    beyond which a C++ library may end the process: `measure_in_process` is the safe way.
    """
    if sizes_up_to < SMALLEST_SIZE:
        raise UserError(f"batch_size: {sizes_up_to} images are too few to compare; write {SMALLEST_SIZE} or more")
    step = _training_step(config, channels, device)
    with suppress(_DoesNotFit):
        # Loads kernels and starts threads, which the address space of this process then holds already.
        step(SMALLEST_SIZE)
    known = Capacity()
    with limited_memory(device, memory_limit):
        size: int | None = min(FIRST_SIZE, sizes_up_to)
        too_large: int | None = None
        while size is not None:
            try:
                speed = _time_steps(step, size, device)
            except _DoesNotFit:
                too_large = size
                known = replace(known, out_of_memory=True)
            else:
                speeds = dict(sorted({**known.images_per_second, size: speed}.items()))
                known = replace(known, largest=max(speeds), images_per_second=speeds)
            report(known)
            size = _next_size(known.largest, too_large, sizes_up_to)
    return known


def _next_size(largest: int, too_large: int | None, up_to: int) -> int | None:
    """The number of images to try next; None where the answer is known."""
    if too_large is None:
        return min(2 * largest, up_to) if largest < up_to else None
    if largest == 0:
        return too_large // 2 if too_large // 2 >= SMALLEST_SIZE else None
    middle = (largest + too_large) // 2
    # Only between neighbouring powers of two, once.
    return middle if largest >= FIRST_SIZE and too_large >= 2 * largest else None


class _DoesNotFit(Exception):
    pass


def _training_step(config: TrainConfig, channels: int, device: torch.device) -> Callable[[int], None]:
    """A function that trains one step on so many images, as the real loop does; raises _DoesNotFit."""
    # Pretrained weights take no more room than random ones, which need no download; but they exclude the small stem.
    stem = "standard" if config.stem == "auto" and config.weights is not None else config.stem
    config = config.model_copy(update={"weights": None, "stem": stem})
    encoder = build_encoder(config, channels, [0.5] * channels, [0.25] * channels, lambda note: None).to(device)
    encoder = encoder.to(memory_format=torch.channels_last).train()
    dtype = autocast_dtype(config, device, encoder, channels)
    optimizer = build_optimizer(config, encoder)
    set_learning_rate(optimizer, 0.0)  # the work is the same, and nothing diverges
    two_views = build_views(config.transforms, _stand_in(channels))
    generator = torch.Generator().manual_seed(config.seed)
    side = round(8 / 7 * config.input_size)  # of packed images
    wide = channels != 3 or config.modality not in ("auto", "rgb")  # two bytes a value, as they are packed
    image = torch.randint(0, 256, (1, channels, side, side), dtype=torch.uint8, device=device)
    image = (257 * image.int()).to(torch.uint16) if wide else image

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    @cache
    def gradient_step(size: int) -> GradientStep:
        fixed = config.model_copy(update={"batch_size": size, "micro_batch_size": size})
        return GradientStep(encoder, fixed)

    def step(size: int) -> None:
        try:
            images = image.repeat(size, 1, 1, 1)
            views = two_views(images, generator).contiguous(memory_format=torch.channels_last)  # (2B, C, S, S)
            gradient_step(size)(views, autocast)
            optimizer.step()
        except OutOfMemory:
            raise _DoesNotFit from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise _DoesNotFit from None

    return step


def _stand_in(channels: int) -> Channels:
    """So many channels, for which every step of the augmentation has a meaning."""
    rgb = (0, 1, 2) if channels >= 3 else None
    names = tuple(map(str, range(channels)))
    return Channels(names, rgb=rgb, uv=tuple(range(channels))[-3:], wavelengths=tuple(map(float, range(channels))))


def _time_steps(step: Callable[[int], None], size: int, device: torch.device) -> float:
    """Images per second at a size, after a step that warms up: a second or two on a CPU, a few steps on a GPU."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    started = time.perf_counter()
    step(size)
    wait()
    elapsed, steps = time.perf_counter() - started, 1
    # On a CPU a first step that took that long tells enough.
    if device.type == "cuda" or elapsed < CPU_SECONDS:
        started, elapsed, steps = time.perf_counter(), 0.0, 0
        while steps < GPU_STEPS if device.type == "cuda" else elapsed < CPU_SECONDS:
            step(size)
            steps += 1
            elapsed = time.perf_counter() - started
        wait()
        elapsed = time.perf_counter() - started
    return size * steps / elapsed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement as a command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="capacity", description="Measure how many images fit a device at once.")
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("--channels", type=int, default=3, help="channels of the images (default 3)")
    parser.add_argument("--up-to", type=int, default=256, help="most images that are tried (default 256)")
    parser.add_argument("--memory-gib", type=float, help="memory that the run may take")
    parser.add_argument("--concurrent", type=int, default=1, help="trials that share the machine's memory (default 1)")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.config)
        device = default_device(config)
        limit = None if args.memory_gib is None else int(args.memory_gib * GIB)
        if limit is None and device.type == "cpu":
            limit = available_memory(args.concurrent)
        measure_capacity(
            config,
            args.channels,
            args.up_to,
            device,
            limit,
            report=lambda capacity: print(json.dumps(asdict(capacity)), flush=True),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_FAULT
    return 0


if __name__ == "__main__":
    with suppress(OSError):
        # Where memory ends all the same, the kernel shall end this process and not the search that waits for it.
        Path("/proc/self/oom_score_adj").write_text("1000")
    sys.exit(main())
