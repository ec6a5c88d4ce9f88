from __future__ import annotations

from typing import Any

import pytest

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.searched_transforms import check_searched
from phenoscape_tune.search.space import build_space, load_space
from phenoscape_tune.settling import with_modality

FULL = Channels(("red", "green", "blue", "uv1", "uv2", "uv3"), rgb=(0, 1, 2), uv=(3, 4, 5))
UV = Channels(("uv1", "uv2", "uv3"), uv=(0, 1, 2))
BANDS = Channels(tuple(f"{400 + i}nm" for i in range(300)), wavelengths=tuple(400.0 + i for i in range(300)))
KINDS = [("rgb", RGB), ("multispectral", FULL), ("multispectral", UV), ("hyperspectral", BANDS)]


def fitted(config: TrainConfig, modality: str, channels: Channels) -> TrainConfig:
    ordered = channels.wavelengths is not None
    return with_modality(config, modality, rgb=channels.rgb is not None, uv=bool(channels.uv), ordered=ordered)


def told(keys: list[str], modality: str, channels: Channels | None, **transforms: Any) -> str:
    """What is said of searching some keys of the augmentation; empty where they are accepted."""
    space = build_space(
        {"parameters": {f"transforms.{key}": {"type": "uniform", "low": 0.1, "high": 0.9} for key in keys}}
    )
    base = build_config({"modality": modality, "transforms": transforms})
    if channels is not None:
        base = fitted(base, modality, channels)
    try:
        check_searched(space, base, channels)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("modality", "channels"), KINDS)
def test_the_shipped_space_has_a_meaning_for_every_kind_of_images(modality: str, channels: Channels) -> None:
    space, _ = load_space("augmentation")
    check_searched(space, fitted(build_config({}), modality, channels), channels)


def test_colour_without_colours_is_refused_before_the_search_starts() -> None:
    message = told(["cj_strength", "random_gray_scale", "gain_strength"], "hyperspectral", BANDS)
    first, second = message.splitlines()
    assert first == (
        "parameters.transforms.cj_strength: colour jitter acts on red, green and blue, and the images have 300 bands "
        "(400nm to 699nm); leave it out of the space"
    )
    assert second.startswith("parameters.transforms.random_gray_scale: greyscale acts on red, green and blue")
    assert "gamma curve" in told(["gamma_prob", "gamma_strength"], "rgb", RGB)
    assert told(["cj_strength", "gamma_strength", "noise_prob"], "multispectral", FULL) == ""


def test_a_strength_whose_step_never_happens_is_refused() -> None:
    message = told(["gain_strength"], "rgb", RGB)
    assert message == (
        "parameters.transforms.gain_strength: changes nothing while transforms.gain_prob is 0; set that, for example "
        "transforms.gain_prob=0.5, or leave gain_strength out of the space"
    )
    assert told(["gain_strength", "gain_prob"], "rgb", RGB) == ""
    assert told(["gain_strength"], "rgb", RGB, gain_prob=0.5) == ""
    assert told(["cj_strength", "min_scale", "hf_prob"], "rgb", RGB) == ""
    # Without the files, by the configuration alone.
    assert "cj_prob is 0" in told(["cj_strength"], "hyperspectral", None)
    assert told(["cj_strength"], "multispectral", None) == ""


def test_where_all_is_scaled_to_nothing_nothing_else_is_searched() -> None:
    message = told(["cj_strength", "min_scale", "hf_prob"], "rgb", RGB, augmentation_strength=0)
    assert [line.split(":")[0] for line in message.splitlines()] == [
        "parameters.transforms.cj_strength",
        "parameters.transforms.min_scale",
    ]
    assert told(["cj_strength", "augmentation_strength"], "rgb", RGB, augmentation_strength=0) == ""
