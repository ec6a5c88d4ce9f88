"""Whether the augmentations that a space searches do something to the images."""

from __future__ import annotations

from phenoscape_tune.augment_checks import meaningless
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.search.space import SearchSpace

PREFIX = "transforms."
# How a step is graded, and by which probability it happens.
_HAPPENS = {
    "cj_strength": "cj_prob",
    "kernel_size": "gaussian_blur",
    **{f"{step}_strength": f"{step}_prob" for step in ("gain", "offset", "gamma", "shift", "noise", "band_dropout")},
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
        happens = step_of(PREFIX + key)
        if happens in reasons:
            faults.append(f"{key}: {reasons[happens]}; leave it out of the space")
        elif happens not in searched and happens != key and getattr(base.transforms, happens) == 0:
            faults.append(
                f"{key}: changes nothing while {PREFIX}{happens} is 0; set that, for example {PREFIX}{happens}=0.5, "
                f"or leave {key} out of the space"
            )
        elif still and key not in _UNSCALED:
            faults.append(f"{key}: changes nothing while {PREFIX}augmentation_strength is 0; set that to 1")
    if faults:
        raise UserError("\n".join(f"parameters.{PREFIX}{fault}" for fault in faults))


def step_of(key: str) -> str:
    """The key, below transforms, of the probability by which a searched key's step happens; "" for other keys."""
    if not key.startswith(PREFIX):
        return ""
    own = key.removeprefix(PREFIX)
    return _HAPPENS.get(own, own)
