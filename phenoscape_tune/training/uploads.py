"""What a run copies to remote storage (`storage: URL`), and fetches from there where its own disk has less."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from phenoscape_tune import ranks
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.mirror import Mirror
from phenoscape_tune.storage import Storage
from phenoscape_tune.training import checkpoint

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
FETCHED = ".fetched.ckpt.tmp"  # in it, what is fetched and not looked at yet


@contextmanager
def open_uploads(config: TrainConfig, say: Callable[[str], None]) -> Iterator[Mirror]:
    """Uploads of a run's folder by its first rank; at the end its configuration, scores and logs, with time to arrive.

    Args:
        say: is told what could not be uploaded; it is no fault of the run.
    """
    storage = None
    if config.storage is not None and ranks.rank() == 0:
        try:
            storage = Storage(config.storage)
        except UserError as error:
            say(f"{error}; nothing is uploaded")
    with Mirror(storage, Path(config.out_dir), say) as mirror:
        mirror.put("config.yaml")  # without it a checkpoint cannot be gone on with elsewhere
        try:
            yield mirror
        finally:
            names = ("config.yaml", "test_scores.csv")
            mirror.put(*(name for name in names if (Path(config.out_dir) / name).exists()))
            mirror.put_folder("logs")


def put_checkpoints(mirror: Mirror, best: bool) -> None:
    """Upload the checkpoints that were saved just now."""
    mirror.put(f"{CHECKPOINTS}/{checkpoint.LAST}", *([f"{CHECKPOINTS}/{checkpoint.BEST}"] if best else []))


def find_last(config: TrainConfig, reported_epochs: int) -> tuple[Path | None, str | None]:
    """The checkpoint from which a search's trial goes on, as `checkpoint.find_last`: the storage's where this machine
    has none, or one that is older than what was reported (the trial ran on another machine since)."""
    folder = Path(config.out_dir) / CHECKPOINTS
    found, note = checkpoint.find_last(folder)
    epoch = 0 if found is None else checkpoint.load(found).epoch
    if config.storage is None or (found is not None and epoch >= reported_epochs):
        return found, note
    aside = folder / FETCHED
    try:
        if not Storage(config.storage).download(f"{CHECKPOINTS}/{checkpoint.LAST}", aside):
            return found, note
        fetched = checkpoint.load(aside).epoch
        if fetched <= epoch:
            return found, note
        os.replace(aside, folder / checkpoint.LAST)
    except (OSError, UserError) as error:
        log.warning("%s: nothing could be fetched: %s", config.storage, error)
        return found, note
    finally:
        aside.unlink(missing_ok=True)
    return folder / checkpoint.LAST, f"goes on from {config.storage}, epoch {fetched}"
