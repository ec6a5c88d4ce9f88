"""The colour steps on a GPU as two kernels, where torch's operations are forty that each go through all views.

Compiled by CUDA's own run-time compiler (torch's jiterator: half a second, once a process, kept in torch's cache on
disk), so that a user needs no compiler. Where that fails the views are drawn by torch's operations, which is said once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Planes = Sequence[Tensor]

log = logging.getLogger(__name__)

# The only ">" may be those of `template <typename T>`: torch looks for the last one to find a function's name.
CLAMP = "template <typename T> T clamp01(T x) { return x < T(0) ? T(0) : (T(1) < x ? T(1) : x); }\n"
MIX = (
    CLAMP
    + """
template <typename T> void mix_colours(
    T r, T g, T b, T own, T grey, T shift, T red, T green, T blue, T& r1, T& g1, T& b1) {
  const T pull = grey * (red * r + green * g + blue * b) + shift;
  r1 = clamp01(own * r + pull);
  g1 = clamp01(own * g + pull);
  b1 = clamp01(own * b + pull);
}
"""
)
# As `augment_colour.turn_hue`, which explains it.
MIX_AND_TURN = (
    CLAMP
    + """
template <typename T> void mix_and_turn(
    T r, T g, T b, T own, T grey, T shift, T turn, T red, T green, T blue, T& r1, T& g1, T& b1) {
  const T pull = grey * (red * r + green * g + blue * b) + shift;
  r = clamp01(own * r + pull);
  g = clamp01(own * g + pull);
  b = clamp01(own * b + pull);
  const T least = r < g ? (r < b ? r : b) : (g < b ? g : b);
  const T most = r < g ? (g < b ? b : g) : (r < b ? b : r);
  const T chroma = most - least;
  const T divisor = chroma < T(1e-9) ? T(1e-9) : chroma;
  const bool has_red = least < r, has_blue = least < b;
  T sixth = (has_blue ? (has_red ? r - b : b - g) : g - r) / divisor;
  sixth += T(1) + T(6) * turn + (has_blue ? (has_red ? T(4) : T(2)) : T(0));
  sixth -= T(6) * ::floor(sixth / T(6));
  const T from_red = sixth < T(3) ? T(3) - sixth : sixth - T(3);
  const T from_green = sixth < T(2) ? T(2) - sixth : sixth - T(2);
  const T from_blue = sixth < T(4) ? T(4) - sixth : sixth - T(4);
  r1 = least + chroma * clamp01(from_red - T(1));
  g1 = least + chroma * clamp01(T(2) - from_green);
  b1 = least + chroma * clamp01(T(2) - from_blue);
}
"""
)


@dataclass(frozen=True)
class Kernels:
    """Both steps on the planes of a GPU's views, (n, s, s) each of red, green and blue, into new ones.

    A map is a, g, e (n, 3), as `colour_maps` tells.
    """

    run_mix: Callable[..., Planes]
    run_mix_and_turn: Callable[..., Planes]
    shares: tuple[float, float, float]

    def mix(self, planes: Planes, maps: Tensor) -> Planes:
        """The map applied; clamped to [0, 1]."""
        return self.run_mix(*planes, *self._numbers(planes, maps))

    def mix_and_turn(self, planes: Planes, maps: Tensor, turns: Tensor) -> Planes:
        """The map applied, clamped to [0, 1], and the hue turned by turns (n,)."""
        return self.run_mix_and_turn(*planes, *self._numbers(planes, maps), turns[:, None, None])

    def _numbers(self, planes: Planes, maps: Tensor) -> list[Tensor]:
        red, green, blue = (share * plane.mean((1, 2)) for share, plane in zip(self.shares, planes, strict=True))
        own, of_grey, of_mean = maps.unbind(1)
        return [number[:, None, None] for number in (own, of_grey, of_mean * (red + green + blue))]


@functools.cache
def fused_kernels(shares: tuple[float, float, float]) -> Kernels | None:
    """The kernels, compiled; None where that fails.

    Args:
        shares: of red, green and blue in grey.
    """
    weights = dict(zip(("red", "green", "blue"), shares, strict=True))
    try:
        from torch.cuda import jiterator  # beta: its name or its ways may change

        build = jiterator._create_multi_output_jit_fn
        kernels = Kernels(build(MIX, 3, **weights), build(MIX_AND_TURN, 3, **weights), shares)
        probe, one = torch.rand(3, 1, 2, 2, device="cuda"), torch.ones(1, 3, device="cuda")
        kernels.mix(kernels.mix_and_turn(probe.unbind(), one, torch.zeros(1, device="cuda")), one)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        log.info("colour steps are not fused on this GPU (%s): the views take longer", reason)
        return None
    return kernels
