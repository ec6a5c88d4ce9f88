"""What `--doctor` asks of the installation, in processes of their own: a library may crash when it is loaded."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

from phenoscape_tune.cli.rows import FAULT, OK, WARNING, Row
from phenoscape_tune.training.gpus import visible_gpus

OURS = "phenoscape-tune"
INSTALL = "pip install -c constraints.txt -e ."
IMPORTED = ("torch", "torchvision", "timm", "ray", "optuna")
OLD_DRIVER = re.compile(r"driver on your system is too old|CUDA driver version is insufficient", re.IGNORECASE)

# Each on a line of its own, so that a crash leaves what was found before.
_IMPORT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    print(json.dumps({"name": name}), flush=True)
    try:
        module = importlib.import_module(name)
        if name == "torchvision":
            import torch
            torch.ops.torchvision.nms  # compiled for one torch only
        print(json.dumps({"name": name, "version": getattr(module, "__version__", "")}), flush=True)
    except BaseException as error:
        print(json.dumps({"name": name, "error": f"{type(error).__name__}: {error}"}), flush=True)
"""
_GPUS = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = {"cuda": torch.version.cuda, "count": count, "error": "", "bf16": []}
    for index in range(count):
        try:
            torch.ones(8, device=f"cuda:{index}").sum().item()
            found["bf16"].append(torch.cuda.get_device_capability(index)[0] >= 8)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
    found["warnings"] = [str(each.message) for each in caught]
print(json.dumps(found))
"""
_RAY = """
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.cluster import check_on_worker, start_ray
try:
    start_ray(1, False)
    check_on_worker(build_config({"backbone": "test_resnet.r160_in1k", "input_size": 32, "accelerator": "cpu"}), 0, 3)
except UserError as error:
    raise SystemExit(str(error))
"""


def check_python() -> list[Row]:
    """The interpreter against what the package asks for."""
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} ({sys.executable})"
    try:
        wanted = metadata(OURS)["Requires-Python"]
    except PackageNotFoundError:
        return [Row("python", WARNING, f"{found}; this package is not installed in it", INSTALL)]
    if wanted and platform.python_version() not in SpecifierSet(wanted):
        return [Row("python", FAULT, f"{found}; {wanted} is needed", f"make an environment with python {wanted}")]
    return [Row("python", OK, found)]


def check_packages() -> list[Row]:
    """The versions of the packages against what is required, and torchvision's against its torch."""
    rows = []
    wanted = [text for text in requires(OURS) or () if "extra ==" not in text]
    for text in wanted:
        rows += _compare(text)
    for text in _requires("torchvision"):
        if re.match(r"torch\b", text):
            rows += _compare(text, "torchvision is built for")
    return rows or [Row("packages", OK, f"{len(wanted)} as required")]


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []


def _compare(text: str, why: str = "needed:") -> list[Row]:
    from packaging.requirements import Requirement

    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
        return []
    named = f"{wanted.name}{wanted.specifier}"
    try:
        installed = version(wanted.name)
    except PackageNotFoundError:
        return [Row(wanted.name, FAULT, f"is not installed; {why} {named}", INSTALL)]
    # A local part such as +cu128 says with what it was built.
    if not wanted.specifier.contains(installed.split("+")[0], prereleases=True):
        return [Row(wanted.name, FAULT, f"{installed} is installed; {why} {named}", INSTALL)]
    return []


def check_imports(seconds: float = 240) -> Iterator[Row]:
    """Loads the large libraries, and asks torch for the GPUs that the driver tells of."""
    code, output, error = run_apart([sys.executable, "-c", _IMPORT, *IMPORTED], seconds)
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    loaded = {each["name"]: each["version"] for each in told if "version" in each}
    faults = {each["name"]: each["error"] for each in told if "error" in each}
    for name, reason in faults.items():
        yield Row(f"import {name}", FAULT, " ".join(reason.split())[:400], INSTALL)
    begun = next((each["name"] for each in reversed(told) if each["name"] not in {*loaded, *faults}), None)
    if begun is not None:
        how = (
            f"no end within {seconds:g} s"
            if code is None
            else f"the process ended (exit code {code}) {last_line(error)}"
        )
        yield Row(f"import {begun}", FAULT, how, INSTALL)
    if loaded:
        yield Row("imports", OK, ", ".join(f"{name} {number}" for name, number in loaded.items()))
    if "torch" in loaded:
        yield from check_gpus()


def check_gpus(seconds: float = 60) -> Iterator[Row]:
    """GPUs as the driver tells of them, and as torch can use them."""
    cards = visible_gpus()
    code, output, error = run_apart([sys.executable, "-c", _GPUS], seconds)
    if code != 0:
        yield Row("GPUs", FAULT, f"torch does not answer: {last_line(error) or code}", "nvidia-smi; update the driver")
        return
    yield from compare_gpus([card.name for card in cards], json.loads(output.splitlines()[-1]))


def compare_gpus(cards: list[str], torch: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of what the driver has (`cards`, names) against what torch can use."""
    told = ", ".join(cards)
    old = next((text for text in torch["warnings"] if OLD_DRIVER.search(text)), None)
    if torch["error"]:
        yield Row(
            "GPUs", FAULT, f"{told}: {' '.join(torch['error'].split())[:300]}", "nvidia-smi; a torch for this card"
        )
    elif old is not None:
        remedy = "update the driver, or install a torch built for its CUDA"
        yield Row("GPUs", FAULT, f"the driver is too old for CUDA {torch['cuda']}, with which torch is built", remedy)
    elif cards and torch["cuda"] is None:
        yield Row("GPUs", FAULT, f"{told}; but torch is built without CUDA", "install a torch with CUDA")
    elif len(cards) > torch["count"]:
        remedy = "nvidia-smi; CUDA_VISIBLE_DEVICES; the device files of a container (docker run --gpus all)"
        yield Row("GPUs", FAULT, f"{told}; but torch finds {torch['count']}", remedy)
    elif not torch["count"]:
        yield Row("GPUs", OK, "none; trials run on CPU cores")
    else:
        bf16 = "bf16 is fast on them" if all(torch["bf16"]) else "without fast bf16: precision: 16 or 32"
        yield Row("GPUs", OK, f"{told or torch['count']}; CUDA {torch['cuda']}; {bf16}")


def check_ray(seconds: float = 180) -> list[Row]:
    """Starts Ray on this machine, builds a small network in a worker, and ends it again."""
    code, _, error = run_apart([sys.executable, "-c", _RAY], seconds)
    if code == 0:
        return [Row("Ray", OK, "starts here; a worker built a network")]
    how = f"no answer within {seconds:g} s" if code is None else last_line(error) or f"exit code {code}"
    return [
        Row("Ray", FAULT, how, "scripts/tune.py -v shows what Ray says; its logs are in /tmp/ray/session_latest/logs")
    ]


def run_apart(command: list[str], seconds: float) -> tuple[int | None, str, str]:
    """Exit code (None: it did not end in time, and was ended), output and errors of a command with all its children."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        output, error = process.communicate(timeout=seconds)
        return process.returncode, output, error
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, error = process.communicate()
        return None, output, error
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
