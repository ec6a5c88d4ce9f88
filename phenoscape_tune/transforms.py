"""The augmentation's keys: their ranges, their defaults for each kind of image, and what scales them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

SMALLEST_CROP = 0.02  # of the image's area, to which augmentation_strength may take min_scale


def advised(low: float, high: float) -> dict[str, Any]:
    """The guide's range, as a field's extra: outside it a warning, not an error."""
    return {"advice": [low, high]}


def _blur_range(sigmas: tuple[float, float]) -> tuple[float, float]:
    if sigmas[0] > sigmas[1]:
        raise ValueError("the bounds are reversed; write the smaller sigma first")
    return sigmas


class Keys(BaseModel):
    """A group of configuration keys: unknown ones, infinite numbers and truth values for numbers are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML's `yes` would silently become the number 1.
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("true, false, yes and no are no value of this key")
        return value


Probability = Annotated[float, Field(ge=0, le=1)]


class TransformsConfig(Keys):
    """The random augmentation that makes two views of an image (SimCLR, arXiv 2002.05709, appendix A).

    Defaults are those of RGB images; `defaults_of` tells those of the other kinds.
    """

    input_size: int | None = Field(
        default=None, ge=8, le=4096, description="Same as the top-level input_size; either place."
    )
    cj_prob: Probability = Field(default=0.8, description="Probability of colour jitter, of red, green and blue.")
    cj_strength: float = Field(
        default=0.5,
        ge=0,
        le=2.5,
        json_schema_extra=advised(0, 1),
        description="Strength of colour jitter: (0.8, 0.8, 0.8, 0.2) times this for brightness, contrast, saturation, "
        "hue.",
    )
    min_scale: float = Field(
        default=0.08, gt=0, le=1, description="Smallest share of the image's area that a crop may have."
    )
    random_gray_scale: Probability = Field(
        default=0.2, description="Probability of turning a view's red, green and blue grey."
    )
    gaussian_blur: Probability = Field(default=0.5, description="Probability of Gaussian blur.")
    kernel_size: float = Field(
        default=0.1, gt=0, le=1, description="Width of the blur kernel as a share of input_size."
    )
    sigmas: Annotated[
        tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_blur_range)
    ] = Field(default=(0.1, 2.0), description="Range of the blur's standard deviation, in pixels.")
    hf_prob: Probability = Field(default=0.5, description="Probability of a horizontal flip.")
    gain_prob: Probability = Field(default=0.0, description="Probability of a gain of each channel.")
    gain_strength: float = Field(
        default=0.1, ge=0, le=1, description="Each channel is multiplied by a factor from 1 - this to 1 + this."
    )
    offset_prob: Probability = Field(default=0.0, description="Probability of an offset of each channel.")
    offset_strength: float = Field(
        default=0.02, ge=0, le=1, description="Each channel is raised or lowered by up to this share of the full range."
    )
    gamma_prob: Probability = Field(
        default=0.0, description="Probability of a gamma curve on the ultraviolet channels."
    )
    gamma_strength: float = Field(
        default=0.2, ge=0, le=3, description="Largest |u| of the curve x^exp(u), the same for all ultraviolet channels."
    )
    shift_prob: Probability = Field(default=0.0, description="Probability of a shift along the spectrum.")
    shift_strength: float = Field(
        default=1.0, ge=0, le=512, json_schema_extra={"unit": "bands"}, description="Largest shift, up or down."
    )
    band_dropout_prob: Probability = Field(default=0.0, description="Probability that bands are dropped.")
    band_dropout_strength: Probability = Field(
        default=0.1, description="Share of the bands that are dropped: at least one, and never all."
    )
    noise_prob: Probability = Field(default=0.0, description="Probability of sensor noise.")
    noise_strength: float = Field(
        default=0.01, ge=0, le=1, description="Largest standard deviation of the noise, as a share of the full range."
    )
    augmentation_strength: float = Field(
        default=1.0, ge=0, le=2, description="Scales the whole family: 0 leaves only flips, 1 all as it is written."
    )


# Graded steps: how far they go is scaled. Bounds are the keys' own.
_GRADED = ("cj_strength", "gain_strength", "offset_strength", "gamma_strength", "shift_strength", "noise_strength")
# All-or-nothing steps: how often they happen is scaled.
_ALL_OR_NOTHING = ("random_gray_scale", "gaussian_blur", "band_dropout_prob")


