from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.transforms import SMALLEST_CROP, TransformsConfig, defaults_of, scaled

PROBABILITY = st.floats(0, 1)
WRITTEN = st.fixed_dictionaries(
    {
        **dict.fromkeys(("cj_prob", "random_gray_scale", "gaussian_blur", "hf_prob", "gain_prob"), PROBABILITY),
        **dict.fromkeys(("gain_strength", "offset_strength", "noise_strength", "band_dropout_prob"), PROBABILITY),
        "band_dropout_strength": PROBABILITY,
        "cj_strength": st.floats(0, 2.5),
        "gamma_strength": st.floats(0, 3),
        "shift_strength": st.floats(0, 512),
        "min_scale": st.floats(0.001, 1),
        "sigmas": st.tuples(st.floats(0.01, 1), st.floats(1, 9)),
    }
)
STRENGTH = st.floats(0, 2)
GRADED = ("cj_strength", "gain_strength", "offset_strength", "gamma_strength", "shift_strength", "noise_strength")
HAPPENING = ("random_gray_scale", "gaussian_blur", "band_dropout_prob")
UNTOUCHED = ("input_size", "cj_prob", "kernel_size", "hf_prob", "gain_prob", "band_dropout_strength", "shift_prob")


def at(strength: float, **written: object) -> TransformsConfig:
    return scaled(TransformsConfig(augmentation_strength=strength, **written))  # type: ignore[arg-type]


def test_the_family_is_scaled_as_documented() -> None:
    half, twice = (at(s, gain_strength=0.6, band_dropout_prob=0.3, sigmas=(0.5, 2.5)) for s in (0.5, 2))
    assert (half.cj_strength, half.gain_strength, half.shift_strength) == (0.25, 0.3, 0.5)
    assert (half.random_gray_scale, half.gaussian_blur, half.band_dropout_prob) == (0.1, 0.25, 0.15)
    assert half.min_scale == pytest.approx(1 - 0.92 / 2)
    assert half.sigmas == (0.5, 1.5)
    assert (twice.cj_strength, twice.gain_strength, twice.gaussian_blur) == (1.0, 1.0, 1.0)
    assert (twice.random_gray_scale, twice.band_dropout_prob) == (0.4, 0.6)
    assert twice.min_scale == SMALLEST_CROP
    assert twice.sigmas == (0.5, 4.5)
    assert at(2, min_scale=0.7).min_scale == pytest.approx(0.4)


@settings(max_examples=60, deadline=None)
@given(WRITTEN)
def test_at_one_nothing_changes_and_at_zero_nothing_but_flips_is_left(written: dict[str, object]) -> None:
    assert at(1, **written) == TransformsConfig(**written)  # type: ignore[arg-type]
    still = at(0, **written)
    assert all(getattr(still, key) == 0 for key in (*GRADED, *HAPPENING))
    assert still.min_scale == 1
    assert still.sigmas[0] == still.sigmas[1]
    assert still.hf_prob == written["hf_prob"]


@settings(max_examples=100, deadline=None)
@given(WRITTEN, STRENGTH, STRENGTH)
def test_more_strength_is_never_less_of_anything(written: dict[str, object], one: float, other: float) -> None:
    weak, strong = at(min(one, other), **written), at(max(one, other), **written)
    for key in (*GRADED, *HAPPENING):
        assert getattr(weak, key) <= getattr(strong, key), key
    assert weak.min_scale >= strong.min_scale or math.isclose(weak.min_scale, strong.min_scale)
    assert weak.sigmas[0] == strong.sigmas[0]
    assert weak.sigmas[1] <= strong.sigmas[1] or math.isclose(weak.sigmas[1], strong.sigmas[1])
    for key in UNTOUCHED:
        assert getattr(weak, key) == getattr(strong, key), key


@settings(max_examples=60, deadline=None)
@given(WRITTEN, STRENGTH)
def test_what_is_scaled_is_a_legal_configuration_that_is_not_scaled_again(
    written: dict[str, object], strength: float
) -> None:
    once = at(strength, **written)
    assert TransformsConfig.model_validate(once.model_dump()) == once
    assert scaled(once) == once


def test_the_defaults_of_rgb_images_are_the_guides() -> None:
    assert defaults_of("rgb", rgb=True, uv=False, ordered=False) == {}
    assert defaults_of("auto", rgb=True, uv=False, ordered=False) == {}
    plain = TransformsConfig()
    assert all(getattr(plain, f"{step}_prob") == 0 for step in ("gain", "offset", "gamma", "shift", "noise"))
    assert plain.band_dropout_prob == 0
    assert plain.augmentation_strength == 1


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize("uv", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("modality", ["multispectral", "hyperspectral"])
def test_each_kind_has_the_steps_that_have_a_meaning_for_it(modality: str, rgb: bool, uv: bool, ordered: bool) -> None:
    transforms = TransformsConfig(**defaults_of(modality, rgb, uv, ordered))  # type: ignore[arg-type]
    assert (transforms.cj_prob > 0, transforms.random_gray_scale > 0) == (rgb, rgb)
    assert (transforms.gamma_prob > 0) == uv
    assert (transforms.shift_prob > 0, transforms.band_dropout_prob > 0) == (ordered, ordered)
    assert min(transforms.gain_prob, transforms.offset_prob, transforms.noise_prob) > 0


def test_the_documented_defaults_are_the_schemas() -> None:
    page = (Path(__file__).parent.parent / "docs" / "augmentation.md").read_text(encoding="utf-8")
    table = page.split("| key | RGB | multispectral | hyperspectral |")[1].split("\n\n")[0]
    kinds = (("rgb", True, False, False), ("multispectral", True, True, False), ("hyperspectral", False, False, True))
    told = set()
    for line in table.strip().splitlines()[1:]:
        keys, *cells = line.strip("| ").split(" | ")
        for (modality, *facts), cell in zip(kinds, cells, strict=True):
            transforms = TransformsConfig(**defaults_of(modality, *facts))  # type: ignore[arg-type]
            for key, number in zip(keys.split(", "), cell.split(";")[0].split(", "), strict=True):
                assert getattr(transforms, key.strip("`")) == float(number), (key, modality)
                told.add(key.strip("`"))
    differing = {key for kind in kinds for key in defaults_of(*kind)}
    assert differing <= told
