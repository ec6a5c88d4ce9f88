"""Checkpoints: written aside and renamed, loaded as plain tensors and values."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from phenoscape_tune.errors import UserError

FORMAT = 1


@dataclass
class State:
    """Everything that a resume needs. The random state follows from (seed, epoch) and needs no keeping."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    config: dict[str, Any]
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16 gradients; empty elsewhere


def save(state: State, folder: Path, *, best: bool) -> None:
    """Write `last.ckpt`, and make it `best.ckpt` too where it is the best so far.

    A reader, or a run killed in the middle, sees the old file or the new one and never a part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".last.ckpt.tmp"
    with aside.open("wb") as file:
        torch.save({"format": FORMAT, **vars(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / "last.ckpt")
    if best:
        aside = folder / ".best.ckpt.tmp"
        aside.unlink(missing_ok=True)
        try:
            os.link(folder / "last.ckpt", aside)  # the same bytes: no need to write them twice
        except OSError:
            shutil.copyfile(folder / "last.ckpt", aside)
        os.replace(aside, folder / "best.ckpt")


def load(path: Path) -> State:
    """Read a checkpoint with weights and plain values only: code in a stranger's file is refused, never executed.

    Raises UserError for a file that is missing, not whole, or not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path}: is not a whole checkpoint of this project ({type(error).__name__}); give another one, for "
            "example checkpoints/best.ckpt of the same run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a checkpoint of this project (format {FORMAT})")
    content.pop("format")
    return State(**content)