def scaled(transforms: TransformsConfig) -> TransformsConfig:
    """The transforms that `augmentation_strength` s makes of the written ones; its own s is 1. With s = 1: the same.

    | keys | become |
    | --- | --- |
    | cj_strength, gain_, offset_, gamma_, shift_, noise_strength | s times as much, at most what the key may be |
    | random_gray_scale, gaussian_blur, band_dropout_prob | s times as often, at most always |
    | min_scale | 1 - (1 - min_scale)·s, at least 0.02 (or min_scale, where that is smaller) |
    | sigmas [low, high] | [low, low + (high - low)·s] |

    What is left: the probabilities of the graded steps, flips, and the shape of blur's kernel. With s = 0 a view is
    the whole image, perhaps flipped: a square image has no other crop of its whole area.
    """
    s = transforms.augmentation_strength
    if s == 1:
        return transforms
    changed: dict[str, Any] = {"augmentation_strength": 1.0}
    for key in (*_GRADED, *_ALL_OR_NOTHING):
        changed[key] = min(s * getattr(transforms, key), _highest(key))
    smallest = min(SMALLEST_CROP, transforms.min_scale)
    changed["min_scale"] = min(1.0, max(smallest, 1 - (1 - transforms.min_scale) * s))
    low, high = transforms.sigmas
    changed["sigmas"] = (low, low + (high - low) * s)
    return transforms.model_copy(update=changed)


def _highest(key: str) -> float:
    """The largest value that a key may have."""
    bounds = [item.le for item in TransformsConfig.model_fields[key].metadata if hasattr(item, "le")]
    return float(bounds[0])


# What light and sensor do to every channel by itself, unlike a colour jitter that mixes them: moderate values, within
# which a specimen's spectrum stays its own. The lamp's and the white reference's drift, up to a tenth; stray light and
# dark current, up to two hundredths; noise of up to a hundredth, as of an 8-bit sensor's last two levels.
_OF_SPECTRA = {"gain_prob": 0.8, "offset_prob": 0.5, "noise_prob": 0.5}
# Ultraviolet sensors and filters are the least linear.
_OF_ULTRAVIOLET = {"gamma_prob": 0.5}
# A spectrometer's calibration is good to about a band, and what a lost band held its neighbours tell.
_OF_BANDS = {"shift_prob": 0.5, "band_dropout_prob": 0.2}
_WITHOUT_COLOUR = {"cj_prob": 0.0, "random_gray_scale": 0.0}


# The keys whose defaults differ between kinds of images.
KINDRED = frozenset(_OF_SPECTRA | _OF_ULTRAVIOLET | _OF_BANDS | _WITHOUT_COLOUR)


def defaults_of(modality: str, rgb: bool, uv: bool, ordered: bool) -> dict[str, float]:
    """The keys of `TransformsConfig` whose defaults differ for a kind of image.

    Args:
        modality: rgb, multispectral, hyperspectral; auto: as rgb.
        rgb: whether there are red, green and blue, for colour jitter and greyscale.
        uv: whether there are ultraviolet channels.
        ordered: whether the channels are the bands of a spectrum, at least 3.
    """
    if modality not in ("multispectral", "hyperspectral"):
        return {}
    return {
        **_OF_SPECTRA,
        **({} if rgb else _WITHOUT_COLOUR),
        **(_OF_ULTRAVIOLET if uv else {}),
        **(_OF_BANDS if ordered else {}),
    }


def filled(transforms: TransformsConfig, values: Mapping[str, Any]) -> TransformsConfig:
    """A copy with some values, which count as defaults: `model_fields_set` stays as it was."""
    copied = transforms.model_copy()
    for key, value in values.items():
        object.__setattr__(copied, key, value)
    return copied


def with_defaults(transforms: TransformsConfig, modality: str, rgb: bool, uv: bool, ordered: bool) -> TransformsConfig:
    """A copy with `defaults_of` a kind of image for the keys that were not written."""
    defaults = defaults_of(modality, rgb, uv, ordered)
    return filled(transforms, {key: value for key, value in defaults.items() if key not in transforms.model_fields_set})
