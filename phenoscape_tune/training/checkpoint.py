"""Checkpoints: written aside, sealed with a checksum and renamed; loaded as plain tensors and values."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from phenoscape_tune.errors import UserError
from phenoscape_tune.files import NO_SEAL, SealedWriter, naming_full_disk, removed_on_failure, seal_fault

FORMAT = 2
_UNSEALED = 1  # the format of the versions that wrote no checksum
_EARLIER = f"is of an earlier version of this project (format {_UNSEALED})"
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


@dataclass
class State:
    """Everything that a resume needs. The random state follows from (seed, epoch) and needs no keeping."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    config: dict[str, Any]
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)  # of float16 gradients; empty elsewhere
    channels: dict[str, Any] = field(default_factory=dict)  # `asdict` of the images'; empty where it was not told yet
    value_range: tuple[float, float] | None = None  # of the images' own units, that became 0 to 1; None: the full scale


def save(state: State, folder: Path, *, best: bool) -> None:
    """Write `last.ckpt`, keep the one before as `previous.ckpt`, and make it `best.ckpt` where it is the best so far.

    A reader, or a run killed in the middle, sees old files or new ones and never a part; at every moment one of last
    and previous is whole. Raises NoSpaceLeft where the disk is full: all three are as they were, or newer.
    """
    aside = folder / f".{LAST}.tmp"
    with naming_full_disk(folder), removed_on_failure(aside):
        folder.mkdir(parents=True, exist_ok=True)
        write({"format": FORMAT, **vars(state)}, aside)
        if (folder / LAST).exists():
            _put(folder / LAST, folder / PREVIOUS)
        os.replace(aside, folder / LAST)
        if best:
            _put(folder / LAST, folder / BEST)


def write(content: dict[str, Any], path: Path) -> None:
    """Write a sealed file of tensors and plain values, to the disk. Raises OSError, also where torch hides it."""
    with path.open("wb") as file:
        sealed = SealedWriter(file)
        try:
            torch.save(content, cast("IO[bytes]", sealed))
        except Exception as error:
            # A full disk is "unexpected pos" to torch.
            raise sealed.error or error from None
        sealed.seal()


def _put(source: Path, target: Path) -> None:
    """Give a file that is never written to again a second name, in the place of what had it."""
    aside = target.with_name(f".{target.name}.tmp")
    aside.unlink(missing_ok=True)
    with removed_on_failure(aside):
        try:
            os.link(source, aside)  # the same bytes: no need to write them twice
        except OSError:
            shutil.copyfile(source, aside)
        os.replace(aside, target)


def load(path: Path) -> State:
    """Read a checkpoint with weights and plain values only: code in a stranger's file is refused, never executed.

    Raises UserError for a file that is missing, not whole, or not a checkpoint of this project.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with path.open("rb") as file:
            if fault := seal_fault(file):
                if fault == NO_SEAL and _is_unsealed(file):
                    raise UserError(f"{path}: {_EARLIER}, which cannot be read; train anew")
                raise UserError(
                    f"{path}: is not a whole checkpoint of this project ({fault}); give another one, for example "
                    f"{BEST} or {PREVIOUS} of the same run"
                )
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: is not a whole checkpoint of this project ({type(error).__name__}); give another one, for "
            f"example {BEST} of the same run"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a checkpoint of this project (format {FORMAT})")
    content.pop("format")
    return State(**content)


def find_fault(path: Path) -> str | None:
    """Why a file is no whole checkpoint; None where it is one, as far as its checksum tells."""
    try:
        with path.open("rb") as file:
            fault = seal_fault(file)
            return f"it {_EARLIER}" if fault == NO_SEAL and _is_unsealed(file) else fault
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _is_unsealed(file: BinaryIO) -> bool:
    """Whether a file without a seal is a checkpoint of the versions that wrote none."""
    try:
        content = torch.load(file, map_location="meta", weights_only=True)  # its tensors are not wanted
    except Exception:  # whatever torch says of it, it is none
        return False
    return isinstance(content, dict) and content.get("format") == _UNSEALED


def recover(folder: Path) -> str | None:
    """Make sure that `last.ckpt` is whole, by the one before where it is damaged or missing.

    Returns a line that says so, for the log and the user; None where nothing had to be done. Raises UserError where
    neither is whole.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    fault = find_fault(last)
    if fault is None:
        return None
    another = find_fault(previous)
    if another is not None:
        best = f"go on from {folder / BEST}, or " if find_fault(folder / BEST) is None else ""
        raise UserError(
            f"{last}: is no whole checkpoint ({fault}), and neither is {PREVIOUS} ({another}); {best}start anew"
        )
    epoch, existed = load(previous).epoch, last.exists()
    # Under its name, all that goes on from the last one, now and later, finds a whole one.
    with naming_full_disk(folder):
        _put(previous, last)
    state = f"damaged ({fault})" if existed else "missing"
    return f"{LAST} is {state}: goes on from {PREVIOUS}, epoch {epoch}"


def find_last(folder: Path) -> tuple[Path | None, str | None]:
    """The checkpoint from which a search's trial goes on, and what had to be done for it.

    None where it has to start anew: it has none yet, or none that is whole, which is said.
    """
    if not (folder / LAST).exists() and not (folder / PREVIOUS).exists():
        return None, None
    try:
        return folder / LAST, recover(folder)
    except UserError as error:
        return None, f"starts anew from epoch 0: {error}"
