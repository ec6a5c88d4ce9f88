"""Images per second through two random views: this package against lightly, kornia and torchvision, in one run.

    python benchmarks/augmentation.py --sizes 32 64 128 224 --repeats 5
    python benchmarks/augmentation.py --step --step-size 64
    python benchmarks/augmentation.py --spectra --sizes 64

Every contestant draws SimCLR's crop, flip, jitter, greyscale and blur. They differ in how: lightly (SimCLRTransform)
works on PIL images and torchvision v2 on one image tensor at a time, both in a DataLoader with a worker a core (2 to
16), kornia and this package on whole batches. Contestants take turns within each repeat, so that another process's load
falls on all of them alike.

Of seven channels each does what it can, and a row says what: ours all steps, the colour ones on red, green and blue;
kornia and torchvision no colour, which they have for three channels only; lightly none, since PIL has no such image.

`--step` (on a GPU always) is the time of our views as a share of a training step of ResNet-50, forward, loss, backward
and optimizer, on views that lie in memory.

`--spectra` has no peers: it compares this package with itself, seven channels and 408 bands of 16 bits, with and
without the steps for spectra, against RGB images of 8 bits, by the time that a value (a pixel of a channel of a view)
takes; on a CPU the time of all threads together, which other processes disturb least.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import record
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from phenoscape_tune.augment import build_views
from phenoscape_tune.config import build_config
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.model import build_encoder
from phenoscape_tune.training.device import autocast_dtype
from phenoscape_tune.training.gradient_cache import GradientStep
from phenoscape_tune.training.schedule import build_optimizer
from phenoscape_tune.transforms import TransformsConfig, defaults_of

RESULTS = record.RESULTS / "augmentation.json"
JITTER = (0.4, 0.4, 0.4, 0.1)
# An image is packed at 8/7 of the input size, as for training.
PACKED = 8 / 7
WORKERS = max(2, min(16, len(os.sched_getaffinity(0))))  # loader processes of a peer
STEP_GOAL = 0.05  # of a training step, on a GPU
Run = Callable[[], None]
Row = dict[str, Any]
EVERY, PLAIN = "crop, flip, jitter, greyscale, blur", "crop, flip, blur"
STEPS = {(name, 3): EVERY for name in ("ours", "lightly", "kornia", "torchvision")}
STEPS |= {("ours", 7): f"{EVERY} (colour on three channels)", ("kornia", 7): PLAIN, ("torchvision", 7): PLAIN}

SEVEN = Channels(("red", "green", "blue", "uv1", "uv2", "uv3", "nir"), rgb=(0, 1, 2), uv=(3, 4, 5))
BANDS = Channels(tuple(map(str, range(408))), wavelengths=tuple(400.0 + 1.5 * i for i in range(408)))
EVERY_STEP = {"band_dropout_prob": 0.2}  # beyond the defaults of seven channels


def channels_of(channels: int) -> Channels:
    return RGB if channels == 3 else SEVEN


def odd_kernel(size: int) -> int:
    return max(3, int(0.1 * size) // 2 * 2 + 1)


def ours(images: Tensor, size: int, channels: int) -> Run:
    augment = build_views(TransformsConfig(), channels_of(channels), size)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        augment(images, generator)

    return run


class Loader:
    """A transform of single images in a DataLoader, two batches or more a pass: one for each worker.

    The workers stay, so that their start is not timed.
    """

    def __init__(self, images: Sequence[Any], transform: Callable[[Any], Any], device: torch.device) -> None:
        class Repeated(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return WORKERS * len(images)

            def __getitem__(self, i: int) -> Any:
                return transform(images[i % len(images)])

        self._loader = DataLoader(Repeated(), batch_size=len(images), num_workers=WORKERS, persistent_workers=True)
        self._device = device

    def __call__(self) -> None:
        for views in self._loader:
            torch.cat(views).to(self._device)


def lightly(images: Tensor, size: int, channels: int) -> Run:
    transform = importlib.import_module("lightly.transforms").SimCLRTransform(input_size=size, cj_strength=0.5)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
    return Loader(pictures, transform, images.device)


def kornia(images: Tensor, size: int, channels: int) -> Run:
    K = importlib.import_module("kornia.augmentation")
    colour = [K.ColorJitter(*JITTER, p=0.8), K.RandomGrayscale(p=0.2)] if channels == 3 else []
    augment = K.AugmentationSequential(
        K.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        *colour,
        K.RandomGaussianBlur((odd_kernel(size),) * 2, (0.1, 2.0), p=0.5),
    )

    def run() -> None:
        values = images.float() / 255
        torch.cat((augment(values), augment(values)))

    return run


def torchvision(images: Tensor, size: int, channels: int) -> Run:
    colour = [v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8), v2.RandomGrayscale(0.2)] if channels == 3 else []
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            *colour,
            v2.RandomApply([v2.GaussianBlur(odd_kernel(size), (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return Loader(list(images.cpu()), lambda image: [augment(image), augment(image)], images.device)


def seconds(run: Run, device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()  # the only one: a pass is over when the device has done it
    return time.perf_counter() - start


def cpu_seconds(run: Run, device: torch.device) -> float:
    """Time of all this process's threads together: what other processes take is not counted."""
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(size: int, channels: int, batch: int, repeats: int, device: torch.device) -> list[Row]:
    """Time every contestant at one size, print a row for each and return the rows."""
    side = round(size * PACKED)
    images = torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8).to(device)
    known = {"ours": ours, "lightly": lightly, "kornia": kornia, "torchvision": torchvision}
    if channels != 3:
        del known["lightly"]
    builders = {name: build for name, build in known.items() if record.installed(name)}
    runs = {name: build(images, size, channels) for name, build in builders.items()}
    for run in runs.values():
        run()
        run()
    passes = {name: WORKERS if isinstance(run, Loader) else 1 for name, run in runs.items()}
    times = [{name: seconds(run, device) / passes[name] for name, run in runs.items()} for _ in range(repeats)]
    rows: list[Row] = []
    for name in runs:
        rate = batch / statistics.median(t[name] for t in times)
        ratios = [t[name] / t["ours"] for t in times]
        print(
            f"{size:5} {channels:2}  {name:12} {rate:9.0f} images/s   ours is {record.told(ratios)} times as fast",
            flush=True,
        )
        row = {"size": size, "channels": channels, "batch": batch, "contestant": name, "steps": STEPS[name, channels]}
        found = record.spread(ratios, 2)
        spread = {"ours_times_as_fast": found.pop("median"), **found}
        rows.append(row | {"images_per_second": round(rate, 1)} | spread)
    if channels != 3:
        rows.append({"size": size, "channels": channels, "contestant": "lightly", "steps": "none: works on PIL images"})
    return rows


