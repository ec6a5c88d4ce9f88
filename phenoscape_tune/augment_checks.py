"""Which of the augmentation's steps have a meaning for the channels of the images."""

from __future__ import annotations

from phenoscape_tune.channel_keys import FEWEST_BANDS
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.transforms import TransformsConfig


def check_transforms(transforms: TransformsConfig, channels: Channels) -> None:
    """Raise UserError, naming all faults at once, where a step is switched on that the channels have no meaning for."""
    if faults := transform_faults(transforms, channels):
        raise UserError("\n".join(faults))


def transform_faults(transforms: TransformsConfig, channels: Channels) -> list[str]:
    """A line for each step that is switched on and that the channels have no meaning for: key, value, why, remedy."""
    return [
        f"transforms.{key}: {getattr(transforms, key):g}: {reason}; set transforms.{key}=0"
        for key, reason in meaningless(channels).items()
        if getattr(transforms, key) > 0
    ]


def meaningless(channels: Channels) -> dict[str, str]:
    """The steps that the channels have no meaning for, by the key of their probability, with the reason."""
    told = f"the images have {_told(channels)}"
    reasons = {}
    if channels.rgb is None:
        reasons["cj_prob"] = f"colour jitter acts on red, green and blue, and {told}"
        reasons["random_gray_scale"] = f"greyscale acts on red, green and blue, and {told}"
    if not channels.uv:
        reasons["gamma_prob"] = f"the gamma curve acts on ultraviolet channels, and {told}"
    if channels.wavelengths is None:
        reasons["shift_prob"] = f"a shift needs the bands of a spectrum, and {told}, of unknown wavelengths"
    elif len(channels) < FEWEST_BANDS:
        reasons["shift_prob"] = f"a shift needs {FEWEST_BANDS} bands or more, and {told}"
    if len(channels) < 2:
        reasons["band_dropout_prob"] = f"of one channel none can be dropped, and {told}"
    return reasons


def _told(channels: Channels) -> str:
    kind = "channel" if channels.wavelengths is None else "band"
    number = f"{len(channels)} {kind}{'s' * (len(channels) != 1)}"
    names = ", ".join(channels.names) if len(channels) <= 8 else f"{channels.names[0]} to {channels.names[-1]}"
    return f"{number} ({names})"
