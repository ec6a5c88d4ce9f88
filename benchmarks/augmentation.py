"""Images per second through two random views: this package against lightly, kornia and torchvision, in one run.

    python benchmarks/augmentation.py --sizes 32 64 128 224 --repeats 5
    python benchmarks/augmentation.py --spectra --sizes 64

Every contestant draws SimCLR's crop, flip, jitter, greyscale and blur. They differ in how: lightly works on PIL images
in a DataLoader with two workers, kornia and this package on whole batches, torchvision on one image tensor at a time.
Contestants take turns within each repeat, so that another process's load falls on all of them alike; the record keeps
the machine's load average. With seven channels kornia leaves colour out, ours recolours the first three.

`--spectra` has no peers: it compares this package with itself, seven channels and 408 bands of 16 bits, with and
without the steps for spectra, against RGB images of 8 bits, by the time that a value (a pixel of a channel of a view)
takes; on a CPU the time of all threads together, which other processes disturb least.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable

import record
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from phenoscape_tune.augment import build_views
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.transforms import TransformsConfig, defaults_of

RESULTS = record.RESULTS / "augmentation.json"
JITTER = (0.4, 0.4, 0.4, 0.1)
# An image is packed at 8/7 of the input size, as for training.
PACKED = 8 / 7
Run = Callable[[], None]


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


def lightly(images: Tensor, size: int, channels: int) -> Run:
    transform = importlib.import_module("lightly.transforms").SimCLRTransform(input_size=size, cj_strength=0.5)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
    device = images.device

    class Pictures(torch.utils.data.Dataset[list[Tensor]]):
        def __len__(self) -> int:
            return 2 * len(pictures)

        def __getitem__(self, i: int) -> list[Tensor]:
            return transform(pictures[i % len(pictures)])

    # Two batches a pass, one for each worker; the workers stay, so that their start is not timed.
    loader = DataLoader(Pictures(), batch_size=len(pictures), num_workers=2, persistent_workers=True)

    def run() -> None:
        for views in loader:
            torch.cat(views).to(device)

    return run


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
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(odd_kernel(size), (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def run() -> None:
        torch.stack([augment(image) for _ in range(2) for image in images])

    return run


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


def compare(size: int, channels: int, batch: int, repeats: int, device: torch.device) -> list[dict[str, object]]:
    """Time every contestant at one size, print a row for each and return the rows."""
    side = round(size * PACKED)
    images = torch.randint(0, 256, (batch, channels, side, side), dtype=torch.uint8).to(device)
    builders = [ours, lightly, kornia, torchvision] if channels == 3 else [ours, kornia]
    runs: dict[str, Run] = {}
    for build in builders:
        try:
            runs[build.__name__] = build(images, size, channels)
        except ImportError:
            print(f"{size:5} {channels:2}  {build.__name__:12} not installed (pip install -e .[bench])")
    for run in runs.values():
        run()
        run()
    passes = {name: 2 if name == "lightly" else 1 for name in runs}
    times = [{name: seconds(run, device) / passes[name] for name, run in runs.items()} for _ in range(repeats)]
    rows: list[dict[str, object]] = []
    for name in runs:
        rate = batch / statistics.median(t[name] for t in times)
        ratios = sorted(t[name] / t["ours"] for t in times)
        ratio = statistics.median(ratios)
        print(
            f"{size:5} {channels:2}  {name:12} {rate:9.0f} images/s   ours is {ratio:5.2f} times as fast "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
        row = {"size": size, "channels": channels, "contestant": name, "images_per_second": round(rate, 1)}
        spread = {"ours_times_as_fast": round(ratio, 2), "least": round(ratios[0], 2), "most": round(ratios[-1], 2)}
        rows.append(row | spread)
    return rows


def compare_spectra(size: int, batch: int, repeats: int, device: torch.device) -> list[dict[str, object]]:
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
    rows: list[dict[str, object]] = []
    for name, (channels, _, images) in cases.items():
        count = 2 * images * len(channels) * size**2
        nanoseconds = [1e9 * t[name] / count for t in times]
        of_rgb = [1e9 * t["rgb"] / (2 * batch * 3 * size**2) for t in times]
        ratios = sorted(own / rgb for own, rgb in zip(nanoseconds, of_rgb, strict=True))
        middle, ratio = statistics.median(nanoseconds), statistics.median(ratios)
        print(
            f"{size:5}  {name:22} {middle:6.2f} ns a value, {ratio:5.2f} times RGB's ({ratios[0]:.2f} to "
            f"{ratios[-1]:.2f})",
            flush=True,
        )
        row = {"size": size, "channels": len(channels), "contestant": name, "nanoseconds_a_value": round(middle, 2)}
        spread = {"times_rgb_a_value": round(ratio, 2), "least": round(ratios[0], 2), "most": round(ratios[-1], 2)}
        rows.append(row | spread | {"batch": images})
    return rows


def _views(images: Tensor, transforms: TransformsConfig, channels: Channels, size: int) -> Run:
    augment, generator = build_views(transforms, channels, size), torch.Generator().manual_seed(0)

    def run() -> None:
        augment(images, generator)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Two views a second: ours, lightly, kornia, torchvision.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128, 224], help="sides of a view, pixels")
    parser.add_argument("--batch", type=int, default=0, help="images a batch; 0 (default): 256 at 64 px, fewer above")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each contestant")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--spectra", action="store_true", help="seven channels and 408 bands against RGB")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    rows: list[dict[str, object]] = []
    for size in arguments.sizes:
        batch = arguments.batch or max(16, min(256, 256 * 64**2 // size**2))
        if arguments.spectra:
            rows += compare_spectra(size, batch, arguments.repeats, device)
        for channels in () if arguments.spectra else (3, 7):
            rows += [r | {"batch": batch} for r in compare(size, channels, batch, arguments.repeats, device)]
    record.append(RESULTS, {**record.describe(device), "repeats": arguments.repeats, "results": rows})
    print(f"appended to {RESULTS}")


if __name__ == "__main__":
    main()