def compare_step(backbone: str, size: int, batch: int, repeats: int, device: torch.device) -> Row:
    """The time of our views of a batch as a share of a training step on views that lie in memory; prints it too."""
    config = build_config({"backbone": backbone, "input_size": size, "stem": "standard", "batch_size": batch})
    encoder = build_encoder(config, 3, [0.5] * 3, [0.25] * 3, say=lambda line: None).to(device)
    encoder = encoder.to(memory_format=torch.channels_last).train()
    dtype = autocast_dtype(config, device, encoder, 3, say=lambda line: None)
    optimizer, gradient_step = build_optimizer(config, encoder), GradientStep(encoder, config)
    side = round(size * PACKED)
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8).to(device)
    augment, generator = build_views(TransformsConfig(), RGB, size), torch.Generator().manual_seed(0)
    resident = augment(images, generator).contiguous(memory_format=torch.channels_last)
    passes = 10 if device.type == "cuda" else 1  # launched one after the other, as in training

    def views() -> None:
        for _ in range(passes):
            augment(images, generator).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        for _ in range(passes):
            gradient_step(resident, lambda: torch.autocast(device.type, dtype=dtype, enabled=dtype is not None))
            optimizer.step()

    for run in (views, step):
        run()
        run()
    times = [(seconds(views, device) / passes, seconds(step, device) / passes) for _ in range(repeats)]
    shares = [own / whole for own, whole in times]
    middle = [statistics.median(each) for each in zip(*times, strict=True)]
    print(
        f"{size:5}  3  views of {batch} images: {100 * statistics.median(shares):.1f} % "
        f"({100 * min(shares):.1f} to {100 * max(shares):.1f}) of a step of {backbone} ({dtype or torch.float32})",
        flush=True,
    )
    told = {"backbone": backbone, "size": size, "batch": batch, "dtype": str(dtype or torch.float32)}
    told |= {"views_s": round(middle[0], 5), "step_s": round(middle[1], 5), "share": record.spread(shares, 4)}
    if device.type != "cuda":
        return told
    return told | {"goal": STEP_GOAL, "reached": statistics.median(shares) <= STEP_GOAL}


