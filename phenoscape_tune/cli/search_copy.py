"""The copy of a search on remote storage: its question at once, all that it holds at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from phenoscape_tune.cli.common import warn
from phenoscape_tune.cli.saved_search import SEARCH_FILE
from phenoscape_tune.mirror import Mirror
from phenoscape_tune.storage import Storage

if TYPE_CHECKING:
    from phenoscape_tune.search.conductor import Conductor

_RESULTS = ("study.journal", "leaderboard.csv", "best.yaml", "summary.json", "report.html")


@contextmanager
def open_mirror(conductor: Conductor) -> Iterator[Mirror]:
    """The search's copy on remote storage, where it has one; up to date when this is left."""
    plan = conductor.plan
    storage = None if plan.base.storage is None else Storage(plan.base.storage)
    with Mirror(storage, plan.folder, lambda line: warn([line]), to_the_end=True) as mirror:
        mirror.put(SEARCH_FILE)
        try:
            yield mirror
        finally:
            mirror.put(*(name for name in _RESULTS if (plan.folder / name).exists()))
            mirror.put_folder("logs")
            _put_trials(conductor, mirror)


def _put_trials(conductor: Conductor, mirror: Mirror) -> None:
    """Have uploaded what trials that have ended did not come to: a process is cut off soon after its trial's end."""
    folder = conductor.plan.folder
    for record in conductor.records() if conductor.plan.base.storage is not None else ():
        if record.ended:
            own = f"trials/{record.name}"
            mirror.put_lacking(*(name for name in (f"{own}/config.yaml",) if (folder / name).exists()))
            mirror.put(*(name for name in (f"{own}/test_scores.csv",) if (folder / name).exists()))
            mirror.put_folder_lacking(f"{own}/logs")
            # Of those that are not kept, they are gone by now.
            checkpoints = (f"{own}/checkpoints/{name}" for name in ("last.ckpt", "best.ckpt"))
            mirror.put_lacking(*(name for name in checkpoints if (folder / name).exists()), sealed=True)
