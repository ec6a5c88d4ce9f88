"""The memory of a search over large hyperspectral cubes: 200 cubes of 408 bands at 128 x 128 pixels.

Writes the cubes (2.7 GB of uint16, synthetic: a smooth spectrum a class times a pattern), runs `tune.py` on them, all
bands, from packing to the result, and asks the system several times a second what each of its processes holds: in all
(resident, which counts pages of the memory-mapped file as long as nobody else needs the room) and by itself
(anonymous). The peer is what a loader that keeps the cubes as float32 tensors holds for them alone.

    python benchmarks/cube_memory.py [--cubes 200] [--side 128] [--input-size 112]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import record

BANDS, CLASSES = 408, 4
GIB = 2**30
SPACE = """
parameters:
  lr: {type: loguniform, low: 1.0e-4, high: 1.0e-2}
scheduler: {grace_epochs: 1, reduction_factor: 2}
budget: {trials: 2, max_epochs: 1}
confirm: null
"""


def write_cubes(folder: Path, count: int, side: int) -> int:
    """Cubes as ENVI files, in class sub-folders; the bytes of all."""
    import spectral.io.envi as envi

    rng, written = np.random.default_rng(0), 0
    wavelengths = np.linspace(350, 1000, BANDS)
    for number in range(count):
        own = number % CLASSES
        spectrum = 0.4 + 0.3 * np.sin(wavelengths / (60 + 5 * own) + rng.normal(0, 0.1))
        pattern = rng.random((side, side, 1), dtype=np.float32)
        cube = (65535 * (0.7 * spectrum + 0.3 * pattern).clip(0, 1)).astype(np.uint16)
        place = folder / f"species_{own}" / f"cube_{number:03d}.hdr"
        place.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"wavelength": wavelengths.tolist(), "wavelength units": "Nanometers"}
        envi.save_image(str(place), cube, interleave="bil", ext=".bil", metadata=metadata, force=True)
        written += cube.nbytes
    return written


def watch(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a command; the most that any one process of it held, in GiB, by what the process was doing."""
    started = time.perf_counter()
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe would fill up: nobody reads it meanwhile)
    running = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
    root = psutil.Process(running.pid)
    peaks: dict[str, dict[str, float]] = {}
    while running.poll() is None:
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.Error:
            break
        for process in processes:
            try:
                name = process.name()
                name = name if name.startswith("ray::") else "driver" if process.pid == running.pid else name
                full = process.memory_info()
            except psutil.Error:
                continue
            held = {"resident": full.rss / GIB, "anonymous": (full.rss - full.shared) / GIB}
            known = peaks.setdefault(name.split("(")[0], {"resident": 0.0, "anonymous": 0.0})
            for key, value in held.items():
                known[key] = round(max(known[key], value), 3)
        time.sleep(0.2)
    said.seek(0)
    told = said.read()
    if running.returncode:
        raise RuntimeError(f"tune.py ended with {running.returncode}:\n{told[-3000:]}")
    print(told[-2500:])
    return {"seconds": round(time.perf_counter() - started, 1), "peaks_gib": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cubes", type=int, default=200)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--input-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--config", default="hyperspectral")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "cube_memory.json")
    args = parser.parse_args()
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_cubes(folder / "cubes", args.cubes, args.side)
        print(f"wrote {args.cubes} cubes, {written / GIB:.2f} GiB", flush=True)
        (folder / "space.yaml").write_text(SPACE)
        command = [sys.executable, str(root / "scripts" / "tune.py"), "--space", str(folder / "space.yaml")]
        command += ["--config", args.config, "--out", str(folder / "search"), f"data_dir={folder / 'cubes'}"]
        command += [f"input_size={args.input_size}", f"batch_size={args.batch_size}", "bands=all"]
        measured = watch(command, {**os.environ, "PHENOSCAPE_CACHE": str(folder / "cache")})
        leaderboard = (folder / "search" / "leaderboard.csv").read_text()
        packed = next((folder / "cache").glob("packed-*/images.npy")).stat().st_size
    worst = max(held["resident"] for held in measured["peaks_gib"].values())
    float32 = 2 * written
    result = {
        **record.describe("cpu"),
        "cubes": args.cubes,
        "shape": [BANDS, args.side, args.side],
        "input_size": args.input_size,
        "batch_size": args.batch_size,
        "written_gib": round(written / GIB, 3),
        "packed_gib": round(packed / GIB, 3),
        **measured,
        "largest_process_gib": worst,
        "cubes_as_float32_gib": round(float32 / GIB, 3),
        "ratio_to_float32": round(worst / (float32 / GIB), 3),
        "trials": leaderboard.splitlines(),
    }
    record.append(args.out, result)
    print(json.dumps({key: value for key, value in result.items() if key != "trials"}, indent=1))


if __name__ == "__main__":
    main()
