"""Standard output, as it is read: a terminal of some width, a pipe, a file."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def open_console() -> Console:
    """Standard output, whose `is_interactive` says whether it can be redrawn: not a pipe, not TERM=dumb.

    FORCE_COLOR colours a pipe, and makes no terminal of it; NO_COLOR takes the colours from a terminal.
    """
    from rich.console import Console

    return Console(force_interactive=None if sys.stdout.isatty() else False)


def show_lines(lines: Iterable[str], whole: tuple[str, ...] = ()) -> None:
    """Print lines; on a terminal they are broken between words, and what is broken is indented.

    Args:
        whole: how lines begin that are not to be broken, since they are copied: commands, paths.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        kept = len(line) <= width or not width or (whole and line.startswith(whole))
        print(line if kept else wrap(line, width))
    sys.stdout.flush()


def wrap(line: str, width: int) -> str:
    """A line broken between words to at most `width` columns, but for longer words; the rest is indented by two."""
    broken = textwrap.wrap(line, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(broken)
