"""The Ray that a search runs on: started, counted, and asked what only its workers can tell."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

# Read by Ray when it is first imported, or by its processes when they start.
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        # A trial that closes slowly after an early stop would otherwise lose its slot for good (2 s by default).
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
        # Relative paths mean the folder that the search was started in.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # A trial that ends without a result reports why, and has no objective to report.
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    }
)

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.ray_folder import check_ray_folder, hide_token, lend_token

if TYPE_CHECKING:
    from phenoscape_tune.training.capacity import Capacity


BUSY_SECONDS = 900.0  # for one network to be built: a cluster that others use may have to finish something first
STARTED_LATE = "timed out during startup"  # stands in what Ray says where its processes are late
ANSWER_SECONDS = 20.0  # within which a cluster answers
# What a cluster's processes, which started without the settings above, are handed of them.
_HANDED = ("RAY_USAGE_STATS_ENABLED", "RAY_CHDIR_TO_TRIAL_DIR", "TUNE_FUNCTION_THREAD_TIMEOUT_S")

# In a process of its own: where nobody answers, `ray.init` tries for minutes, and then ends the process it runs in.
_PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


def start_ray(cpus: int, verbose: bool, address: str | None = None) -> None:
    """Start Ray on this machine, without a dashboard, or join a cluster; nothing where this process has Ray already.

    What Ray says is shown only where `verbose`.

    Args:
        cpus: of this machine; a cluster counts its own.
        address: of a cluster that runs, `auto` or HOST:PORT.

    Raises UserError where the cluster cannot be joined, or the name of Ray's folder here is too long for it.
    """
    if ray.is_initialized():
        return
    if not verbose:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
    if address is None:
        check_ray_folder()
        lend_token()
        # Not a cluster that RAY_ADDRESS names: the caller has looked there.
        where: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        check_address(address)
        where = {"address": address, "runtime_env": {"env_vars": {name: os.environ[name] for name in _HANDED}}}
    handler = signal.getsignal(signal.SIGTERM)
    _init(
        **where,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
        configure_logging=verbose,
    )
    hide_token()
    # Ray puts a handler of its own there, which ends the process without a word.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _init(**settings: Any) -> None:
    """`ray.init`, and again where Ray's own processes were not up in the 30 s that it gives them: a busy machine."""
    for tries_left in (2, 1, 0):
        try:
            ray.init(**settings)
            return
        except Exception as error:  # Ray raises this one as it is, without a class of its own
            if not tries_left or STARTED_LATE not in str(error):
                raise
            ray.shutdown()


def stop_ray() -> None:
    """Stop the Ray that `start_ray` started, or leave the cluster that it joined."""
    ray.shutdown()


