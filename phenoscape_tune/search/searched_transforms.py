"""Whether the augmentations that a space searches do something to the images."""

from __future__ import annotations

from phenoscape_tune.augment_checks import meaningless
from phenoscape_tune.config import TrainConfig, vary
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace
from phenoscape_tune.transforms import chosen_channels

PREFIX = "transforms."
# How a step is graded, and by which probability it happens.
_HAPPENS = {
    "cj_strength": "cj_prob",
    "kernel_size": "gaussian_blur",
    **{f"{step}_strength": f"{step}_prob" for step in ("gain", "offset", "gamma", "shift", "noise", "band_dropout")},
}
# Steps that not all channels have, with what they need.
_NEEDS = {
    **dict.fromkeys(("cj_prob", "random_gray_scale"), (0, "red, green and blue")),
    "gamma_prob": (1, "ultraviolet channels"),
    "shift_prob": (2, "the bands of a spectrum"),
}
# What is left where augmentation_strength is 0.
_UNSCALED = {"input_size", "hf_prob"}


def check_searched(space: SearchSpace, base: TrainConfig, channels: Channels | None) -> None:
    """Raise UserError, naming all faults at once, where a searched key of the augmentation would change nothing.

    Args:
        space: what is searched.
        base: the search's configuration, fitted to its images where these are known.
        channels: of the images; None: not known.
    """
    searched = {key.removeprefix(PREFIX) for key in space.parameters if key.startswith(PREFIX)}
    reasons = {} if channels is None else meaningless(channels)
    still = "augmentation_strength" not in searched and base.transforms.augmentation_strength == 0
    faults = []
    for key in sorted(searched):
        happens = _HAPPENS.get(key, key)
        if happens in reasons:
            faults.append(f"{key}: {reasons[happens]}; leave it out of the space")
        elif happens not in searched and happens != key and getattr(base.transforms, happens) == 0:
            faults.append(
                f"{key}: changes nothing while {PREFIX}{happens} is 0; set that, for example {PREFIX}{happens}=0.5, "
                f"or leave {key} out of the space"
            )
        elif still and key not in _UNSCALED:
            faults.append(f"{key}: changes nothing while {PREFIX}augmentation_strength is 0; set that to 1")
    faults += _chooser_faults(space, base, searched)
    if faults:
        raise UserError("\n".join(f"parameters.{PREFIX}{fault}" for fault in faults))


def _chooser_faults(space: SearchSpace, base: TrainConfig, searched: set[str]) -> list[str]:
    """Steps that some of the searched channels or bands have no meaning for, as far as their names tell."""
    faults = []
    for chooser in ("channels", "bands"):
        parameter = space.parameters.get(chooser)
        for value in parameter.values or [] if parameter is not None else []:
            tried = vary(base, {chooser: value}, chooser)
            told = chosen_channels(tried.modality, tried.channels, tried.channel_names, tried.bands)
            for key, (place, needed) in _NEEDS.items():
                if not told[place] and (key in searched or getattr(tried.transforms, key) > 0):
                    where = "is searched" if key in searched else f"is {getattr(tried.transforms, key):g}"
                    faults.append(
                        f"{key}: {where}, and needs {needed}, which {chooser}: {value} has not; set {PREFIX}{key}=0 or "
                        f"leave {value} out of parameters.{chooser}"
                    )
    return faults
