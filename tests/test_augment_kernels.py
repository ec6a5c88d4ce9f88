"""The fused colour steps: their code, compiled for the CPU, computes what torch's operations do; on a GPU the views."""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from phenoscape_tune.augment import build_views
from phenoscape_tune.augment_colour import GREY_SHARES, colour_maps, mix, recolour, turn_hue
from phenoscape_tune.augment_kernels import MIX, MIX_AND_TURN, fused_kernels
from phenoscape_tune.data.channels import RGB
from phenoscape_tune.transforms import TransformsConfig

HAS_GPU = torch.cuda.is_available()
# Calls the kernel for each of n values of three planes, one view with the numbers a, g, shift and turn.
LOOP = """
#include <cmath>
{code}
extern "C" void run(int n, const float* in, float* out, float a, float g, float shift, float turn) {{
  for (int i = 0; i < n; ++i)
    {name}<float>(in[i], in[n + i], in[2 * n + i], a, g, shift, {turn}0.2989f, 0.587f, 0.114f,
                  out[i], out[n + i], out[2 * n + i]);
}}
"""


def compiled(folder: Path, code: str, name: str, turn: str) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(LOOP.format(code=code, name=name, turn=turn))
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def run(library: ctypes.CDLL, colours: Tensor, maps: Tensor, turn: float = 0.0) -> Tensor:
    """The compiled kernel on one view, (3, s, s)."""
    given, out = colours.contiguous(), torch.empty_like(colours)
    own, grey, of_mean = (float(number) for number in maps)
    shift = of_mean * float(colours.mean((1, 2)) @ torch.tensor(GREY_SHARES))
    pointers = [ctypes.cast(t.data_ptr(), ctypes.POINTER(ctypes.c_float)) for t in (given, out)]
    numbers = map(ctypes.c_float, (own, grey, shift, turn))
    library.run(given[0].numel(), *pointers, *numbers)
    return out


def pixels() -> Tensor:
    """Random colours (1, 3, 16, 16), among them grey ones, black, white and pure primaries."""
    colours = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    colours[:, :, 0] = colours[:, :1, 0]
    colours[0, :, 1, :8] = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1],
                                         [1, 0, 1]], dtype=torch.float32).T  # fmt: skip
    return colours


@pytest.mark.parametrize("numbers", [(1.0, 0.0, 0.0), (0.6, 0.3, 0.2), (1.7, -0.4, -0.1), (0.0, 1.0, 0.0)])
def test_the_code_mixes_as_torchs_operations(tmp_path: Path, numbers: tuple[float, ...]) -> None:
    library, colours, maps = compiled(tmp_path, MIX, "mix_colours", ""), pixels(), torch.tensor([numbers])
    found = run(library, colours[0], maps[0])
    mix(colours, maps)
    torch.testing.assert_close(found, colours[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("turn", [-0.4, -0.1, 0.0, 0.05, 0.2, 0.5])
def test_the_code_turns_the_hue_as_torchs_operations(tmp_path: Path, turn: float) -> None:
    library, colours, maps = (
        compiled(tmp_path, MIX_AND_TURN, "mix_and_turn", "turn, "),
        pixels(),
        torch.tensor([[1.3, -0.2, 0.1]]),
    )
    found = run(library, colours[0], maps[0], turn)
    mix(colours, maps)
    turn_hue(colours, torch.tensor([turn]))
    torch.testing.assert_close(found, colours[0], rtol=0, atol=5e-6)


def test_where_nothing_can_be_compiled_torchs_operations_serve(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("NVRTC: invalid architecture\nmore")

    monkeypatch.setattr(torch.cuda.jiterator, "_create_multi_output_jit_fn", refuse)
    with caplog.at_level(logging.INFO):
        assert fused_kernels.__wrapped__(GREY_SHARES) is None
    assert "not fused on this GPU (NVRTC: invalid architecture)" in caplog.text


def test_a_map_of_no_jitter_changes_nothing() -> None:
    N, no = 4, torch.zeros(4, dtype=torch.bool)
    maps = colour_maps(no, torch.full((3, N), 0.3), torch.full((N,), 0.2), torch.rand(N, 4).argsort(dim=1), no)
    assert maps.tolist() == [[1, 0, 0, 0, 1, 0, 0]] * N
    colours = pixels()
    before = colours.clone()
    recolour(colours, maps[:1], jitters=True)
    torch.testing.assert_close(colours, before, rtol=0, atol=2e-6)


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("size", [32, 224])
def test_a_gpu_draws_the_views_of_a_cpu(size: int) -> None:
    assert fused_kernels(GREY_SHARES) is not None
    transform = build_views(TransformsConfig(cj_strength=1.0), RGB, size)
    images = torch.randint(0, 256, (8, 3, 36, 36), dtype=torch.uint8)
    drawn = transform.draw(8, 36, 36, torch.Generator().manual_seed(0))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        half = transform.apply(images.cuda(), drawn)
    torch.testing.assert_close(half, transform.apply(images.cuda(), drawn), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        transform.apply(images.cuda(), drawn).cpu(), transform.apply(images, drawn), rtol=0, atol=5e-5
    )
