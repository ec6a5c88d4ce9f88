"""What Ray keeps on this machine: its sockets, whose names must fit, and its token, which is its user's alone."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from phenoscape_tune.errors import UserError

# Of a path that Ray makes below its folder: the longest name of a session, then of a socket in it.
LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
LONGEST_PATH = 107  # bytes that the system allows to a socket's name


def check_ray_folder(environment: Mapping[str, str] = os.environ) -> str:
    """The folder that Ray uses for its sockets. Raises UserError where its name is too long for them.

    Ray's own complaint is a traceback from inside of its start.
    """
    key = next((key for key in ("RAY_TMPDIR", "TMPDIR") if key in environment), None)
    folder = environment[key] if key is not None else "/tmp"
    longest = LONGEST_PATH - len(LONGEST_SOCKET)
    length = len(os.fsencode(folder))
    if length > longest:
        raise UserError(
            f"{key}: {folder} has {length} bytes; Ray's sockets leave room for {longest}. Set RAY_TMPDIR to a "
            "short folder, for example RAY_TMPDIR=/tmp"
        )
    return folder


def lend_token(environment: MutableMapping[str, str] = os.environ, home: Path | None = None) -> None:
    """Where Ray cannot write the token of its authentication into the home folder, give it one in the environment.

    Ray makes a token once and keeps it in `~/.ray`; this one is as long as this process lives, and handed to its
    children. A token that the user has named is left alone.
    """
    if any(key in environment for key in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")):
        return
    try:
        folder = (home or Path.home()) / ".ray"
        if not (folder / "auth_token").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
    except (OSError, RuntimeError):
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def hide_token(home: Path | None = None) -> None:
    """Take the token of Ray's authentication from the eyes of the machine's other users: Ray writes it readable to all.

    Whoever has it can run code as its owner.
    """
    with suppress(OSError, RuntimeError):  # none yet, no home folder, or another's file
        token = (home or Path.home()) / ".ray" / "auth_token"
        if token.stat().st_mode & 0o077:
            token.chmod(0o600)
