"""`tune.py --doctor`: looks at installation, devices, storage, data and cluster, and says what to do.

Every check is bounded in time, and what goes wrong inside of one is a row like any other.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phenoscape_tune.cli.cluster_check import check_cluster
from phenoscape_tune.cli.common import DONE, OTHER_FAULT, resolve_config
from phenoscape_tune.cli.devices import find_address
from phenoscape_tune.cli.folder_checks import check_folder_works, check_temporary_folder
from phenoscape_tune.cli.machine import check_cores, check_memory, check_open_files, check_shared_memory
from phenoscape_tune.cli.packages import check_imports, check_packages, check_python, check_ray, last_line, run_apart
from phenoscape_tune.cli.question import search_folder
from phenoscape_tune.cli.request import SearchRequest
from phenoscape_tune.cli.rows import FAULT, OK, WARNING, Row, tell
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError

if TYPE_CHECKING:
    from phenoscape_tune.data.readers import Reader

LOOKED_AT = 32  # images that are decoded
# In a process of its own, which can be ended: pyarrow keeps one alive for minutes where a server does not answer.
_STORAGE = """
import sys
from phenoscape_tune.errors import UserError
from phenoscape_tune.storage import Storage

try:
    Storage(sys.argv[1]).check()
except UserError as error:
    sys.exit(" ".join(str(error).split()))
