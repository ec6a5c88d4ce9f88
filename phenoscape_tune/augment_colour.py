"""Colour jitter and greyscale of red, green and blue, wherever they stand among the channels."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from phenoscape_tune.augment_kernels import Planes, fused_kernels

Chain = np.ndarray  # float64 (3, N): a, g and e of `colour_maps`, for N views

# ITU-R BT.601 luma as torchvision rounds it, so that greyscale, contrast and saturation agree to the last digit.
GREY_SHARES = (0.2989, 0.587, 0.114)
GREY_TWICE = sum(GREY_SHARES)  # what making grey does to what is grey
HUE = 3  # a step's number in `order`, after brightness, contrast and saturation


def colour_maps(jitter: Tensor, factors: Tensor, hue: Tensor, order: Tensor, gray: Tensor) -> Tensor:
    """The colour steps of N views as seven numbers each, float32 (N, 7): a map, a turn of the hue, another map.

    Arguments are the fields of `ViewParameters` of these names, on the CPU.

    A map is a, g, e of rgb ↦ a·rgb + g·grey + e·mean(grey), with the grey of a pixel in all three channels. Brightness
    f: f·rgb. Saturation f: f·rgb + (1−f)·grey. Contrast f: f·rgb + (1−f)·mean(grey), where the mean within a chain is
    a linear map of that at its start. A chain of such maps is one, so that two serve all: what comes before the turn
    of the hue in HSV, and what comes after. Greyscale comes last. The turn is a share of the circle.
    """
    N = len(hue)
    b, c, s = np.where(jitter.numpy(), factors.numpy().astype(np.float64), 1.0)  # (N,) each
    one, zero = np.ones(N), np.zeros(N)
    # (3, 4, N): a, g and e of brightness, contrast, saturation, and of the hue step, which ends a chain.
    steps = np.array(((b, c, s, one), (zero, zero, 1 - s, zero), (zero, 1 - c, zero, zero)))
    views = np.arange(N)
    before = after = identity = np.array((one, zero, zero))  # (3, N)
    for kind in order.numpy().T:
        after = _then(steps[:, kind, views], after)
        turning = kind == HUE
        before, after = np.where(turning, after, before), np.where(turning, identity, after)
    grey = gray.numpy().astype(np.float64)
    after = _then(np.array((1 - grey, grey, zero)), after)
    turns = np.where(jitter.numpy(), hue.numpy(), 0.0)
    return torch.from_numpy(np.concatenate((before, turns[None], after)).T.astype(np.float32))


def _then(step: Chain, chain: Chain) -> Chain:
    """`step` after `chain`."""
    (a, g, e), (a0, g0, e0) = step, chain
    direct, of_grey = a * a0, a * g0 + g * (a0 + GREY_TWICE * g0)
    return np.array((direct, of_grey, a * e0 + GREY_TWICE * g * e0 + e * (a0 + GREY_TWICE * (g0 + e0))))


def colours_of(view: Tensor, rgb: tuple[int, int, int]) -> Tensor:
    """Red, green and blue (n, 3, s, s) of `view` (n, C, s, s): itself where they stand side by side, else a copy."""
    first = rgb[0]
    if rgb == (first, first + 1, first + 2):
        return view[:, first : first + 3]
    return torch.stack([view[:, channel] for channel in rgb], dim=1)


def put_back(view: Tensor, rgb: tuple[int, int, int], colours: Tensor) -> None:
    if colours.untyped_storage().data_ptr() != view.untyped_storage().data_ptr():
        for channel, colour in zip(rgb, colours.unbind(1), strict=True):
            view[:, channel] = colour


def recolour(colours: Tensor, maps: Tensor, jitters: bool) -> None:
    """Apply `colour_maps` (n, 7) to colours (n, 3, s, s) in [0, 1], in place, both on one device; clamped to [0, 1]
    before the hue is turned and at the end. Without `jitters` the first map and the turn are known to do nothing."""
    before, turns, after = maps[:, :3], maps[:, 3], maps[:, 4:]
    kernels = fused_kernels(GREY_SHARES) if colours.device.type == "cuda" else None
    if kernels is not None:
        planes: Planes = colours.unbind(1)
        if jitters:
            planes = kernels.mix_and_turn(planes, before, turns)
        for channel, plane in zip(colours.unbind(1), kernels.mix(planes, after), strict=True):
            channel.copy_(plane)
        return
    if jitters:
        mix(colours, before)
        turn_hue(colours, turns)
    mix(colours, after)


def mix(colours: Tensor, maps: Tensor) -> None:
    """Apply maps a, g, e (n, 3) to `colours` (n, 3, s, s) in place, clamped to [0, 1]."""
    rgb = colours.flatten(2)  # (n, 3, s·s)
    own, of_mean = (maps @ _matrices(colours.device)).view(-1, 2, 3, 3).unbind(1)
    mixed = torch.baddbmm(of_mean @ rgb.mean(2, keepdim=True), own, rgb)
    torch.clamp(mixed.view_as(colours), 0, 1, out=colours)


@functools.cache
def _matrices(device: torch.device) -> Tensor:
    """What a, g and e each add to the matrices of rgb and of its mean, (3, 2·3·3)."""
    one, to_grey, zero = torch.eye(3), torch.tensor([GREY_SHARES] * 3), torch.zeros(3, 3)
    parts = torch.stack((torch.stack((one, zero)), torch.stack((to_grey, zero)), torch.stack((zero, to_grey))))
    return parts.view(3, 18).to(device)


def turn_hue(colours: Tensor, turns: Tensor) -> None:
    """Shift the HSV hue of `colours` (n, 3, s, s) by turns (n,), in place."""
    r, g, b = colours.unbind(1)  # (b, s, s) each
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = torch.maximum(torch.maximum(r, g), b).sub_(low)
    # Flags as 0 and 1, selected by lerp: several times faster than `where` on a CPU.
    has_red, has_blue = (r - low).sign_(), (b - low).sign_()
    # Hue in sixths: 1 + (g−r)/chroma without blue, 3 + (b−g)/chroma without red, 5 + (r−b)/chroma without green.
    sixth = torch.lerp(g - r, torch.lerp(b - g, r - b, has_red), has_blue).div_(chroma.clamp_min(1e-9))
    sixth.add_(1 + 6 * turns[:, None, None]).add_(has_red.add_(1).mul_(has_blue), alpha=2)
    sixth.sub_((sixth / 6).floor_(), alpha=6)
    # Each primary is full within a sixth of its own hue and gone two sixths from it.
    torch.addcmul(low, chroma, (sixth - 3).abs_().sub_(1).clamp_(0, 1), out=r)
    torch.addcmul(low, chroma, (sixth - 2).abs_().neg_().add_(2).clamp_(0, 1), out=g)
    torch.addcmul(low, chroma, (sixth - 4).abs_().neg_().add_(2).clamp_(0, 1), out=b)
