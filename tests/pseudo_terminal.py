"""A real process on a terminal of a given size, without a person before it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*?(?:3[0-7]|9[0-7]|38;[0-9;]+)m")
COLOUR_VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")


def run_on_terminal(
    command: Sequence[str], columns: int, rows: int = 24, variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """The exit code of a Python command, and all that it wrote to a terminal of that size."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in COLOUR_VARIABLES}
    environment = {**kept, "TERM": "xterm-256color", **(variables or {})}
    process = subprocess.Popen(
        [sys.executable, *command], stdin=follower, stdout=follower, stderr=follower, cwd=ROOT, env=environment
    )
    os.close(follower)
    written = bytearray()
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux: all who wrote are gone
            break
        if not part:
            break
        written += part
    os.close(leader)
    return process.wait(timeout=60), written.decode().replace("\r\n", "\n")


def shown_lines(written: str) -> list[str]:
    """The lines that were written, without codes; what a later frame wrote over is a line too."""
    return re.split(r"[\n\r]", CODES.sub("", written))
