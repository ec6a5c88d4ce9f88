"""What `--doctor` asks of a Ray cluster: whether it is reached, its machines, and what each of them lacks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from phenoscape_tune.cli.packages import last_line, run_apart
from phenoscape_tune.cli.rows import FAULT, OK, WARNING, Row
from phenoscape_tune.config import TrainConfig

# In a process of its own: joining a cluster may hang, and this one is to go on.
_JOIN = """
import json, sys
from pathlib import Path
from phenoscape_tune.config import build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.cluster import cluster_nodes, start_ray
from phenoscape_tune.search.preflight import check_nodes

def tell(**row):
    print(json.dumps(row), flush=True)

address, config, folder = sys.argv[1], build_config(json.loads(sys.argv[2])), Path(sys.argv[3])
try:
    start_ray(1, False, address)
    nodes = cluster_nodes()
    tell(machines=[f"{node.name}: {node.cpus} CPUs, {node.gpus} GPUs" for node in nodes])
    if config.data_dir is not None:
        found = check_nodes(nodes, [node.id for node in nodes if node.cpus], config, folder)
        tell(warnings=list(found.warnings))
except UserError as error:
    tell(fault=str(error))
"""


def check_cluster(address: str, config: TrainConfig | None, folder: Path, seconds: float = 120) -> Iterator[Row]:
    """Joins a cluster, and asks each of its machines what a search would ask it before its first trial.

    Args:
        address: `auto` or HOST:PORT.
        config: of the command; without one, or without images in it, the machines are counted only.
        folder: the output folder.
        seconds: after which it is given up.
    """
    content = json.dumps({} if config is None else _absolute(config).to_mapping())
    command = [sys.executable, "-c", _JOIN, address, content, str(folder)]
    code, output, error = run_apart(command, seconds)
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    remedy = "mend what the message names; docs/cluster.md"
    for row in told:
        if "machines" in row:
            yield Row("machines", OK, f"{len(row['machines'])} at {address}: {'; '.join(row['machines'])}")
        for warning in row.get("warnings", ()):
            yield Row("machines", WARNING, " ".join(warning.split()), remedy)
        if "fault" in row:
            yield Row("cluster", FAULT, " ".join(row["fault"].split()), remedy)
    if told and "warnings" in told[-1]:
        yield Row("search", OK, "every machine that runs trials can run it")
    if code != 0:
        how = f"no answer within {seconds:g} s" if code is None else last_line(error) or f"exit code {code}"
        yield Row("cluster", FAULT, f"{address}: {how}", "ray status; docs/cluster.md")


def _absolute(config: TrainConfig) -> TrainConfig:
    """The configuration with absolute paths, so that they mean the same to every machine."""
    paths = {key: getattr(config, key) for key in ("data_dir", "labels", "weights")}
    return config.model_copy(
        update={
            key: str(Path(path).expanduser().absolute())
            for key, path in paths.items()
            if path is not None and path != "DEFAULT"
        }
    )