def compare_spectra(size: int, batch: int, repeats: int, device: torch.device) -> list[Row]:
    """Time this package's own views of RGB, seven channels and 408 bands; print a row for each and return the rows."""
    side = round(size * PACKED)
    plain = TransformsConfig(cj_prob=0, random_gray_scale=0)
    seven = TransformsConfig(**defaults_of("multispectral", rgb=True, uv=True, ordered=False), **EVERY_STEP)
    bands = TransformsConfig(**defaults_of("hyperspectral", rgb=False, uv=False, ordered=True))
    cases = {
        "rgb": (RGB, TransformsConfig(), batch),
        "seven, plain": (SEVEN, TransformsConfig(), batch),
        "seven, every step": (SEVEN, seven, batch),
        "408 bands, plain": (BANDS, plain, max(2, batch // 8)),
        "408 bands, every step": (BANDS, bands, max(2, batch // 8)),
    }
    runs: dict[str, Run] = {}
    for name, (channels, transforms, images) in cases.items():
        shape = (images, len(channels), side, side)
        values = torch.randint(0, 256, shape) if channels is RGB else torch.randint(0, 65536, shape)
        pixels = values.to(torch.uint8 if channels is RGB else torch.uint16).to(device)
        runs[name] = _views(pixels, transforms, channels, size)
    for run in runs.values():
        run()
        run()
    measure = seconds if device.type == "cuda" else cpu_seconds
    times = [{name: measure(run, device) for name, run in runs.items()} for _ in range(repeats)]
    rows: list[Row] = []
    for name, (channels, _, images) in cases.items():
        count = 2 * images * len(channels) * size**2
        nanoseconds = [1e9 * t[name] / count for t in times]
        of_rgb = [1e9 * t["rgb"] / (2 * batch * 3 * size**2) for t in times]
        ratios = [own / rgb for own, rgb in zip(nanoseconds, of_rgb, strict=True)]
        middle = statistics.median(nanoseconds)
        print(f"{size:5}  {name:22} {middle:6.2f} ns a value, {record.told(ratios)} times RGB's", flush=True)
        row = {"size": size, "channels": len(channels), "contestant": name, "nanoseconds_a_value": round(middle, 2)}
        found = record.spread(ratios, 2)
        rows.append(row | {"times_rgb_a_value": found.pop("median"), **found} | {"batch": images})
    return rows


def _views(images: Tensor, transforms: TransformsConfig, channels: Channels, size: int) -> Run:
    augment, generator = build_views(transforms, channels, size), torch.Generator().manual_seed(0)

    def run() -> None:
        augment(images, generator)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 128, 224], help="sides of a view, pixels")
    parser.add_argument("--batch", type=int, default=0, help="images a batch; 0 (default): 256 at 64 px, fewer above")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each contestant")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--step", action="store_true", help="our views as a share of a training step, too")
    parser.add_argument("--step-backbone", default="resnet50")
    parser.add_argument("--step-size", type=int, default=224, help="side of a view, pixels")
    parser.add_argument("--step-batch", type=int, default=0, help="images a step; 0 (default): 128 on a GPU, else 16")
    parser.add_argument("--spectra", action="store_true", help="seven channels and 408 bands against RGB")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        record.need_gpu()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    rows: list[Row] = []
    for size in arguments.sizes:
        batch = arguments.batch or max(16, min(256, 256 * 64**2 // size**2))
        if arguments.spectra:
            rows += compare_spectra(size, batch, arguments.repeats, device)
        for channels in () if arguments.spectra else (3, 7):
            rows += compare(size, channels, batch, arguments.repeats, device)
    found: Row = {"repeats": arguments.repeats, "workers": WORKERS, "results": rows}
    if not arguments.spectra and rows:
        # Of every size and number of channels: the slowest that ours ever was against the fastest peer.
        behind = [row for row in rows if row.get("ours_times_as_fast", 1.0) < 1]
        found |= {"goal": "fastest at every size", "reached": not behind}
        print(f"fastest at every size: {'no' if behind else 'yes'}", flush=True)
    if not arguments.spectra and (arguments.step or device.type == "cuda"):
        batch = arguments.step_batch or (128 if device.type == "cuda" else 16)
        found["step"] = compare_step(arguments.step_backbone, arguments.step_size, batch, arguments.repeats, device)
    record.append(arguments.results, {**record.describe(device), **found})
    print(f"appended to {arguments.results}", flush=True)


if __name__ == "__main__":
    main()
