"""What of a configuration follows from its images' channels: told anew where they are known, or others are chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from phenoscape_tune.channel_keys import chosen_channels
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.layers import merge
from phenoscape_tune.transforms import KINDRED, TransformsConfig, filled, with_defaults


def with_modality(
    config: TrainConfig, modality: str, *, rgb: bool | None = None, uv: bool | None = None, ordered: bool | None = None
) -> TrainConfig:
    """The configuration, once it is known what kind of images the files hold.

    Transforms that were not written get the defaults of that kind (`transforms.defaults_of`), and `modality` is no
    longer auto. A modality that was written stays, and so does every transform that was written.

    Args:
        modality: rgb, multispectral or hyperspectral; auto, where it is still unknown: nothing changes.
        rgb, uv, ordered: whether the channels that are read hold red, green and blue, hold ultraviolet, and are bands
            of a spectrum; None: what the configuration tells.

    Raises UserError where keys of the configuration do not go with the modality.
    """
    if modality == "auto":
        return config
    known = config if config.modality != "auto" else build_config({**config.given(), "modality": modality}, "modality")
    told = chosen_channels(known.modality, known.channels, known.channel_names, known.bands)
    seen = [guess if fact is None else fact for guess, fact in zip(told, (rgb, uv, ordered), strict=True)]
    blank = filled(known.transforms, {key: TransformsConfig.model_fields[key].default for key in _unset(known)})
    return _with_transforms(known, with_defaults(blank, known.modality, *seen))


def like_earlier(config: TrainConfig, earlier: TrainConfig) -> TrainConfig:
    """The configuration with an earlier one's values where its own follow from the images and were not written."""
    unwritten = config.unwritten_transforms()
    return _with_transforms(
        config, filled(config.transforms, {key: getattr(earlier.transforms, key) for key in unwritten})
    )


def forget_written(config: TrainConfig, transforms: Iterable[str]) -> TrainConfig:
    """The configuration with some transforms that count as not written, as they were before it was saved whole."""
    forgotten = filled(config.transforms, {})
    forgotten.model_fields_set.difference_update(set(transforms) & KINDRED)
    return _with_transforms(config, forgotten)


def vary(base: TrainConfig, values: Mapping[str, Any], source: str) -> TrainConfig:
    """A configuration with some other values (nested), as a search tries them.

    Where they choose other channels, the transforms that follow from the channels, and were not written, are told anew:
    what acts on the ultraviolet has no meaning for red, green and blue.

    Raises UserError as `build_config`.
    """
    mapping = base.to_unsettled_mapping() if {"channels", "bands"} & set(values) else base.to_mapping()
    varied = build_config(merge(mapping, values), source)
    return forget_written(varied, set(base.unwritten_transforms()) - set(values.get("transforms") or {}))


def _with_transforms(config: TrainConfig, transforms: TransformsConfig) -> TrainConfig:
    """A copy with other transforms, which count as written only where they did before."""
    copied = config.model_copy()
    object.__setattr__(copied, "transforms", transforms)
    return copied


def _unset(config: TrainConfig) -> set[str]:
    """Transforms that were not written."""
    return set(TransformsConfig.model_fields) - config.transforms.model_fields_set - {"input_size"}
