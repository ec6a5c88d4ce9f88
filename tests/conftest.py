"""What the tests share: folders of real image files, tiny configurations, one Ray for the whole session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# Before torch is imported: threads of several processes that wait for each other on two cores slow all of them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from phenoscape_tune.config import TrainConfig, build_config

COLOURS = {"crow": (40, 40, 60), "finch": (200, 160, 40), "robin": (180, 60, 40)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: where two processes share the files, both then end about together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Packed images of the tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHENOSCAPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power; processes that tests start do wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 x 24 small JPEG files in class sub-folders: colour and a stripe tell the classes apart."""
    folder = tmp_path_factory.mktemp("data") / "birds"
    rng = np.random.default_rng(0)
    for number, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for i in range(24):
            pixels = rng.integers(0, 60, (20, 24, 3)) + np.array(colour)
            pixels[:, 4 * number : 4 * number + 4] += 60
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:02d}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 2 x 16 ENVI cubes of 20 bands, 400 to 780 nm, of two classes: `notch` reflects less at 600 nm."""
    from spectral.io import envi

    folder, rng = tmp_path_factory.mktemp("data") / "cubes", np.random.default_rng(0)
    waves = np.arange(400, 800, 20)
    for name, depth in (("notch", 0.3), ("plain", 0.0)):
        (folder / name).mkdir(parents=True)
        spectrum = 0.2 + 0.5 * (waves - 400) / 400 - depth * (np.abs(waves - 600) < 30)
        for i in range(16):
            brightness = rng.uniform(0.8, 1.2, (18, 16, 1))
            cube = (65535 * (brightness * spectrum).clip(0, 1)).astype(np.uint16)  # (lines, samples, bands)
            told = {"wavelength": [f"{wave}" for wave in waves], "wavelength units": "Nanometers"}
            envi.save_image(str(folder / name / f"{i:02d}.hdr"), cube, metadata=told, ext="raw")
    return folder


@pytest.fixture
def tiny(birds: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration that trains in a second on the birds; keyword arguments change its keys."""

    def make(**changes: Any) -> TrainConfig:
        values = {
            "data_dir": str(birds),
            "out_dir": str(tmp_path / "run"),
            "backbone": "test_resnet.r160_in1k",
            "input_size": 32,
            "stem": "standard",
            "batch_size": 8,
            "max_epochs": 2,
            "projection_dim": 16,
            "num_workers": 1,
            **changes,
        }
        return build_config(values)

    return make


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests that need it: starting it takes longer than most of them."""
    import ray

    from phenoscape_tune.search.cluster import start_ray

    start_ray(2, verbose=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server on loopback, in a process of its own, that speaks S3."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/").close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "moto_server did not start"
                time.sleep(0.2)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an S3 bucket of the test's own, with what reaches it in the environment."""
    # As for any S3 server that is not AWS's; the keys are as good as any.
    own = {"AWS_ENDPOINT_URL": s3_server, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for key, value in {**own, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(key, value)
    name = f"bucket-{uuid.uuid4().hex}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT")).close()
    return f"s3://{name}"


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.slow)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of each kind of storage."""
    if request.param == "file":
        return f"file://{tmp_path}/remote/runs"
    return str(request.getfixturevalue("bucket")) + "/runs"
