"""What light and sensor do to the channels of an image: gamma, gain, offset, spectral shift, noise, lost bands.

Parameters are drawn on the CPU by a seeded generator, in the order of `Spectra`'s fields, and only for steps that are
switched on: without any the generator's stream is as it was. Every step works in place, view by view or channel by
channel, so that hundreds of bands need no second copy of the views.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from phenoscape_tune.augment_device import send

# Normal numbers, drawn once: each view adds a run of them from a start of its own, so that its noise is the same on
# every device and whatever it is computed together with. 16 MiB; a view of more values meets them again.
NOISE_VALUES, NOISE_SEED = 2**22, 20
NEUTRAL = 0.5  # of a lost band, where the channels' means are not told


@dataclass(frozen=True)
class SpectralParameters:
    """What was drawn for N views of C channels, on the CPU; None for a step that is switched off."""

    gamma: Tensor | None = None  # float32 (N,): exponents, 1 for views that keep theirs
    gain: Tensor | None = None  # float32 (N, C): factors, 1 where there is none
    offset: Tensor | None = None  # float32 (N, C): of the full range, 0 where there is none
    shift: Tensor | None = None  # float32 (N,): bands, 0 where there is none
    noise: Tensor | None = None  # float32 (N,): standard deviations, 0 where there is none
    noise_start: Tensor | None = None  # int64 (N,): where in the bank of normal numbers a view's noise begins
    dropped: Tensor | None = None  # bool (N, C)

    def take(self, rows: Tensor) -> SpectralParameters:
        """What was drawn for some of the views: int64 (n,)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return SpectralParameters(**{key: None if value is None else value[rows] for key, value in values.items()})


NOTHING_DRAWN = SpectralParameters()


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """The steps, with the probability and the strength of each. A view has each step with its probability, as a whole.

    Args:
        gamma_prob, gamma_strength: x^exp(u) on the ultraviolet channels, u uniform in ±strength.
        gain_prob, gain_strength: each channel times a factor of its own, uniform in 1 ± strength.
        offset_prob, offset_strength: each channel plus a number of its own, uniform in ±strength of the full range.
        shift_prob, shift_strength: band b becomes what stood at b + d, d uniform in ±strength bands, with linear
            interpolation; beyond the first and last band stands what they hold.
        noise_prob, noise_strength: Gaussian noise of each pixel of each channel; its standard deviation is uniform in
            0 … strength of the full range.
        band_dropout_prob, band_dropout_strength: a share of the bands, chosen at random, becomes `fill`; rounded, at
            least one and never all.

    Raises ValueError that names every setting outside its range.
    """

    gamma_prob: float = 0.0
    gamma_strength: float = 0.0
    gain_prob: float = 0.0
    gain_strength: float = 0.0
    offset_prob: float = 0.0
    offset_strength: float = 0.0
    shift_prob: float = 0.0
    shift_strength: float = 0.0
    noise_prob: float = 0.0
    noise_strength: float = 0.0
    band_dropout_prob: float = 0.0
    band_dropout_strength: float = 0.0

    def __post_init__(self) -> None:
        highest = dict.fromkeys((field.name for field in fields(self)), 1.0)
        highest |= {"gamma_strength": math.inf, "shift_strength": math.inf}
        faults = [
            f"{name}={getattr(self, name)}: write a number from 0 to {high:g}"
            for name, high in highest.items()
            if not 0 <= getattr(self, name) <= high
        ]
        if faults:
            raise ValueError("; ".join(faults))

    def draw(self, views: int, channels: int, generator: torch.Generator) -> SpectralParameters:
        """Parameters of `views` views (N) of `channels` channels (C)."""
        drawn: dict[str, Tensor] = {}

        def happens(probability: float) -> Tensor:
            return torch.rand(views, generator=generator) < probability

        def uniform(most: float, *shape: int) -> Tensor:
            return most * (2 * torch.rand(views, *shape, generator=generator) - 1)

        if self.gamma_prob > 0:
            chosen = happens(self.gamma_prob)
            drawn["gamma"] = torch.where(chosen, uniform(self.gamma_strength).exp(), 1.0)
        for key in ("gain", "offset"):
            if getattr(self, f"{key}_prob") > 0:
                chosen = happens(getattr(self, f"{key}_prob"))[:, None]
                values = uniform(getattr(self, f"{key}_strength"), channels)  # (N, C)
                drawn[key] = torch.where(chosen, values, 0.0) + (key == "gain")
        if self.shift_prob > 0:
            chosen = happens(self.shift_prob)
            drawn["shift"] = torch.where(chosen, uniform(self.shift_strength), 0.0)
        if self.noise_prob > 0:
            chosen = happens(self.noise_prob)
            sigma = self.noise_strength * torch.rand(views, generator=generator)
            drawn["noise"] = torch.where(chosen, sigma, 0.0)
            drawn["noise_start"] = torch.randint(NOISE_VALUES, (views,), generator=generator)
        if self.band_dropout_prob > 0:
            chosen = happens(self.band_dropout_prob)[:, None]
            count = min(max(1, round(self.band_dropout_strength * channels)), channels - 1)
            places = torch.rand(views, channels, generator=generator).argsort(dim=1).argsort(dim=1)
            drawn["dropped"] = (places < count) & chosen
        return SpectralParameters(**drawn)


