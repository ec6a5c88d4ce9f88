"""What `Display` writes of a whole search that costs nothing: run by itself, on a terminal or in a pipe.

python tests/search/shown_search.py FOLDER TRIALS CONCURRENT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from driver import Driver, make_plan, open_conductor

from phenoscape_tune.search.display import Display
from phenoscape_tune.search.space import load_space


def show(folder: Path, trials: int, concurrent: int) -> None:
    """Search all the keys of the shipped space `full`, with a long reason where a trial fails."""
    space = load_space("full")[0].to_mapping() | {"budget": {"trials": trials}}
    conductor = open_conductor(make_plan(folder, **space))
    driver = Driver(conductor, concurrent=concurrent)
    with Display(conductor, quiet=False, concurrent=concurrent) as display:
        for number, _ in enumerate(driver.reports()):
            if number == 40:
                conductor.fail(next(iter(conductor.live)), "RuntimeError: " + "a very long reason " * 12)
            display.update(epoch_done=True)
            if display._live is not None and number % 10 == 0:
                display._live.refresh()  # once a second is too seldom for a search that costs nothing


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # as in the tests beside it: nothing here cuts the power
    show(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
