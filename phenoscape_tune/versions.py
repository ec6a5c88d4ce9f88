"""Versions of what a result depends on: recorded with every run and every search."""

from __future__ import annotations

import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("phenoscape-tune", "torch", "torchvision", "timm", "ray", "optuna", "numpy", "pillow")


@cache
def versions() -> dict[str, str]:
    """Version of each package, and `source`: `git describe` of this package's own code where it is a checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if described := _describe(Path(__file__).parent):
        found["source"] = described
    return found


def _describe(folder: Path) -> str | None:
    """`git describe` of the checkout that a folder's files belong to; `-dirty` where they were changed since."""
    git = shutil.which("git")
    # Installed into an environment inside of some other project's checkout, it must not be told as that one's.
    if git is None or not (folder.parent / ".git").exists():
        return None
    command = [git, "-C", str(folder), "describe", "--always", "--tags", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
