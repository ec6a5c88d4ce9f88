from __future__ import annotations

import pytest
import torch

from phenoscape_tune.training.device_use import DeviceUse, Reading, read_gpu, read_process

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def use_of(device: torch.device, readings: list[Reading | Exception], steps: int, seconds: float = 1.0) -> DeviceUse:
    """A device that was looked at after each of `steps` steps of so many seconds."""
    clock, answers = Clock(), iter(readings)

    def read() -> Reading:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    use = DeviceUse(device, read, clock)
    for _ in range(steps):
        use.sample()
        clock.now += seconds
    return use


def test_a_row_has_the_mean_utilisation_and_the_most_memory() -> None:
    use = use_of(GPU, [Reading(0.4, 3.0), Reading(0.6, 5.0), Reading(0.8, 4.0)], steps=3)
    assert use.row() == {"utilisation": pytest.approx(0.6), "device_memory_gb": 5.0}
    assert use.row() == {}  # it is of one epoch


def test_the_device_is_looked_at_once_a_second_at_most() -> None:
    assert use_of(GPU, [Reading(0.4, 3.0)] * 3, steps=1000, seconds=0.0025).row()["utilisation"] == pytest.approx(0.4)
    assert "utilisation" not in use_of(GPU, [Reading(0.4, 3.0)] * 2, steps=2).row()  # too few to tell


@pytest.mark.parametrize("error", [RuntimeError("no driver"), ModuleNotFoundError("pynvml"), OSError("not allowed")])
def test_what_cannot_be_read_is_not_asked_for_again_and_fails_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        use = use_of(GPU, [Reading(0.4, 3.0), error], steps=50)
    assert use.row() == {"device_memory_gb": 3.0}
    assert [str(error) in line for line in caplog.messages] == [True]


def test_on_a_cpu_it_is_the_memory_of_this_process() -> None:
    use = DeviceUse(CPU)
    use.sample()
    row = use.row()
    assert row.keys() == {"process_memory_gb"}
    assert 0.05 < row["process_memory_gb"] < 100
    before = read_process().memory_gib
    held = torch.ones(64, 2**20)  # a quarter of a GiB
    assert read_process().memory_gib - before > 0.2
    del held


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_reading_one_fails_and_a_run_does_not() -> None:
    with pytest.raises(Exception, match=r"."):
        read_gpu(GPU)
    use = DeviceUse(GPU)
    use.sample()
    assert use.row() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_read() -> None:
    held = torch.ones(256, 2**20, device="cuda")  # a GiB
    reading = read_gpu(held.device)
    assert reading.memory_gib > 1
    assert reading.utilisation is not None and 0 <= reading.utilisation <= 1