"""


@dataclass(frozen=True)
class Check:
    """A question to the machine.

    Attributes:
        area: heading of its rows.
        name: of its row where it does not answer.
        ask: gives the rows.
        seconds: that it may take.
    """

    area: str
    name: str
    ask: Callable[[], Iterable[Row]]
    seconds: float = 30


def examine(asked: SearchRequest) -> int:
    """Print a row for each thing that was looked at; the exit code is 0 where none of them is a fault, else 1."""
    rows = []
    for check in checks(asked):
        for row in answer(check):
            rows.append(row)
            if row.state != OK or not asked.quiet:
                print("\n".join(tell(row)), flush=True)
    faults, warnings = (sum(row.state == state for row in rows) for state in (FAULT, WARNING))
    if faults or warnings or not asked.quiet:
        print(f"\n{len(rows)} looked at: {_count(faults, 'fault')}, {_count(warnings, 'warning')}")
    return OTHER_FAULT if faults else DONE


def checks(asked: SearchRequest) -> list[Check]:
    """What is looked at for the command that the arguments stand for."""
    config, row = _configuration(asked)
    cache = _cache_folder(config)
    found = [
        Check("installation", "python", check_python),
        Check("installation", "packages", check_packages),
        Check("installation", "imports", check_imports, 300),
        Check("devices", "cores", check_cores),
        Check("devices", "memory", check_memory),
        Check("devices", "shared memory", check_shared_memory),
        Check("devices", "open files", check_open_files),
        Check(
            "storage", "output folder", lambda: check_folder_works("output folder", _output_folder(asked), "--out"), 60
        ),
        Check("storage", "cache folder", lambda: check_folder_works("cache folder", cache, "PHENOSCAPE_CACHE"), 60),
        Check("storage", "temporary folder", check_temporary_folder),
        Check("data", "configuration", lambda: [row]),
        Check("data", "images", lambda: _check_data(config), 300),
    ]
    if config is not None and config.storage is not None:
        url = config.storage
        found.append(Check("storage", "remote storage", lambda: _check_remote_storage(url), 90))
    address = find_address(asked.address)
    if address is not None:
        return [*found, Check("cluster", "cluster", lambda: check_cluster(address, config, _output_folder(asked)), 150)]
    return [*found, Check("cluster", "Ray", check_ray, 240)]


def answer(check: Check) -> list[Row]:
    """The rows of a check; one that says so where it raised, or took longer than it may."""
    rows: list[Row] = []
    trouble: list[BaseException] = []

    def ask() -> None:
        try:
            rows.extend(check.ask())
        except Exception as error:  # whatever it is, the other checks go on
            trouble.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # a file system that hangs cannot be given up otherwise
    thread.start()
    thread.join(check.seconds)
    found = list(rows)
    if thread.is_alive():
        found.append(Row(check.name, FAULT, f"no answer within {check.seconds:g} s", "look at the machine's own logs"))
    elif trouble:
        told = str(trouble[0]) if isinstance(trouble[0], UserError) else f"{type(trouble[0]).__name__}: {trouble[0]}"
        found.append(Row(check.name, FAULT, " ".join(told.split()), "mend what the message names"))
    return [replace(row, area=check.area) for row in found]


def _configuration(asked: SearchRequest) -> tuple[TrainConfig | None, Row]:
    try:
        config = resolve_config(asked.config, asked.overrides)
    except UserError as error:
        return None, Row("configuration", FAULT, " ".join(str(error).split()), "mend what the message names")
    return config, Row("configuration", OK, str(asked.config or "of the command line and the defaults"))


def _output_folder(asked: SearchRequest) -> Path:
    if asked.out or asked.name or asked.space:
        return search_folder(asked)
    return Path("outputs").absolute()


def _cache_folder(config: TrainConfig | None) -> Path:
    from phenoscape_tune.data.packed import default_cache_dir

    return Path(config.cache_dir).expanduser() if config is not None and config.cache_dir else default_cache_dir()


def _check_remote_storage(url: str, seconds: float = 60) -> list[Row]:
    """Whether remote storage is written and read, as a run or search asks before it starts."""
    code, _, error = run_apart([sys.executable, "-c", _STORAGE, url], seconds)
    if code == 0:
        return [Row("remote storage", OK, f"{url}: a file is written, read and removed")]
    how = last_line(error) or f"exit code {code}" if code is not None else f"{url}: no answer within {seconds:g} s"
    remedy = "check the URL, the network and the credentials in the environment, or leave storage out"
    return [Row("remote storage", FAULT, how, remedy)]


def _check_data(config: TrainConfig | None) -> list[Row]:
    if config is None:
        return []
    if config.data_dir is None:
        return [Row("images", OK, "none asked for (data_dir): generated sample specimens")]
    from phenoscape_tune.data.layout import UnreadableImage
    from phenoscape_tune.data.readers import reader_of
    from phenoscape_tune.data.specimens import find_specimens

    labels = Path(config.labels) if config.labels else None
    specimens = find_specimens(Path(config.data_dir), labels, config.group_by, config.modality)
    names = specimens.names
    counted = f"{len(names):,} {specimens.modality} images in {config.data_dir}; {specimens.label_source}"
    rows = [Row("images", OK, counted)]
    sample = names[:: max(1, len(names) // LOOKED_AT)][:LOOKED_AT]
    bad = []
    for name in sample:
        try:
            _try_image(reader_of(specimens.modality), specimens.root / name)
        except UnreadableImage as reason:
            bad.append(f"{name!r}: {reason}")
    remedy = f"python scripts/check_data.py {config.data_dir} lists all of them"
    if bad:
        state = FAULT if len(bad) == len(sample) else WARNING
        rows.append(Row("decoding", state, f"{len(bad)} of {len(sample)} cannot be read: {_first(bad)}", remedy))
    else:
        rows.append(Row("decoding", OK, f"{len(sample)} of them read"))
    if len(names) < 2 * config.batch_size:
        told = f"{len(names)} images for a batch_size of {config.batch_size}"
        rows.append(Row("batch size", WARNING, told, "lower batch_size, or add images"))
    return rows


def _try_image(reader: Reader, path: Path) -> None:
    """Read an image, of many bands the first, middle and last: a whole cube may fill the memory."""
    count = reader.read_layout(path).channels
    reader.read_channels(path, sorted({0, count // 2, count - 1}))


def _first(items: Sequence[str], limit: int = 3) -> str:
    return "; ".join(items[:limit]) + (f"; and {len(items) - limit} more" if len(items) > limit else "")


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'s' * (number != 1)}"
