"""What the benchmarks' tests share."""

from __future__ import annotations

from typing import Any

import pytest
from surrogate import Surrogate, read_repeats, read_rows


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """A quarter of the recorded runs, half of each part: enough to fit in a second."""
    return read_rows("cifar-long")[36:60]


@pytest.fixture(scope="session")
def known(rows: list[dict[str, Any]]) -> Surrogate:
    return Surrogate("cifar-long", rows, ("knn",), read_repeats("cifar-long"))
