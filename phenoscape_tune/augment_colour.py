"""Colour jitter and greyscale of red, green and blue, wherever they stand among the channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Chain = np.ndarray  # float64 (3, N): a, g and e of `colour_maps`, for N views

# ITU-R BT.601 luma as torchvision rounds it, so that greyscale, contrast and saturation agree to the last digit.
GREY_SHARES = (0.2989, 0.587, 0.114)
GREY_TWICE = sum(GREY_SHARES)  # making grey what is grey: (sum of shares) times as much
HUE = 3  # a step's number in `order`, after brightness, contrast and saturation


def colour_maps(
    jitter: Tensor, factors: Tensor, hue: Tensor, order: Tensor, gray: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The colour steps of N views as an affine map, a turn of the hue in HSV (N,), and another affine map.

    Arguments are the fields of `ViewParameters` of these names.

    A map is A and E, float32 (N, 2, 3, 3), of rgb ↦ A·rgb + E·(mean rgb). Brightness f: f·rgb. Saturation f: f·rgb +
    (1−f)·grey. Contrast f: f·rgb + (1−f)·mean(grey), where the mean within a chain is a linear map of that at its
    start. Greyscale comes last.

    With G the 3×3 matrix that makes an image grey, every step, and so every chain of them, is A = a·I + g·G and E =
    e·G: chains are composed by these three numbers a view, which costs a host that drives a GPU a tenth of what
    products of matrices do.
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
    return _matrices(before), _matrices(after), torch.where(jitter, hue, 0.0)


def _then(step: Chain, chain: Chain) -> Chain:
    """`step` after `chain`."""
    (a, g, e), (a0, g0, e0) = step, chain
    return np.array(
        (
            a * a0,
            a * g0 + g * (a0 + GREY_TWICE * g0),
            a * e0 + GREY_TWICE * g * e0 + e * (a0 + GREY_TWICE * (g0 + e0)),
        )
    )


def _matrices(chain: Chain) -> Tensor:
    """A and E, float32 (N, 2, 3, 3)."""
    maps = chain[1:].T[..., None, None] * np.broadcast_to(np.array(GREY_SHARES), (3, 3))
    maps[:, 0, range(3), range(3)] += chain[0][:, None]
    return torch.from_numpy(maps.astype(np.float32))


def colours_of(view: Tensor, rgb: tuple[int, int, int]) -> Tensor:
    """Red, green and blue (b, 3, s, s) of `view` (b, C, s, s): itself where they stand side by side, else a copy."""
    first = rgb[0]
    if rgb == (first, first + 1, first + 2):
        return view[:, first : first + 3]
    return torch.stack([view[:, channel] for channel in rgb], dim=1)


def put_back(view: Tensor, rgb: tuple[int, int, int], colours: Tensor) -> None:
    if colours.untyped_storage().data_ptr() != view.untyped_storage().data_ptr():
        for channel, colour in zip(rgb, colours.unbind(1), strict=True):
            view[:, channel] = colour


def mix(colours: Tensor, maps: Tensor) -> None:
    """Apply maps (b, 2, 3, 3) to `colours` (b, 3, s, s) in place, clamped to [0, 1]."""
    rgb = colours.flatten(2)  # (b, 3, s·s)
    mixed = torch.baddbmm(maps[:, 1] @ rgb.mean(2, keepdim=True), maps[:, 0], rgb)
    torch.clamp(mixed.view_as(colours), 0, 1, out=colours)


def turn_hue(colours: Tensor, turns: Tensor) -> None:
    """Shift the HSV hue of `colours` (b, 3, s, s) by turns (b,), in place."""
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
