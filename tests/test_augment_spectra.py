"""Drawn parameters against their distributions, pixels against plain numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, kstest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from phenoscape_tune.augment import TwoViews
from phenoscape_tune.augment_spectra import (
    NO_STEPS,
    NOISE_VALUES,
    NOTHING_DRAWN,
    Spectra,
    SpectralParameters,
    _add_noise,
    _noise_bank,
    degrade,
    relight,
)
from phenoscape_tune.data.channels import Channels

ALL = Spectra(
    **dict.fromkeys(("gamma_prob", "gain_prob", "offset_prob", "shift_prob", "noise_prob"), 0.6),
    **{"gamma_strength": 0.4, "gain_strength": 0.3, "offset_strength": 0.1, "shift_strength": 2.5},
    **{"noise_strength": 0.05, "band_dropout_prob": 0.5, "band_dropout_strength": 0.3},
)
# Ordered ones, so that every step has a meaning.
CHANNELS = Channels(
    ("uv1", "green", "uv2", "red", "nir", "blue"), rgb=(3, 1, 5), uv=(0, 2), wavelengths=(350, 550, 380, 650, 800, 450)
)
TOLERANCE = 2e-6


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_views(N: int, C: int, s: int = 8) -> Tensor:
    return torch.rand(N, C, s, s, generator=seeded(1))


def two_views(spectra: Spectra = ALL, channels: Channels = CHANNELS, **changes: Any) -> TwoViews:
    plain = {"input_size": 16, "cj_prob": 0.8, "cj_strength": 0.5, "min_scale": 0.3, "random_gray_scale": 0.2}
    blur = {"gaussian_blur": 0.5, "kernel_size": 0.3, "sigmas": (0.1, 2.0)}
    return TwoViews(**(plain | blur | changes), channels=channels, spectra=spectra)  # type: ignore[arg-type]


def random_images(B: int, C: int = 6, side: int = 18) -> Tensor:
    return torch.randint(0, 256, (B, C, side, side), dtype=torch.uint8, generator=seeded(2))


# What is drawn


def test_each_step_happens_with_its_probability_and_is_drawn_uniformly() -> None:
    N, C = 4000, 6
    drawn = ALL.draw(N, C, seeded())
    assert drawn.gamma is not None and drawn.gain is not None and drawn.offset is not None
    assert drawn.shift is not None and drawn.noise is not None and drawn.noise_start is not None
    happened = {
        "gamma": drawn.gamma != 1,
        "gain": (drawn.gain != 1).any(1),
        "offset": (drawn.offset != 0).any(1),
        "shift": drawn.shift != 0,
        "noise": drawn.noise != 0,
    }
    for chosen in happened.values():
        assert binomtest(int(chosen.sum()), N, 0.6).pvalue > 1e-3
    strengths = {
        "gamma": (drawn.gamma.log(), -0.4, 0.8),
        "gain": (drawn.gain - 1, -0.3, 0.6),
        "offset": (drawn.offset, -0.1, 0.2),
        "shift": (drawn.shift, -2.5, 5.0),
        "noise": (drawn.noise, 0.0, 0.05),
    }
    for key, (values, low, width) in strengths.items():
        values = values[happened[key]].flatten()
        assert kstest(values.double().numpy(), "uniform", args=(low, width)).pvalue > 1e-3, key
    # Channels of a view have gains of their own, and the steps happen independently.
    assert abs(np.corrcoef(drawn.gain[happened["gain"]][:, :2].T)[0, 1]) < 0.06
    assert abs(np.corrcoef(torch.stack(list(happened.values())).double())[~np.eye(5, dtype=bool)]).max() < 0.06
    assert kstest(drawn.noise_start.double().numpy(), "uniform", args=(0, NOISE_VALUES)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("channels", "strength", "lost"), [(6, 0.3, 2), (6, 0.0, 1), (6, 1.0, 5), (2, 0.5, 1), (408, 0.1, 41)]
)
def test_so_many_bands_are_lost_and_never_all(channels: int, strength: float, lost: int) -> None:
    spectra = Spectra(band_dropout_prob=0.5, band_dropout_strength=strength)
    dropped = spectra.draw(3000, channels, seeded()).dropped
    assert dropped is not None
    counts = dropped.sum(1)
    assert set(counts.tolist()) == {0, lost}
    assert binomtest(int((counts > 0).sum()), 3000, 0.5).pvalue > 1e-3
    assert chisquare(dropped.sum(0).numpy()).pvalue > 1e-3  # every band as often


def test_nothing_is_drawn_for_steps_that_are_off() -> None:
    generator = seeded()
    before = generator.get_state()
    assert NO_STEPS.draw(8, 6, generator) == NOTHING_DRAWN
    assert Spectra(gain_strength=0.5).draw(8, 6, generator) == NOTHING_DRAWN
    assert torch.equal(generator.get_state(), before)
    only = Spectra(shift_prob=1, shift_strength=1).draw(8, 6, generator)
    assert {field.name for field in fields(only) if getattr(only, field.name) is not None} == {"shift"}


def test_a_seed_draws_the_same_and_another_one_something_else() -> None:
    first, again, other = (ALL.draw(20, 6, seeded(seed)) for seed in (3, 3, 4))
    for field in fields(first):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name)), field.name
        assert not torch.equal(getattr(first, field.name), getattr(other, field.name)), field.name


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"gain_prob=1\.5: write a number from 0 to 1.*noise_strength=-1"):
        Spectra(gain_prob=1.5, noise_strength=-1)


# What is done to the pixels


def expected_light(view: np.ndarray, drawn: SpectralParameters, i: int, uv: tuple[int, ...]) -> np.ndarray:
    """Gamma, gain and offset, shift on one view (C, s, s), as the documentation has them."""
    view = view.astype(np.float64)
    C = len(view)
    if drawn.gamma is not None:
        for c in uv:
            view[c] = view[c] ** float(drawn.gamma[i])
    for c in range(C):
        gain = 1.0 if drawn.gain is None else float(drawn.gain[i, c])
        offset = 0.0 if drawn.offset is None else float(drawn.offset[i, c])
        view[c] = np.clip(gain * view[c] + offset, 0, 1)
    if drawn.shift is not None:
        at = np.arange(C) + float(drawn.shift[i])
        spectra = view.reshape(C, -1)
        view = np.stack([np.interp(at, np.arange(C), s) for s in spectra.T], axis=1).reshape(view.shape)
    return view


def expected_damage(view: np.ndarray, drawn: SpectralParameters, i: int, fill: np.ndarray) -> np.ndarray:
    """Noise, lost bands on one view (C, s, s)."""
    view = view.astype(np.float64)
    if drawn.noise is not None and drawn.noise_start is not None:
        bank = _noise_bank(torch.device("cpu")).numpy()
        places = (int(drawn.noise_start[i]) + np.arange(view.size)) % len(bank)
        view = np.clip(view + float(drawn.noise[i]) * bank[places].reshape(view.shape), 0, 1)
    if drawn.dropped is not None:
        for c in np.flatnonzero(drawn.dropped[i].numpy()):
            view[c] = fill[c]
    return view


STEPS = ("gamma", "gain", "offset", "shift", "noise", "band_dropout")


@pytest.mark.parametrize("step", [*STEPS, "all"])
def test_each_step_equals_plain_numpy(step: str) -> None:
    others = {f"{name}_prob": 0.0 for name in STEPS if step not in (name, "all")}
    drawn = replace(ALL, **others).draw(12, 6, seeded())
    views, fill = random_views(12, 6), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    light = [expected_light(view.numpy(), drawn, i, (0, 2)) for i, view in enumerate(views)]
    expected = np.stack([expected_damage(view, drawn, i, np.array(fill)) for i, view in enumerate(light)])
    changed = views.clone()
    relight(changed, drawn, (0, 2))
    degrade(changed, drawn, fill)
    np.testing.assert_allclose(changed.numpy(), expected, atol=TOLERANCE, rtol=0)
    moved = (changed != views).flatten(1).any(1)
    assert 0 < moved.sum() <= 12
    if step != "all":
        assert moved.sum() < 12  # the others are untouched, to the last bit


def test_a_shift_of_whole_bands_moves_them_and_holds_the_edges() -> None:
    bands = torch.tensor([0.1, 0.2, 0.4, 0.8]).view(1, 4, 1, 1).repeat(4, 1, 2, 2)
    relight(bands, SpectralParameters(shift=torch.tensor([1.0, -2.0, 0.5, 99.0])), ())
    expected = [[0.2, 0.4, 0.8, 0.8], [0.1, 0.1, 0.1, 0.2], [0.15, 0.3, 0.6, 0.8], [0.8] * 4]
    torch.testing.assert_close(bands[:, :, 0, 0], torch.tensor(expected))


def test_a_lost_band_is_neutral_by_default_too() -> None:
    views = random_views(2, 3)
    dropped = torch.tensor([[False, True, False], [False, False, False]])
    lost = views.clone()
    degrade(lost, SpectralParameters(dropped=dropped))
    assert (lost[0, 1] == 0.5).all()
    lost[0, 1] = views[0, 1]
    assert torch.equal(lost, views)


def test_noise_is_gaussian_and_of_its_own_in_each_view() -> None:
    views = torch.full((3, 20, 32, 32), 0.5)
    start = ALL.draw(3, 20, seeded()).noise_start
    degrade(views, SpectralParameters(noise=torch.tensor([0.02, 0.04, 0.0]), noise_start=start))
    first, second = ((view - 0.5).flatten().numpy() for view in views[:2])
    assert kstest(first / 0.02, "norm").pvalue > 1e-3
    assert kstest(second / 0.04, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    neighbours = (views[0] - 0.5)[:, :, :-1], (views[0] - 0.5)[:, :, 1:]
    assert abs(np.corrcoef(*(part.flatten().numpy() for part in neighbours))[0, 1]) < 0.03
    assert (views[2] == 0.5).all()


def test_a_view_of_more_values_than_the_bank_goes_round() -> None:
    bank, values = torch.tensor([0.1, 0.2, -0.3]), torch.full((8,), 0.5)
    _add_noise(values, bank, 2, 1.0)
    torch.testing.assert_close(values, torch.tensor([0.2, 0.6, 0.7, 0.2, 0.6, 0.7, 0.2, 0.6]))


# Within two views


def test_what_a_view_becomes_depends_neither_on_slices_nor_on_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    images, transform = random_images(6), two_views()
    drawn = transform.draw(6, 18, 18, seeded(3))
    whole = transform.apply(images, drawn)
    assert torch.equal(whole, transform(images, seeded(3)))
    assert not torch.equal(whole, transform(images, seeded(4)))
    for part, parts in ((0, 2), (1, 2), (2, 3)):
        own = slice(part * 6 // parts, (part + 1) * 6 // parts)
        shared = transform.apply(images[own], drawn.share(part, parts))
        rows = torch.cat((whole[:6][own], whole[6:][own]))
        torch.testing.assert_close(shared, rows, atol=TOLERANCE, rtol=0)
    monkeypatch.setattr("phenoscape_tune.augment_device.CPU_SLICE", 2**10)
    torch.testing.assert_close(transform.apply(images, drawn), whole, atol=TOLERANCE, rtol=0)


def test_shared_parameters_are_the_whole_ones_rows() -> None:
    drawn = two_views().draw(6, 18, 18, seeded())
    shares = [drawn.share(part, 3).spectra for part in range(3)]
    for field in fields(SpectralParameters):
        whole = getattr(drawn.spectra, field.name).unflatten(0, (2, 6))
        parts = torch.cat([getattr(share, field.name).unflatten(0, (2, 2)) for share in shares], dim=1)
        assert torch.equal(parts, whole), field.name


def test_colour_acts_on_red_green_and_blue_wherever_they_stand() -> None:
    images, order = random_images(5), [3, 1, 5, 0, 2, 4]
    scattered = two_views(NO_STEPS)
    names = tuple(CHANNELS.names[i] for i in order)
    for places in ((0, 1, 2), (3, 4, 5)):
        turn = order if places[0] == 0 else [*order[3:], *order[:3]]
        together = two_views(NO_STEPS, Channels(names, rgb=places))
        expected = together(images[:, turn], seeded())
        assert torch.equal(scattered(images, seeded())[:, turn], expected)
    untouched = two_views(NO_STEPS, cj_prob=0, random_gray_scale=0)
    others = [0, 2, 4]
    torch.testing.assert_close(
        scattered(images, seeded())[:, others], untouched(images, seeded())[:, others], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("spectra", [NO_STEPS, ALL])
def test_sixteen_bits_say_what_eight_say_where_they_agree(spectra: Spectra) -> None:
    eight = random_images(4)
    sixteen = (eight.to(torch.int32) * 257).to(torch.uint16)
    one, other = (two_views(spectra)(images, seeded()) for images in (eight, sixteen))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    fine = torch.full((1, 6, 18, 18), 30001, dtype=torch.int32).to(torch.uint16)
    plain = two_views(NO_STEPS, cj_prob=0, random_gray_scale=0)(fine, seeded())
    torch.testing.assert_close(plain, torch.full_like(plain, 30001 / 65535), atol=1e-6, rtol=0)


def test_the_steps_come_in_the_documented_order() -> None:
    """Jitter and greyscale, gamma, gain and offset, shift, blur, noise, lost bands."""
    images, transform = random_images(4), two_views(fill=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    drawn = transform.draw(4, 18, 18, seeded())
    still = torch.zeros(8, dtype=torch.bool)
    coloured = transform.apply(images, replace(drawn, blur=still, spectra=NOTHING_DRAWN))
    light = np.stack([expected_light(v.numpy(), drawn.spectra, i, (0, 2)) for i, v in enumerate(coloured)])
    relit = transform.apply(
        images, replace(drawn, blur=still, spectra=replace(drawn.spectra, noise=None, dropped=None))
    )
    np.testing.assert_allclose(relit.numpy(), light, atol=TOLERANCE, rtol=0)
    blurred = transform.apply(images, replace(drawn, spectra=replace(drawn.spectra, noise=None, dropped=None)))
    assert (blurred != relit).flatten(1).any(1).equal(drawn.blur)
    fill = np.array(transform.fill)
    expected = np.stack([expected_damage(v.numpy(), drawn.spectra, i, fill) for i, v in enumerate(blurred)])
    np.testing.assert_allclose(transform.apply(images, drawn).numpy(), expected, atol=TOLERANCE, rtol=0)


class _LargestTensor(TorchDispatchMode):
    """The most values that any operation's result has, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        own = {id(a.untyped_storage()) for a in args if isinstance(a, Tensor)}
        if isinstance(result, Tensor) and id(result.untyped_storage()) not in own:
            known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            if result.untyped_storage().data_ptr() not in known:
                self.sizes.append(result.numel())
        return result