NO_STEPS = Spectra()


def relight(views: Tensor, drawn: SpectralParameters, uv: tuple[int, ...]) -> None:
    """Gamma, gain and offset, then the shift, on contiguous views (n, C, s, s) in [0, 1], in place.

    `drawn` is of these n views, `uv` where the ultraviolet channels stand. A GPU is not waited for.
    """
    if drawn.gamma is not None:
        rows, exponents = _chosen(drawn.gamma, drawn.gamma != 1, views.device)
        for channel in uv:
            plane = views[:, channel]  # (n, s, s)
            plane.index_copy_(0, rows, plane.index_select(0, rows).pow_(exponents[:, None, None]))
    if drawn.gain is not None or drawn.offset is not None:
        n, C = views.shape[:2]
        gain = torch.ones(n, C) if drawn.gain is None else drawn.gain
        offset = torch.zeros(n, C) if drawn.offset is None else drawn.offset
        gain, offset = (send(part, views.device)[..., None, None] for part in (gain, offset))
        torch.addcmul(offset, views, gain, out=views).clamp_(0, 1)
    if drawn.shift is not None:
        _shift(views, drawn.shift)


def _shift(views: Tensor, shift: Tensor) -> None:
    """Band b of view i becomes what stands at b + shift[i], in place; shift (n,) on the CPU."""
    n, C, *plane = views.shape
    rows = shift.nonzero()  # (k, 1)
    at = (torch.arange(C) + shift[rows].double()).clamp_(0, C - 1)  # (k, C)
    below = at.long()
    weight = send((at - below).float().flatten(), views.device)[:, None, None]
    places = (rows * C + torch.arange(C), rows * C + below, rows * C + (below + 1).clamp_(max=C - 1))
    own, low, high = (send(place.flatten(), views.device) for place in places)  # (k·C,) each
    bands = views.view(n * C, *plane)
    bands.index_copy_(0, own, bands.index_select(0, low).lerp_(bands.index_select(0, high), weight))


def degrade(views: Tensor, drawn: SpectralParameters, fill: tuple[float, ...] | None = None) -> None:
    """Noise, then lost bands, on contiguous views (N, C, s, s) in [0, 1], in place.

    `fill` (C,) takes the place of a lost band: the channels' means, which the encoder subtracts; None: 0.5. A GPU is
    not waited for.
    """
    if drawn.noise is not None and drawn.noise_start is not None:
        bank = _noise_bank(views.device)
        for i in drawn.noise.nonzero().squeeze(1).tolist():
            _add_noise(views[i].view(-1), bank, int(drawn.noise_start[i]), float(drawn.noise[i]))
    if drawn.dropped is not None:
        N, C, *plane = views.shape
        places = drawn.dropped.flatten().nonzero().squeeze(1)  # (k,)
        neutral = torch.full((C,), NEUTRAL) if fill is None else torch.tensor(fill)
        values = send(neutral[places % C], views.device)[:, None, None].expand(-1, *plane)
        views.view(N * C, *plane).index_copy_(0, send(places, views.device), values)


def _add_noise(values: Tensor, bank: Tensor, start: int, sigma: float) -> None:
    """Add a run of the bank, times sigma, to values (n,) in [0, 1] in place; at the bank's end it begins anew."""
    done = 0
    while done < len(values):
        part = values[done : done + len(bank) - start]
        part.add_(bank[start : start + len(part)], alpha=sigma)
        done, start = done + len(part), 0
    values.clamp_(0, 1)


@functools.cache
def _noise_bank(device: torch.device) -> Tensor:
    return torch.randn(NOISE_VALUES, generator=torch.Generator().manual_seed(NOISE_SEED)).to(device)


def _chosen(values: Tensor, chosen: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices and values of the chosen rows, on the device."""
    rows = chosen.nonzero().squeeze(1)
    return send(rows, device), send(values[rows], device)
