"""What the tests of the search share."""

from __future__ import annotations

import pytest
from driver import Driver, make_plan, open_conductor
from outcomes import Conduct, conducting, finished_search, minimised_search

from phenoscape_tune.search.conductor import Conductor


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A staged search that has run to its end, for tests that only look at it."""
    driver = Driver(open_conductor(make_plan(tmp_path_factory.mktemp("staged"))))
    driver.run()
    return driver


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    """A search that has run to its end, with completed, pruned and failed trials and a confirmation."""
    return finished_search(tmp_path_factory.mktemp("searches") / "my search")


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Conduct:
    """A confirmed search; how many of 90 test specimens winner and baseline had right, and their costs, are told."""
    return conducting(tmp_path_factory)


@pytest.fixture(scope="module")
def minimised(tmp_path_factory: pytest.TempPathFactory) -> Conductor:
    """A confirmed search without labels: every specimen of the test part has a loss."""
    return minimised_search(tmp_path_factory.mktemp("minimised"))
