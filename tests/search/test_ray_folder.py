from __future__ import annotations

import socket
from pathlib import Path

import pytest

from phenoscape_tune.errors import UserError
from phenoscape_tune.search.ray_folder import LONGEST_PATH, LONGEST_SOCKET, check_ray_folder, hide_token, lend_token


def test_a_folder_is_refused_exactly_where_a_socket_no_longer_fits(tmp_path: Path) -> None:
    longest = "/" + "x" * (LONGEST_PATH - len(LONGEST_SOCKET) - 1)
    assert check_ray_folder({"TMPDIR": longest}) == longest
    with pytest.raises(UserError, match=r"TMPDIR: /x+ has 40 bytes; Ray's sockets leave room for 39\. Set RAY_TMPDIR"):
        check_ray_folder({"TMPDIR": longest + "x"})
    # The system's own limit is where this one stands.
    fits = str(tmp_path / "s").ljust(LONGEST_PATH, "x")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(fits)
    with socket.socket(socket.AF_UNIX) as other, pytest.raises(OSError, match="too long"):
        other.bind(fits + "x")


def test_ray_takes_its_own_variable_first_and_else_the_systems_folder() -> None:
    assert check_ray_folder({"TMPDIR": "/" + "x" * 90, "RAY_TMPDIR": "/short"}) == "/short"
    assert check_ray_folder({}) == "/tmp"


def test_characters_of_several_bytes_count_as_what_they_take() -> None:
    with pytest.raises(UserError, match="has 61 bytes"):
        check_ray_folder({"TMPDIR": "/" + "ö" * 30})


def test_the_token_is_its_owners_alone(tmp_path: Path) -> None:
    hide_token(tmp_path)  # there is none yet
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    hide_token(tmp_path)
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == "secret"


def test_a_home_that_cannot_be_written_is_no_hindrance_to_a_token(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    lent: dict[str, str] = {}
    lend_token(lent, tmp_path / "file")
    assert len(lent["RAY_AUTH_TOKEN"]) == 64
    again: dict[str, str] = {}
    lend_token(again, tmp_path / "file")
    assert again != lent
    for named in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        own = {named: "the user's"}
        lend_token(own, tmp_path / "file")
        assert own == {named: "the user's"}
    none: dict[str, str] = {}
    lend_token(none, tmp_path / "home")  # Ray's own place
    assert not none and not list((tmp_path / "home" / ".ray").iterdir())
