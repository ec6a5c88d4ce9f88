"""A Ray cluster of several machines on loopback: a head without CPUs, and machines with one CPU each.

As a program it starts the cluster, prints a line of JSON, and ends it when its standard input is closed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TOKEN = "a token of the tests, the same on every machine"
# A machine is taken for dead after 1.5 s, not after 15.
HEALTH = {
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "500",
}
STORE = 80 * 2**20  # bytes: the smallest object store


@dataclass(frozen=True)
class Machines:
    """A cluster that runs: where, and the process id of each machine's raylet by its node id."""

    address: str
    raylets: dict[str, int]
    environment: dict[str, str]

    def trials(self) -> dict[str, list[int]]:
        """Process ids of the trials on each machine, by node id."""
        found: dict[str, list[int]] = {node: [] for node in self.raylets}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            for node, raylet in self.raylets.items():
                if parent == raylet and title.startswith(b"ray::ImplicitFunc"):
                    found[node].append(int(folder.name))
        return found

    def kill(self, node: str) -> None:
        """The machine is gone, without a word, unless it was before."""
        with suppress(ProcessLookupError):
            os.kill(self.raylets[node], signal.SIGKILL)


@contextmanager
def start_machines(count: int, folder: Path) -> Iterator[Machines]:
    """A cluster of a head without CPUs and `count` machines, in processes of their own."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN.replace(" ", "-"),
        "PHENOSCAPE_CACHE": str(folder / "scratch"),
        "OMP_NUM_THREADS": "1",
    }
    environment = {**os.environ, **own}
    with (folder / "machines.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(count)], env={**environment, **HEALTH},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        told = next((line for line in process.stdout if line.startswith("{")), None)
        assert told is not None, (folder / "machines.log").read_text()
        yield Machines(**json.loads(told), environment=environment)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            process.kill()


@contextmanager
def another_machine(machines: Machines, folder: Path, before: str) -> Iterator[None]:
    """One more machine, with file systems of its own: `before` is the shell command that mounts them."""
    python = Path(sys.executable)
    start = f"exec {python.parent / 'ray'} start --address={machines.address} --num-cpus=1 --block"
    with (folder / "another.log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{before} && {start} --object-store-memory={STORE}"],
            env=machines.environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while "runtime started" not in (said := (folder / "another.log").read_text()):
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None


def main() -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(wait=False, num_cpus=1, object_store_memory=STORE) for _ in range(int(sys.argv[1]))]
        cluster.wait_for_nodes()
        raylets = {node.node_id: node.all_processes["raylet"][0].process.pid for node in nodes}
        print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
