from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.settling import forget_written, vary, with_modality

MODALITIES = st.sampled_from(["rgb", "multispectral", "hyperspectral"])


WRITTEN = st.fixed_dictionaries(
    {},
    optional={
        "input_size": st.integers(8, 4096),
        "lr": st.floats(1e-5, 1e-1),
        "transforms": st.fixed_dictionaries(
            {},
            optional={
                "cj_prob": st.floats(0, 1),
                "gain_prob": st.floats(0, 1),
                "gain_strength": st.floats(0, 1),
                "gamma_prob": st.floats(0, 1),
                "shift_prob": st.floats(0, 1),
                "augmentation_strength": st.floats(0, 2),
            },
        ),
    },
)


def test_transforms_that_are_not_written_follow_the_modality() -> None:
    spectral = build_config({"modality": "hyperspectral", "transforms": {"gain_prob": 0.3}}).transforms
    assert (spectral.cj_prob, spectral.random_gray_scale) == (0, 0)
    assert (spectral.gain_prob, spectral.min_scale) == (0.3, 0.08)
    assert spectral.shift_prob > 0
    assert build_config({"modality": "hyperspectral", "bands": "rgb"}).transforms.cj_prob == 0.8
    uv = build_config({"modality": "multispectral", "channels": "uv_only"}).transforms
    assert (uv.cj_prob, uv.gamma_prob) == (0, 0.5)
    assert build_config({"modality": "multispectral", "transforms": {"gamma_prob": 0}}).transforms.gamma_prob == 0
    assert build_config({"modality": "rgb"}).transforms == TrainConfig().transforms


@settings(max_examples=60, deadline=None)
@given(WRITTEN, MODALITIES)
def test_a_modality_that_the_files_tell_is_as_good_as_one_that_was_written(
    written: dict[str, Any], modality: str
) -> None:
    told, guessed = build_config({**written, "modality": modality}), build_config(written)
    assert guessed.transforms == build_config({**written, "modality": "rgb"}).transforms
    assert with_modality(guessed, modality) == told
    assert with_modality(told, modality) == told
    assert with_modality(with_modality(guessed, modality), modality) == told
    # What was written by hand, or read back from a run's config.yaml, stays.
    for key, value in written.get("transforms", {}).items():
        assert getattr(told.transforms, key) == value
    explicit = build_config(told.to_mapping())
    assert explicit == told
    assert with_modality(explicit, modality) == told
    assert build_config(told.given()) == told
    assert with_modality(build_config({**guessed.to_mapping(), "modality": "auto"}), modality).transforms == (
        guessed.transforms
    )


def test_what_the_files_hold_wins_over_what_the_configuration_lets_expect() -> None:
    blind = with_modality(TrainConfig(), "multispectral", rgb=False, uv=False)
    assert (blind.transforms.cj_prob, blind.transforms.gamma_prob) == (0, 0)
    assert blind.transforms.gain_prob > 0
    written = build_config({"modality": "multispectral", "transforms": {"cj_prob": 0.4}})
    known = with_modality(written, "multispectral", rgb=False, uv=True)
    assert (known.transforms.cj_prob, known.transforms.random_gray_scale) == (0.4, 0)
    assert known.given() == written.given()
    unordered = with_modality(TrainConfig(), "hyperspectral", ordered=False)
    assert (unordered.transforms.shift_prob, unordered.transforms.cj_prob) == (0, 0)
    assert with_modality(unordered, "hyperspectral").transforms.shift_prob > 0


def test_keys_that_do_not_go_with_the_modality_of_the_files_are_refused() -> None:
    config = build_config({"bands": "every:4"})
    assert with_modality(config, "hyperspectral").bands == "every:4"
    with pytest.raises(UserError, match=r"bands: is for hyperspectral images, and modality is rgb"):
        with_modality(config, "rgb")
    # A modality that was written is the user's word; whether the files fit is told by their reader.
    assert with_modality(build_config({"modality": "rgb"}), "hyperspectral").modality == "rgb"


def test_other_channels_have_the_transforms_that_are_theirs_by_default() -> None:
    base = build_config({"modality": "multispectral", "channels": "full", "transforms": {"gain_prob": 0.31}})
    assert base.transforms.gamma_prob > 0 < base.transforms.cj_prob
    saved = forget_written(build_config(base.to_mapping()), base.unwritten_transforms())
    assert saved == base and "gain_prob" not in base.unwritten_transforms()
    for source in (base, saved):  # as it was written, and as a search's folder keeps it
        rgb, uv = (vary(source, {"channels": chosen}, "a trial") for chosen in ("rgb_only", "uv_only"))
        assert (rgb.transforms.gamma_prob, rgb.transforms.cj_prob) == (0, base.transforms.cj_prob)
        assert (uv.transforms.gamma_prob, uv.transforms.cj_prob) == (base.transforms.gamma_prob, 0)
        assert rgb.transforms.gain_prob == uv.transforms.gain_prob == 0.31
        assert vary(source, {"channels": "full", "lr": 0.01}, "a trial") == base.model_copy(update={"lr": 0.01})


def test_what_was_written_of_the_transforms_is_tried_as_it_is() -> None:
    base = build_config({"modality": "hyperspectral", "transforms": {"shift_prob": 0.9}})
    assert vary(base, {"bands": "rgb"}, "a trial").transforms.shift_prob == 0.9
    assert vary(base, {"lr": 0.5}, "a trial") == build_config({**base.to_mapping(), "lr": 0.5})
    searched = vary(base, {"bands": "rgb", "transforms": {"cj_prob": 0.3}}, "a trial")
    assert "cj_prob" in searched.transforms.model_fields_set
    assert "shift_prob" in searched.transforms.model_fields_set
    assert "gain_prob" not in searched.to_unsettled_mapping()["transforms"]
    with pytest.raises(UserError, match="a trial: lr: 0 is not valid"):
        vary(base, {"lr": 0}, "a trial")
