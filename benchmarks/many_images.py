"""What the number of images costs, 1,000 to 1,000,000: packing them, opening them once they are packed, and memory.

The image files are hard links to a few hundred distinct JPEG files, in class sub-folders. Packing is measured up to
--pack-up-to images, in turns with its limit: the same files decoded and resized by Pillow alone, in as many threads.
Beyond, what is packed is a sparse file of black images in the project's own format: a trial opens it as any other.

Opening is what each process of a search does before its first step: list the folder, see that no file has changed
since it was packed, tell labels and parts. It is measured, in a process of its own, in turns with what a loader by
torchvision does there, `ImageFolder` (a listing with labels alone). All of a folder's names lie in the system's cache.

    python benchmarks/many_images.py [--images 1000 10000 100000 1000000] [--pack-up-to 10000]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import record
from PIL import Image

RESULTS = record.RESULTS / "many_images.json"
DISTINCT = 500  # a file can have 65,000 names at most where the file system is ext4
PHOTOGRAPH, INPUT_SIZE = 256, 64  # pixels
MOST_CLASSES, CLASS_IMAGES = 100, 10
THREADS = 2


def write_folder(folder: Path, count: int) -> None:
    """`count` JPEG files in class sub-folders; of more than `DISTINCT` the others are links to these."""
    rng = np.random.default_rng(0)
    classes = max(2, min(MOST_CLASSES, count // CLASS_IMAGES))
    distinct = []
    for number in range(count):
        own = folder / f"species-{number % classes:03d}"
        if number < classes:
            own.mkdir(parents=True)
        path = f"{own}/specimen-{number:07d}.jpg"
        if number < DISTINCT:
            coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            coarse.resize((PHOTOGRAPH, PHOTOGRAPH), Image.Resampling.BICUBIC).save(path, quality=90)
            distinct.append(path)
        else:
            os.link(distinct[number % DISTINCT], path)


@contextmanager
def watched(found: dict[str, Any], images: int) -> Iterator[None]:
    """Adds seconds, processor_seconds, and the bytes an image that are held and were held at most beyond before."""
    Path("/proc/self/clear_refs").write_text("5")  # the most held is counted from here
    before, started, cpu = record.process_memory(), time.perf_counter(), time.process_time()
    yield
    found["seconds"] = time.perf_counter() - started
    found["processor_seconds"] = time.process_time() - cpu
    found["bytes_an_image"] = round((record.process_memory() - before) / images)
    found["peak_bytes_an_image"] = round((record.process_memory("VmHWM") - before) / images)
    found["peak_mib"] = round(record.process_memory("VmHWM") / 2**20)


def timed(module: Any, name: str, into: dict[str, float]) -> Any:
    """A patch of `module.name`, which adds its seconds to `into`."""
    function: Callable[..., Any] = getattr(module, name)

    def measured(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            into[name] = into.get(name, 0.0) + time.perf_counter() - started

    return patch.object(module, name, measured)


def configure(folder: Path, cache: Path) -> Any:
    from phenoscape_tune.config import build_config

    return build_config({
        "data_dir": str(folder), "cache_dir": str(cache), "input_size": INPUT_SIZE, "num_workers": THREADS,
        "batch_size": 16,
    })  # fmt: skip


def measure_packing(folder: Path, cache: Path, repeats: int) -> dict[str, Any]:
    """Images/s of packing and of Pillow alone, in turns; what the last one packed stays."""
    from phenoscape_tune.data.parts import make_request, open_images
    from phenoscape_tune.data.specimens import find_specimens

    config = configure(folder, cache)
    specimens = find_specimens(folder)
    size, count = make_request(config, specimens).square.size, len(specimens.names)

    def by_pillow(name: str) -> np.ndarray:
        with Image.open(f"{folder}/{name}") as image:
            image.draft("RGB", (2 * size, 2 * size))
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))

    found: dict[str, Any] = {"square": size, "images_per_second": [], "limit_images_per_second": []}
    for _ in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        with watched(found, count):
            images = open_images(config)
        assert len(images.pixels) == count
        found["images_per_second"].append(count / found.pop("seconds"))
        started = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            held = sum(1 for at in range(0, count, 1000) for _ in pool.map(by_pillow, specimens.names[at : at + 1000]))
        assert held == count
        found["limit_images_per_second"].append(count / (time.perf_counter() - started))
    pairs = zip(found["images_per_second"], found["limit_images_per_second"], strict=True)
    found["share_of_limit"] = record.spread(ours / limit for ours, limit in pairs)
    return found


class _Hole:
    """A square of which nothing is written: the file has a hole there."""

    def tobytes(self) -> bytes:
        return b""


def pack_holes(folder: Path, cache: Path) -> None:
    """What packing writes, but for the pixels."""
    from phenoscape_tune.data import packing
    from phenoscape_tune.data.parts import make_request
    from phenoscape_tune.data.specimens import find_specimens

    specimens = find_specimens(folder)
    request = make_request(configure(folder, cache), specimens)
    packed = cache / f"packed-{packing.key_of(specimens, request)}"
    changes: dict[str, Any] = {
        "decode_all": lambda specimens, recipe, workers: ((name, _Hole()) for name in specimens.names),
        "_check_space": lambda *arguments: None,
    }
    with patch.multiple(packing, **changes):
        packing.build_packed(specimens, request, packed, THREADS, None, None)
    with (packed / "images.npy").open("r+b") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)


def measure_opening(folder: Path, cache: Path, repeats: int) -> dict[str, Any]:
    """Opening what is packed, as the driver and each trial's process does, in turns with ImageFolder."""
    import torch  # noqa: F401 (a trial has it)
    from torchvision.datasets import ImageFolder

    from phenoscape_tune.data import packed, parts

    config = configure(folder, cache)

    def refuse(*arguments: Any) -> None:
        raise RuntimeError("what is packed is not found again")

    count = sum(1 for own in folder.iterdir() for _ in os.scandir(own))
    steps: dict[str, float] = {}
    trial: dict[str, Any] = {}
    with (
        patch.object(packed, "build_packed", refuse),
        timed(parts, "find_specimens", steps), timed(packed, "key_of", steps),
        timed(packed, "read_index", steps), timed(parts, "split_specimens", steps),
        watched(trial, count),
    ):  # fmt: skip
        opened = parts.open_parts(config)
    assert len(opened.images.pixels) == count
    trial["steps_seconds"] = steps
    driver: dict[str, Any] = {}
    with watched(driver, count):
        opened.fingerprint  # noqa: B018 (what it costs)
    seconds, theirs = [trial["seconds"]], [_list_by_torchvision(ImageFolder, folder)]
    del opened
    for _ in range(repeats - 1):
        started = time.perf_counter()
        parts.open_parts(config)
        seconds.append(time.perf_counter() - started)
        theirs.append(_list_by_torchvision(ImageFolder, folder))
    ratios = [ours / other for ours, other in zip(seconds, theirs, strict=True)]
    return {
        "trial": trial, "driver_fingerprint": driver, "seconds": seconds, "imagefolder_seconds": theirs,
        "times_imagefolder": record.spread(ratios),
    }  # fmt: skip


