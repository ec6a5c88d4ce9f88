"""A row of `--doctor`'s table: what was looked at, how it is, what was found, what to do."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, FAULT = "ok", "warning", "fault"


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        name: what was looked at.
        state: ok, warning or fault.
        found: what was found, on one line.
        remedy: what to do; empty where all is well.
        area: installation, devices, storage, data or cluster.
    """

    name: str
    state: str
    found: str
    remedy: str = ""
    area: str = ""


def tell(row: Row) -> list[str]:
    """The lines of a row: columns that stand below each other, the remedy on a line of its own."""
    lines = [f"{row.state:<8} {row.area:<13} {row.name:<23} {row.found}".rstrip()]
    return [*lines, f"{'':<46} -> {row.remedy}"] if row.remedy else lines
