from __future__ import annotations

from typing import Any

import pytest

from phenoscape_tune.training.gpus import GIB, Gpu, listed, read_all, visible_gpus


class Driver:
    """Stands in for NVML on machines without it: three cards, of which the last shares the machine's memory."""

    class NVMLError(Exception):
        pass

    cards = (("NVIDIA A100", "GPU-aa", 80 * GIB), ("Tesla T4", "GPU-bb", 15 * GIB), ("NVIDIA GB10", "GPU-cc", None))

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        for index, card in enumerate(self.cards):
            if card[1] == uuid:
                return index
        raise self.NVMLError("not found")

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.cards[handle][0]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        if self.cards[handle][2] is None:
            raise self.NVMLError("not supported")
        return type("Memory", (), {"total": self.cards[handle][2]})


A100, T4, GB10 = Gpu("NVIDIA A100", 80), Gpu("Tesla T4", 15), Gpu("NVIDIA GB10", None)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [A100, T4, GB10]),
        ("", []),
        ("-1", []),
        ("1", [T4]),
        ("1, 0", [T4, A100]),
        ("GPU-cc,GPU-aa", [GB10, A100]),
        ("0,7,1", [A100]),
        ("GPU-xx,GPU-bb", [T4]),
    ],
)
def test_the_cards_are_those_that_cuda_sees(visible: str | None, expected: list[Gpu]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert read_all(Driver(), environment) == expected


def test_the_entries_of_the_variable() -> None:
    assert listed(None) is None
    assert listed("0, 2,") == ["0", "2"]


def test_hidden_cards_are_not_seen_on_any_machine() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    import torch

    assert bool(visible_gpus({})) >= torch.cuda.is_available()
