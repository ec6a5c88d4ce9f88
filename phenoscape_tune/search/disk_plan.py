"""The disk that a search needs in its folder, estimated from its network and its plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from phenoscape_tune.search.plan import Plan
from phenoscape_tune.search.retention import kept_at_most
from phenoscape_tune.training.disk import (
    WHEN_ENDED,
    WHILE_RUNNING,
    check_space,
    checkpoint_bytes,
    describe_bytes,
    free_bytes,
    log_bytes,
)


@dataclass(frozen=True)
class DiskNeed:
    """What a search needs at most, in bytes: checkpoints of the trials that run, of those that are kept, and logs.

    Attributes:
        ended: of the trials, those of an interrupted search that have ended; their logs are on the disk.
    """

    folder: Path
    checkpoint: int
    concurrent: int
    kept: int
    trials: int
    logs: int
    ended: int = 0

    @property
    def total(self) -> int:
        checkpoints = self.concurrent * WHILE_RUNNING + min(self.kept, self.trials) * WHEN_ENDED
        return checkpoints * self.checkpoint + self.trials * self.logs

    def check(self) -> None:
        """Raise UserError where less is free; what an interrupted search holds already is not needed again."""
        held = sum(path.stat().st_size for path in self.folder.glob("trials/*/checkpoints/*.ckpt"))
        held += min(self.ended, self.trials) * self.logs
        remedy = "free some, choose another folder (--out), or lower keep or --concurrent"
        check_space(self.folder, self.total - held, "the search", remedy)

    def describe(self) -> str:
        """One line for the plan."""
        return (
            f"disk: about {describe_bytes(self.total)} in {self.folder} (estimated: a checkpoint has "
            f"{describe_bytes(self.checkpoint)}; {WHILE_RUNNING} for each running trial, {WHEN_ENDED} for each of at "
            f"most {min(self.kept, self.trials)} kept; logs), {describe_bytes(free_bytes(self.folder))} free"
        )


def plan_disk(plan: Plan, parameters: int, concurrent: int, ended: int = 0, warm: int = 0) -> DiskNeed:
    """What a search needs whose network, the base configuration's, has so many parameters; `ended` of its trials have
    ended in an earlier part of it."""
    base = plan.base.model_copy(update={"max_epochs": plan.rungs.max_epochs})
    return DiskNeed(
        folder=plan.folder,
        checkpoint=checkpoint_bytes(base, parameters),
        concurrent=concurrent,
        kept=kept_at_most(plan, warm),
        trials=sum(stage.trials for stage in plan.stages) + plan.confirmations,
        logs=log_bytes(base),
        ended=ended,
    )
