from __future__ import annotations

import socket
import time

import pytest

from phenoscape_tune.errors import UserError
from phenoscape_tune.search import cluster
from phenoscape_tune.search.cluster import _known_fault, check_address


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://head:8265", "head", "head:", "head:ssh", ":6379", "h:0"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=f"--address {address}: is not auto or HOST:PORT"):
        check_address(address)


def test_an_address_that_nobody_answers_is_refused_at_once() -> None:
    with socket.socket() as probe:  # bound and not listening: nobody else can take it meanwhile
        probe.bind(("127.0.0.1", 0))
        since = time.monotonic()
        with pytest.raises(UserError, match="nobody answers there"):
            check_address(f"127.0.0.1:{probe.getsockname()[1]}")
        assert time.monotonic() - since < 5


@pytest.mark.slow
def test_an_address_where_something_else_answers_is_refused_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phenoscape_tune.search.cluster.ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        since = time.monotonic()
        with pytest.raises(UserError, match="no Ray cluster answers there within 3 s"):
            check_address(f"127.0.0.1:{mute.getsockname()[1]}")
        assert time.monotonic() - since < 20


def test_what_ray_says_becomes_what_to_do() -> None:
    mismatch = "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
    for said, remedy in (
        (mismatch, "Ray: 2.59.0; Python: 3.11.7); install the same on every machine"),
        ("Can't find a `node_ip_address.json` file", "where `ray start` has joined it"),
        ("ConnectionError: Could not find any running Ray instance.", "start one with `ray start`"),
        ("RPC error: InvalidAuthToken: Authentication token is missing", "~/.ray/auth_token"),
    ):
        assert remedy in str(_known_fault(said))
    assert _known_fault("Failed to get cluster ID from GCS server: TimedOut") is None


def test_a_ray_that_starts_late_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def late(**settings: object) -> None:
        asked.append(settings)
        if len(asked) < 3:
            raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(cluster.ray, "init", late)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    cluster._init(num_cpus=1)
    assert asked == [{"num_cpus": 1}] * 3
    monkeypatch.setattr(cluster.ray, "init", lambda **settings: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cluster._init(num_cpus=1)
