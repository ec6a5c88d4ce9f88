"""Faults of a cluster: real Ray on several machines, all of them this one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from lives import PATIENCE, Search, lost
from machines import Machines, another_machine, start_machines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with start_machines(2, tmp_path_factory.mktemp("machines")) as started:
        yield started


# Each trial takes longer than the start of a process for it; none is stopped early, none is repeated.
SPACE = """
parameters:
  lr: {type: loguniform, low: 1.0e-4, high: 1.0e-2}
scheduler: {grace_epochs: EPOCHS, reduction_factor: 2}
budget: {trials: TRIALS, max_epochs: EPOCHS}
confirm: null
"""


@dataclass(frozen=True)
class OnCluster(Search):
    """A search on a cluster."""

    machines: Machines | None = None

    def command(self, *more: str) -> list[str]:
        made = [*super().command(*more), "input_size=64"]
        space = SPACE.replace("EPOCHS", str(self.epochs)).replace("TRIALS", str(self.trials))
        self.folder.with_suffix(".yaml").write_text(space)
        return made

    def start(self, output: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
        assert self.machines is not None
        with output.open("w") as file:
            return subprocess.Popen(
                [*self.command(*more), "--address", self.machines.address],
                stdout=file, stderr=subprocess.STDOUT, text=True, cwd=self.folder.parent,
                env={**self.machines.environment, **environment},
            )  # fmt: skip

    def refused(self, *more: str, **environment: str) -> str:
        """What is printed, within seconds, by a search that does not begin."""
        output = self.folder.with_suffix(".printed")
        process = self.start(output, *more, **environment)
        try:
            assert process.wait(PATIENCE) == 2, output.read_text()
        finally:
            process.kill()
        assert not self.folder.exists()
        assert "Traceback" not in output.read_text()
        return output.read_text()


def test_a_machine_that_does_not_fit_is_refused_with_all_its_faults(
    machines: Machines, birds: Path, tmp_path: Path
) -> None:
    """Row 17: the output folder is another one there; and so are the images."""
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("this user may not mount")
    search = OnCluster(tmp_path / "search", birds, trials=4, epochs=30, machines=machines)
    mounts = f"mount -t tmpfs tmpfs {tmp_path} && mount --bind {birds / 'crow'} {birds}"
    with another_machine(machines, tmp_path.parent, mounts):
        printed = search.refused()
    told = [line for line in printed.splitlines() if line.startswith("node ")]
    assert len(told) == 2, printed
    assert "output folder" in told[0] and "is not the folder of that name" in told[0]
    assert "data_dir" in told[1] and "24 images, here 72" in told[1]


def test_more_devices_than_a_machine_has_are_refused_with_both_numbers(
    machines: Machines, birds: Path, tmp_path: Path
) -> None:
    """Row 18."""
    search = OnCluster(tmp_path / "search", birds, trials=4, epochs=30, concurrent=3, machines=machines)
    assert "--concurrent: 3 trials side by side on 2 CPU cores of 3 machines; at most 2" in search.refused()
    search = OnCluster(tmp_path / "other", birds, trials=4, epochs=30, machines=machines)
    printed = search.refused("devices=2")
    assert "devices: 2: a trial cannot span more than the 1 CPU cores of any one machine" in printed


def test_another_token_is_refused_and_says_where_it_stands(machines: Machines, birds: Path, tmp_path: Path) -> None:
    search = OnCluster(tmp_path / "search", birds, trials=4, epochs=30, machines=machines)
    printed = search.refused(RAY_AUTH_TOKEN="another token than the machines have")
    assert "another authentication token" in printed and "~/.ray/auth_token" in printed


def test_trials_of_a_lost_machine_go_on_on_another(machines: Machines, birds: Path, tmp_path: Path) -> None:
    """Row 19."""
    # A trial must outlast the start of a process on the other machine, or the first machine takes them all.
    search = OnCluster(tmp_path / "search", birds, trials=3, epochs=90, concurrent=2, machines=machines)
    output, own = tmp_path / "printed", tmp_path / "scratch"
    process = search.start(output, PHENOSCAPE_CACHE=str(own))
    try:
        # Both machines work: trials spread.
        deadline = time.monotonic() + PATIENCE
        while not all(busy := machines.trials().values()) or not two_are_under_way(search):
            assert process.poll() is None and time.monotonic() < deadline, (output.read_text(), busy)
            time.sleep(0.1)
        first, _ = machines.raylets
        before, since = search.known(), time.monotonic()
        machines.kill(first)
        process.wait(PATIENCE)
    finally:
        process.kill()
    print(f"ended {time.monotonic() - since:.0f} s after the loss")
    printed = output.read_text()
    assert process.returncode == 0, printed
    assert "2 CPU cores of 2 machines" in printed
    after = search.known()
    assert not lost(before, after)
    assert sum(record.failures for record in after.values()) == 1
    listed = search.leaderboard()
    assert sorted(row["trial"] for row in listed) == sorted(after)
    stages = [row["stage"] for row in listed]
    assert sorted(stages) == ["defaults", "lr", "lr"]
    assert {row["status"] for row in listed} == {"completed"}
    for name, epochs in search.trained().items():  # from its checkpoint: at most the epoch in flight is trained twice
        assert sorted(set(epochs)) == list(range(1, len(after[name].curve) + 1)), name
        assert len(epochs) <= len(after[name].curve) + 1, name

    # Each machine packs in its own scratch folder: the ones in that of their Ray's environment (here one for both).
    for scratch in (own, Path(machines.environment["PHENOSCAPE_CACHE"])):
        assert len([path for path in scratch.glob("packed-*") if path.is_dir()]) == 1


def test_where_no_machine_is_left_the_search_ends_in_order(machines: Machines, birds: Path, tmp_path: Path) -> None:
    """Row 19, and nobody to go on: the last test, as it leaves no machine."""
    search = OnCluster(tmp_path / "search", birds, trials=4, epochs=30, machines=machines)
    output = tmp_path / "printed"
    process = search.start(output, PHENOSCAPE_TUNE_PATIENCE="4")
    try:
        search.after_reports(process, 2)
        before = search.known()
        for node in machines.raylets:
            machines.kill(node)
        process.wait(PATIENCE)
    finally:
        process.kill()
    printed = output.read_text()
    assert process.returncode == 130, printed
    assert "no machine that is left has as many" in printed
    assert "the search ends here" in printed
    assert f"python scripts/tune.py --resume --out {search.folder} --address {machines.address}" in printed
    assert "Traceback" not in printed
    assert not lost(before, search.known())
    assert not [record for record in search.known().values() if record.status == "failed"]


def two_are_under_way(search: Search) -> bool:
    running = [record for record in search.known().values() if not record.ended]
    return len(running) == 2 and all(len(record.curve) >= 2 for record in running)
