from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phenoscape_tune.augment import TwoViews
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import save_config
from phenoscape_tune.training import capacity_steps
from phenoscape_tune.training.capacity import Capacity, measure_in_process
from phenoscape_tune.training.capacity_steps import measure_capacity
from phenoscape_tune.training.gradient_cache import OOM_ABOVE

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity_steps, "CPU_SECONDS", 0.01)


def small(**values: Any) -> TrainConfig:
    values = {"backbone": "test_resnet.r160_in1k", "input_size": 32, "stem": "standard", "precision": 32, **values}
    return build_config({"accelerator": "cpu", "projection_dim": 16, **values})


@pytest.mark.parametrize(
    ("up_to", "fits", "tried", "largest", "out_of_memory"),
    [
        (12, None, [8, 12], 12, False),
        (6, None, [6], 6, False),
        (32, 1000, [8, 16, 32], 32, False),
        (64, 20, [8, 16, 32, 24], 16, True),
        (64, 25, [8, 16, 32, 24], 24, True),
        (64, 5, [8, 4], 4, True),
        (64, 3, [8, 4, 2], 2, True),
        (64, 1, [8, 4, 2], 0, True),
    ],
)
def test_sizes_double_until_memory_ends(
    monkeypatch: pytest.MonkeyPatch, up_to: int, fits: int | None, tried: list[int], largest: int, out_of_memory: bool
) -> None:
    if fits is not None:
        monkeypatch.setenv(OOM_ABOVE, str(fits))
    sizes: list[int] = []
    monkeypatch.setattr(capacity_steps, "_time_steps", _noting(capacity_steps._time_steps, sizes))
    known: list[Capacity] = []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    measured = measure_capacity(small(), 3, up_to, CPU, report=known.append)
    assert sizes == tried
    assert len(known) == len(tried)
    assert known[-1] == measured
    assert (measured.largest, measured.out_of_memory) == (largest, out_of_memory)
    assert list(measured.images_per_second) == sorted(size for size in tried if fits is None or size <= fits)
    assert all(speed > 0 for speed in measured.images_per_second.values())
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def _noting(time_steps: Callable[..., float], sizes: list[int]) -> Callable[..., float]:
    def noting(step: Callable[[int], None], size: int, device: torch.device) -> float:
        sizes.append(size)
        return time_steps(step, size, device)

    return noting


@pytest.mark.parametrize(
    "changes", [{"precision": "bf16"}, {"optimizer": "sgd"}, {"weights": "DEFAULT"}, {"micro_batch_size": 4}]
)
def test_a_step_is_that_of_the_configuration_and_fetches_no_weights(changes: dict[str, Any]) -> None:
    assert measure_capacity(small(**changes), 3, 4, CPU).largest == 4


@pytest.mark.parametrize(
    ("channels", "changes", "dtype"),
    [
        (2, {"transforms": {"cj_prob": 0, "random_gray_scale": 0}}, torch.uint16),
        (40, {"spectral_stem": 3}, torch.uint16),
        (3, {}, torch.uint8),
        (3, {"modality": "multispectral"}, torch.uint16),
    ],
)
def test_images_are_of_the_type_and_channels_that_are_packed(
    channels: int, changes: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    views = TwoViews.__call__

    def noting(self: TwoViews, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images)
        return views(self, images, generator)

    monkeypatch.setattr(TwoViews, "__call__", noting)
    assert measure_capacity(small(**changes), channels, 4, CPU).largest == 4
    assert {(images.dtype, images.shape[1]) for images in seen} == {(dtype, channels)}
    assert seen[0].float().std() > 0.2 * torch.iinfo(dtype).max


def test_fewer_than_two_images_are_no_batch() -> None:
    with pytest.raises(UserError, match="batch_size: 1"):
        measure_capacity(small(), 3, 1, CPU)


def test_faults_of_the_network_are_not_taken_for_memory() -> None:
    with pytest.raises(UserError, match="stem: small"):
        measure_capacity(small(backbone="test_vit.r160_in1k", stem="small"), 3, 8, CPU)


def test_the_command_prints_a_line_after_each_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_config(small(), tmp_path / "config.yaml")
    assert capacity_steps.main([str(tmp_path / "config.yaml"), "--channels", "3", "--up-to", "16"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["largest"] for line in lines] == [8, 16]
    assert set(lines[-1]["images_per_second"]) == {"8", "16"}
    assert capacity_steps.main([str(tmp_path / "nowhere.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is bounded on Linux only")
def test_under_a_real_limit_fewer_images_fit() -> None:
    """A process of its own, because a C++ library may end it where the limit bites."""
    config = small(input_size=64)
    roomy = measure_capacity(config, 3, 64, CPU, memory_limit=8 * 2**30)
    tight = measure_in_process(config, 3, 64, memory_gib=0.12, env={"OMP_NUM_THREADS": "1"}, seconds=120)
    assert (roomy.largest, roomy.out_of_memory) == (64, False)
    assert 2 <= tight.largest < 64
    assert tight.out_of_memory
    assert tight.micro_batch(64) == 2 ** (tight.largest.bit_length() - 1)
