"""Which trials keep their checkpoints: the best ones, the baseline and the winner. A thousand trials must not fill a
disk, and nothing that a search does later reads the others': a resume continues only trials that have not ended."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from phenoscape_tune.mirror import Mirror
from phenoscape_tune.search.conductor import Conductor
from phenoscape_tune.search.plan import Plan

log = logging.getLogger(__name__)

BESIDE = 2  # trials that are kept beside the best ones: the baseline, and the winner where it is none of them
_BEFORE = "previous.ckpt"
_ASIDE = (".last.ckpt.tmp", ".previous.ckpt.tmp", ".best.ckpt.tmp", ".fetched.ckpt.tmp")  # of a killed process
_FILES = ("last.ckpt", _BEFORE, "best.ckpt", *_ASIDE)


def kept_at_most(plan: Plan, warm: int = 0) -> int:
    """Ended trials that have checkpoints at any time; the candidates of the confirmation are known at its end.

    By PASHA's rule also those that wait at a ceiling, among `warm` trials of an earlier search.
    """
    longest = max(stage.trials for stage in plan.stages)
    waiting = min(longest, math.ceil((longest + warm + 1) / plan.rungs.factor)) if plan.space.scheduler.pasha else 0
    return max(plan.space.keep, plan.top_k) + BESIDE + waiting


class Retention:
    """Removes the checkpoints that a search no longer needs. What it writes of a trial beside them stays."""

    def __init__(self, conductor: Conductor, mirror: Mirror | None = None) -> None:
        self._conductor = conductor
        self._mirror = mirror
        self._removed: set[str] = set()
        self._trimmed: set[str] = set()

    def sweep(self, winner: str | None = None) -> None:
        """Remove what the trials that have ended leave behind; called whenever one has.

        Args:
            winner: the trial that best.yaml holds, once the search is done; it is kept whatever its rank.
        """
        needed = self._needed(winner)
        for record in self._conductor.records():
            if not record.ended:  # it may have waited at a ceiling, and goes on
                self._removed.discard(record.name)
                self._trimmed.discard(record.name)
            if not record.ended or record.name in self._removed:
                continue
            folder = self._conductor.plan.folder / "trials" / record.name / "checkpoints"
            if record.name not in needed:
                self._removed.add(record.name)
                _remove(folder, _FILES)
                if self._mirror is not None:
                    self._mirror.remove_folder(f"trials/{record.name}/checkpoints")
            elif record.name not in self._trimmed and not record.waiting:
                self._trimmed.add(record.name)
                _remove(folder, (_BEFORE, *_ASIDE))  # of no use to a trial that is not resumed

    def _needed(self, winner: str | None) -> set[str]:
        plan, baseline = self._conductor.plan, self._conductor.baseline
        # Those of an earlier search have no checkpoints here.
        own = [record for record in self._conductor.ranked() if not record.warm]
        names = {record.name for record in own[: plan.space.keep]}
        # Which of the candidates wins is known when all have been repeated.
        if not self._conductor.done:
            more = (*self._conductor.candidates(plan.top_k), *self._conductor.may_go_on())
            names |= {record.name for record in more}
        return names | ({baseline.name} if baseline is not None else set()) | ({winner} if winner else set())


def _remove(folder: Path, names: tuple[str, ...]) -> None:
    """Remove files of ours, and a folder that is empty then. What cannot be removed is said, and is no fault."""
    try:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        log.warning("%s: checkpoints that are no longer needed could not be removed (%s)", folder, error.strerror)
