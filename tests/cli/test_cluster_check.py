from __future__ import annotations

import time
from pathlib import Path

import pytest

from phenoscape_tune.cli.cluster_check import check_cluster
from phenoscape_tune.cli.rows import FAULT, OK
from phenoscape_tune.config import build_config


@pytest.mark.parametrize(
    ("address", "told"), [("127.0.0.1:1", "nobody answers there"), ("ray://x:1", "is not auto or HOST:PORT")]
)
def test_an_address_that_cannot_be_joined_is_one_row(address: str, told: str, tmp_path: Path) -> None:
    (row,) = check_cluster(address, None, tmp_path)
    assert row.state == FAULT and told in row.found and "\n" not in row.found


def test_a_cluster_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    begun = time.monotonic()
    (row,) = check_cluster("127.0.0.1:1", None, tmp_path, seconds=0.5)
    assert row.state == FAULT and "no answer within 0.5 s" in row.found
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_the_machines_of_a_cluster_are_counted_and_asked(ray_session: None, birds: Path, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    rows = list(check_cluster(address, build_config({"data_dir": str(birds)}), tmp_path / "search"))
    assert [(row.name, row.state) for row in rows if row.state == OK] == [("machines", OK), ("search", OK)]
    assert "1 at" in rows[0].found and "2 CPUs" in rows[0].found
