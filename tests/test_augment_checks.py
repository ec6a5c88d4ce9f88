from __future__ import annotations

import pytest

from phenoscape_tune.augment_checks import check_transforms, meaningless, transform_faults
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.transforms import TransformsConfig, defaults_of

UV = Channels(("uv1", "uv2", "uv3"), uv=(0, 1, 2))
FULL = Channels(("red", "green", "blue", "uv1", "uv2", "uv3"), rgb=(0, 1, 2), uv=(3, 4, 5))
BANDS = Channels(tuple(f"{400 + i}nm" for i in range(300)), wavelengths=tuple(400.0 + i for i in range(300)))
ONE = Channels(("450nm",), wavelengths=(450.0,))
EVERYTHING = TransformsConfig(
    **dict.fromkeys(("cj_prob", "random_gray_scale", "gain_prob", "offset_prob", "noise_prob"), 0.5),
    **dict.fromkeys(("gamma_prob", "shift_prob", "band_dropout_prob"), 0.5),
)


@pytest.mark.parametrize(
    ("channels", "keys"),
    [
        (RGB, {"gamma_prob", "shift_prob"}),
        (UV, {"cj_prob", "random_gray_scale", "shift_prob"}),
        (FULL, {"shift_prob"}),
        (BANDS, {"cj_prob", "random_gray_scale", "gamma_prob"}),
        (ONE, {"cj_prob", "random_gray_scale", "gamma_prob", "shift_prob", "band_dropout_prob"}),
    ],
)
def test_all_steps_without_a_meaning_are_named_at_once(channels: Channels, keys: set[str]) -> None:
    assert set(meaningless(channels)) == keys
    with pytest.raises(UserError) as caught:
        check_transforms(EVERYTHING, channels)
    lines = str(caught.value).splitlines()
    assert {line.split(":")[0].removeprefix("transforms.") for line in lines} == keys
    assert all(line.endswith(f"; set {line.split(':')[0]}=0") for line in lines)
    off = EVERYTHING.model_copy(update=dict.fromkeys(keys, 0.0))
    check_transforms(off, channels)


def test_a_fault_says_key_value_reason_and_remedy() -> None:
    (first, second) = transform_faults(TransformsConfig(), BANDS)
    assert first == (
        "transforms.cj_prob: 0.8: colour jitter acts on red, green and blue, and the images have 300 bands "
        "(400nm to 699nm); set transforms.cj_prob=0"
    )
    assert second.startswith("transforms.random_gray_scale: 0.2: greyscale acts on")
    (shift,) = transform_faults(TransformsConfig(shift_prob=0.5), FULL)
    assert shift == (
        "transforms.shift_prob: 0.5: a shift needs the bands of a spectrum, and the images have 6 channels (red, "
        "green, blue, uv1, uv2, uv3), of unknown wavelengths; set transforms.shift_prob=0"
    )


@pytest.mark.parametrize(
    ("modality", "channels"),
    [("rgb", RGB), ("multispectral", UV), ("multispectral", FULL), ("hyperspectral", BANDS), ("hyperspectral", RGB)],
)
def test_the_defaults_of_a_kind_have_a_meaning_for_it(modality: str, channels: Channels) -> None:
    ordered = channels.wavelengths is not None
    defaults = defaults_of(modality, channels.rgb is not None, bool(channels.uv), ordered)
    check_transforms(TransformsConfig(**defaults), channels)  # type: ignore[arg-type]