def check_address(address: str) -> None:
    """Raise UserError where no cluster can be joined at `address` (`auto` or HOST:PORT), after 20 s at the latest."""
    where = f"--address {address}"
    host, _, port = address.rpartition(":")
    if address != "auto":
        if "://" in address or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(
                f"{where}: is not auto or HOST:PORT (`ray start` prints it; RAY_ADDRESS is read the same way). Ray's "
                "clients, ray:// and http://, cannot run a search: start it on a machine of the cluster"
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            raise UserError(
                f"{where}: nobody answers there ({error.strerror or error}); check it, or start a cluster with `ray "
                "start --head`; without --address and RAY_ADDRESS the search runs on this machine alone"
            ) from None
    with tempfile.TemporaryFile("w+") as said:
        probe = subprocess.Popen([sys.executable, "-c", _PROBE, address], stdout=said, stderr=said, text=True)
        try:
            deadline = time.monotonic() + ANSWER_SECONDS
            fault = None
            while fault is None and probe.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                said.seek(0)
                fault = _known_fault(said.read())
            said.seek(0)
            text = said.read()
        finally:
            probe.kill()
            code = probe.wait()
    if code == 0:
        return
    if fault := fault or _known_fault(text):
        raise UserError(f"{where}: {fault}")
    if time.monotonic() >= deadline:
        raise UserError(
            f"{where}: no Ray cluster answers there within {ANSWER_SECONDS:g} s; check it, and `ray status`"
        )
    last = (text.strip().splitlines() or ["it said nothing"])[-1]
    raise UserError(f"{where}: Ray cannot join it: {last}")


def _known_fault(said: str) -> str | None:
    """What the user can do about what Ray says when it cannot join a cluster; None where it says nothing of that."""
    if "InvalidAuthToken" in said or "AuthenticationError" in said:
        return (
            "the cluster asks for another authentication token than this machine has; give every machine, this one "
            "too, the same: in ~/.ray/auth_token, in the file that RAY_AUTH_TOKEN_PATH names, or in RAY_AUTH_TOKEN "
            "(docs/cluster.md)"
        )
    if "Version mismatch" in said:
        versions = [line.strip() for line in said.splitlines() if "Ray: " in line or "Python: " in line]
        return f"the cluster runs other versions ({'; '.join(versions)}); install the same on every machine"
    if "Could not find any running Ray instance" in said:
        return "no Ray runs on this machine; start one with `ray start`, or name the cluster's HOST:PORT"
    if "node_ip_address.json" in said or "Can't find a" in said:
        return "this machine is not part of that cluster; start the search on a machine where `ray start` has joined it"
    return None


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: Ray's id of it, how it is told of, and what it gives to trials."""

    id: str
    name: str
    cpus: int
    gpus: int


def cluster_nodes() -> list[Node]:
    """The machines that are alive, this one alone where Ray was started here; in the order of their names."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [
        Node(
            node["NodeID"],
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:6]})",
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in alive
    ]
    return sorted(nodes, key=lambda node: node.name)


def _wait_for(task: ray.ObjectRef, seconds: float) -> Any:
    """What a worker's task returns. Raises UserError as the task does, and where no worker had done it in time."""
    try:
        return ray.get(task, timeout=seconds)
    except GetTimeoutError:
        raise UserError(
            "--address: no machine of the cluster had a CPU (or GPU) free for the network's check, or it was lost "
            "meanwhile; see `ray status`, and start the search again when the cluster is free"
        ) from None
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


@ray.remote
def _check(config: dict[str, Any], channels: int) -> int:
    import warnings

    warnings.filterwarnings("ignore")
    from phenoscape_tune.model import build_encoder
    from phenoscape_tune.training.device import default_device

    resolved = build_config(config)
    default_device(resolved)
    encoder = build_encoder(resolved, channels, [0.5] * channels, [0.25] * channels)
    return sum(parameter.numel() for parameter in encoder.parameters())


def check_on_worker(config: TrainConfig, gpus: float, channels: int) -> int:
    """Build the network once in a worker, which also loads what the trials need; returns its number of parameters.

    `channels` are those of the images.

    Raises UserError as building does.
    """
    return int(_wait_for(_check.options(num_gpus=gpus).remote(config.to_mapping(), channels), BUSY_SECONDS))


@ray.remote(max_calls=1)  # its process ends with it
def _measure(config: dict[str, Any], channels: int, up_to: int, concurrent: int, share: float, cpus: int) -> Capacity:
    from phenoscape_tune.training.capacity import measure_in_process

    memory = None
    if 0 < share < 1:  # a share of a GPU is a share of its memory
        import torch

        memory = share * torch.cuda.get_device_properties(0).total_memory / 2**30
    env = {"OMP_NUM_THREADS": str(cpus)}
    return measure_in_process(build_config(config), channels, up_to, memory, env, concurrent)


def measure_on_worker(
    config: TrainConfig, channels: int, up_to: int, cpus: int, gpus: float, concurrent: int
) -> Capacity:
    """What a trial's share of the device holds, and how fast it is at each batch size up to `up_to`.

    Args:
        cpus, gpus: what a trial reserves; concurrent: trials side by side.

    Raises UserError where it cannot be measured, or not even two images fit.
    """
    task = _measure.options(num_gpus=gpus).remote(config.to_mapping(), channels, up_to, concurrent, gpus, cpus)
    capacity: Capacity = _wait_for(task, 3600)
    if not capacity.images_per_second:
        raise UserError("batch_size: not even two images fit this device at once; try a smaller input_size or backbone")
    return capacity
