"""The Ray that a search runs on: started, counted, and asked what only its workers can tell."""

from __future__ import annotations

import logging
import os
import signal
import threading
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
from ray.exceptions import RayTaskError

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.ray_folder import check_ray_folder, hide_token

if TYPE_CHECKING:
    from phenoscape_tune.training.capacity import Capacity


def start_ray(cpus: int, verbose: bool) -> None:
    """Start Ray on this machine, without a dashboard, unless it runs; what it says is shown only where `verbose`.

    Raises UserError where its folder's name is too long for it.
    """
    if ray.is_initialized():
        return
    check_ray_folder()
    if not verbose:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",  # a cluster that RAY_ADDRESS names is not ours to use
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=verbose,
        logging_level=logging.INFO if verbose else logging.ERROR,
        configure_logging=verbose,
    )
    hide_token()
    # Ray puts a handler of its own there, which ends the process without a word.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def count_gpus() -> int:
    """GPUs that Ray found."""
    return int(ray.cluster_resources().get("GPU", 0))


@ray.remote
def _check(config: dict[str, Any]) -> int:
    import warnings

    warnings.filterwarnings("ignore")
    from phenoscape_tune.model import build_encoder
    from phenoscape_tune.training.device import default_device

    resolved = build_config(config)
    default_device(resolved)
    encoder = build_encoder(resolved, 3, [0.5] * 3, [0.25] * 3)
    return sum(parameter.numel() for parameter in encoder.parameters())


def check_on_worker(config: TrainConfig, gpus: float) -> int:
    """Build the network once in a worker, which also loads what the trials need; returns its number of parameters.

    Raises UserError as building does.
    """
    try:
        return int(ray.get(_check.options(num_gpus=gpus).remote(config.to_mapping())))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


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
    task = _measure.options(num_gpus=gpus)
    try:
        capacity = ray.get(task.remote(config.to_mapping(), channels, up_to, concurrent, gpus, cpus))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    if not capacity.images_per_second:
        raise UserError("batch_size: not even two images fit this device at once; try a smaller input_size or backbone")
    return capacity