def _list_by_torchvision(folder_class: Any, folder: Path) -> float:
    started = time.perf_counter()
    folder_class(str(folder))
    return time.perf_counter() - started


def measure_imagefolder(folder: Path, cache: Path, repeats: int) -> dict[str, Any]:
    """Memory of ImageFolder's list."""
    from torchvision.datasets import ImageFolder

    count = sum(1 for own in folder.iterdir() for _ in os.scandir(own))
    found: dict[str, Any] = {}
    with watched(found, count):
        listed = ImageFolder(str(folder))
    assert len(listed) == count
    return found


PARTS = {"packing": measure_packing, "opening": measure_opening, "imagefolder": measure_imagefolder}


def in_own_process(what: str, folder: Path, cache: Path, repeats: int) -> dict[str, Any]:
    """One part of the measurement; memory of one must not be that of another."""
    command = [sys.executable, __file__, "--one", what, str(folder), str(cache), "--repeats", str(repeats)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def measure(count: int, scratch: Path, pack_up_to: int, repeats: int) -> dict[str, Any]:
    """All of a number of images."""
    folder, cache = scratch / "images", scratch / "cache"
    write_folder(folder, count)
    found: dict[str, Any] = {
        "images": count,
        "files": f"{count} JPEG files of {PHOTOGRAPH} px"
        + (f", hard links to {DISTINCT} distinct ones" if count > DISTINCT else ""),
        "packed": "all decoded" if count <= pack_up_to else "a sparse file of black images in the project's format",
    }
    try:
        if count <= pack_up_to:
            found["packing"] = in_own_process("packing", folder, cache, repeats)
        else:
            pack_holes(folder, cache)
        found["opening"] = in_own_process("opening", folder, cache, repeats)
        found["imagefolder"] = in_own_process("imagefolder", folder, cache, repeats)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(cache, ignore_errors=True)
    return found


def tell(found: dict[str, Any]) -> None:
    """Some lines for a person."""
    opening, trial = found["opening"], found["opening"]["trial"]
    print(f"{found['images']:,} images ({found['packed']})")
    if "packing" in found:
        packing = found["packing"]
        share = packing["share_of_limit"]
        print(
            f"  packing {max(packing['images_per_second']):,.0f} images/s, {share['median']:.2f} ({share['least']:.2f} "
            f"to {share['most']:.2f}) of Pillow alone in as many threads; at most {packing['peak_mib']} MiB"
        )
    steps = ", ".join(f"{name} {seconds:.2f}" for name, seconds in trial["steps_seconds"].items())
    fingerprint = opening["driver_fingerprint"]
    print(
        f"  opening {min(opening['seconds']):.2f} s at best ({steps} s the first time), {trial['bytes_an_image']} "
        f"bytes an image, {trial['peak_bytes_an_image']} at most\n"
        f"  the driver's fingerprint {fingerprint['seconds']:.2f} s, {fingerprint['peak_bytes_an_image']} bytes an "
        "image at most"
    )
    ratio, other = opening["times_imagefolder"], found["imagefolder"]
    print(
        f"  torchvision's ImageFolder {min(opening['imagefolder_seconds']):.2f} s, {other['bytes_an_image']} bytes an "
        f"image; opening takes {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) times that",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--pack-up-to", type=int, default=10_000, help="images; more are a sparse file")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="folder for the files (default: the system's temporary one)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, folder, cache = args.one
        print(json.dumps(PARTS[what](Path(folder), Path(cache), args.repeats)))
        return
    sizes = []
    for count in args.images:
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            sizes.append(measure(count, Path(scratch), args.pack_up_to, args.repeats))
        tell(sizes[-1])
    record.append(args.results, {**record.describe(), "threads": THREADS, "sizes": sizes})


if __name__ == "__main__":
    main()
