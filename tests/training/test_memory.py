from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from phenoscape_tune.training import memory
from phenoscape_tune.training.memory import available_memory, is_out_of_memory, limited_memory

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="address space is bounded on Linux only")
def test_memory_beyond_the_limit_is_refused_and_within_it_granted() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(CPU, 200 * MIB):
        assert torch.zeros(50 * MIB, dtype=torch.uint8).numel()
        with pytest.raises(RuntimeError) as caught:
            torch.zeros(400 * MIB, dtype=torch.uint8)
        assert is_out_of_memory(caught.value)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert torch.zeros(400 * MIB, dtype=torch.uint8).numel()


def test_trials_side_by_side_share_what_is_free() -> None:
    alone, shared = available_memory(), available_memory(4)
    assert 0 < shared < alone
    assert shared == pytest.approx(alone / 4, rel=0.2)  # others on the machine come and go


def write_group(folder: Path, **values: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(value)


def test_the_limits_of_control_groups_count_and_what_is_cached_is_free(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("4:memory:/job\n1:cpu:/job\n0::/slurm/step\n")
    usage = {"memory__current": "700", "memory__stat": "anon 500\ninactive_file 200\n"}
    write_group(root / "slurm" / "step", memory__max="max\n", **usage)
    write_group(root / "slurm", memory__max="1000\n", **usage)
    old = {"memory__usage_in_bytes": "90", "memory__stat": "total_inactive_file 5\n"}
    write_group(root / "memory" / "job", memory__limit_in_bytes="100", **old)
    assert sorted(memory._free_in_control_groups(root, own)) == [15, 500]
    assert memory._free_in_control_groups(root, tmp_path / "nowhere") == []


def test_a_group_that_only_the_host_sees_is_passed_over(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/../of-the-host\n")
    write_group(tmp_path / "cgroup", memory__max="10", memory__current="4", memory__stat="inactive_file 1")
    assert memory._free_in_control_groups(tmp_path / "cgroup", own) == [7]