@contextmanager
def watched() -> Iterator[list[int]]:
    with _LargestTensor() as mode:
        yield mode.sizes


def test_hundreds_of_bands_need_no_second_copy_of_the_views() -> None:
    C = 408
    bands = Channels(tuple(map(str, range(C))), wavelengths=tuple(map(float, range(C))))
    spectra = replace(ALL, gamma_prob=0, band_dropout_prob=0.5, band_dropout_strength=0.3)
    transform = two_views(spectra, bands, input_size=32, cj_prob=0, random_gray_scale=0)
    images = random_images(24, C, 32)
    transform(images[:1], seeded())  # the bank of noise is made once
    with watched() as sizes:
        views = transform(images, seeded())
    most, *rest = sorted(sizes, reverse=True)
    assert most == views.numel()
    assert rest[0] < views.numel() / 8


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_settings_give_finite_views_in_range(data: st.DataObject) -> None:
    share = st.floats(0, 1)
    values = {field.name: data.draw(share, field.name) for field in fields(Spectra)}
    values |= {"gamma_strength": data.draw(st.floats(0, 3)), "shift_strength": data.draw(st.floats(0, 512))}
    transform = two_views(Spectra(**values), cj_prob=data.draw(share))
    B = data.draw(st.integers(1, 4))
    views = transform(random_images(B), seeded(data.draw(st.integers(0, 2**32))))
    assert views.shape == (2 * B, 6, 16, 16)
    assert torch.isfinite(views).all()
    assert views.min() >= 0 and views.max() <= 1
