"""The training configuration: the training guide's keys with their types, ranges, defaults and meanings.

Every default stands here, those of the augmentation in `transforms.py`, and nowhere else. Configurations are layered:
defaults, then a file, then `key=value`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from phenoscape_tune.errors import UserError
from phenoscape_tune.files import write_whole
from phenoscape_tune.storage import check_url, is_url
from phenoscape_tune.transforms import KINDRED, Keys, TransformsConfig, advised, chosen_channels, defaults_of
from phenoscape_tune.yaml_file import dump_mapping, load_mapping, parse_scalar

CHANNEL_SETS = ("rgb_only", "uv_only", "full")
VALUE_SCALINGS = ("auto", "bit_depth", "percentile")


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise ValueError("write a colour such as grey, white or '#808080'") from None
    return text


_BANDS = re.compile(
    r"all|rgb|(every|uniform):[1-9]\d*|range:\d+-\d+|range:\d+(\.\d+)?-\d+(\.\d+)?nm",
)
_WAVELENGTH = re.compile(r"\d+(\.\d+)?nm")


def _bands(bands: str | list[int | str]) -> str | list[int | str]:
    if isinstance(bands, list):
        if not bands:
            raise ValueError("the list is empty; write indices (from 0) or wavelengths such as 550nm")
        for band in bands:
            if isinstance(band, int) and band < 0:
                raise ValueError(f"{band} is below 0; indices count from 0")
            if isinstance(band, str) and not _WAVELENGTH.fullmatch(band):
                raise ValueError(f"{band!r} is no band; write an index (from 0) or a wavelength such as 550nm")
        _refuse_twice(bands)
        return bands
    text = "".join(bands.split())
    if not _BANDS.fullmatch(text):
        raise ValueError(
            "write all, every:4, uniform:32, range:400-700nm, range:10-90, rgb, or a list such as [0, 5, 9]"
        )
    if text.startswith("range:"):
        low, high = (float(bound) for bound in text.removeprefix("range:").removesuffix("nm").split("-"))
        if low > high:
            raise ValueError("the bounds are reversed; write the smaller one first")
    return text


def _channels(channels: str | list[int | str]) -> str | list[int | str]:
    if isinstance(channels, str):
        if channels not in CHANNEL_SETS:
            raise ValueError(f"write {', '.join(CHANNEL_SETS)}, or a list such as [0, 1, 2] or [red, uv1]")
        return channels
    if not channels:
        raise ValueError("the list is empty; write indices (from 0) or names")
    if any(isinstance(channel, int) and channel < 0 for channel in channels):
        raise ValueError("an index is below 0; indices count from 0")
    _refuse_twice(channels)
    return channels


def _channel_names(names: list[str]) -> list[str]:
    _refuse_twice(names)
    return names


def _refuse_twice(values: Sequence[int | str]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} stands twice; write each once")


def _no_booleans(values: Any) -> Any:
    # Otherwise taken for 1 and 0.
    if isinstance(values, list | tuple) and any(isinstance(value, bool) for value in values):
        raise ValueError("true and false are no indices; write numbers from 0, or names")
    return values


def _value_scaling(scaling: Any) -> Any:
    if isinstance(scaling, str) and scaling in VALUE_SCALINGS:
        return scaling
    if not isinstance(scaling, list | tuple) or len(scaling) != 2 or not all(map(_is_finite, scaling)):
        raise ValueError(f"write {', '.join(VALUE_SCALINGS)}, or a range in the files' own units such as [0, 10000]")
    if scaling[0] >= scaling[1]:
        raise ValueError("the bounds are reversed; write the smaller one first")
    return scaling


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _local(path: str) -> str:
    if is_url(path):
        raise ValueError(
            "is remote, while logs are appended to and files are locked here; write a local folder, and storage=URL "
            "for a copy of it there"
        )
    return path


class EarlyStoppingConfig(Keys):
    """Stop a single run whose monitored value no longer improves."""

    monitor: str = Field("val_loss", description="The reported value to watch.")
    patience: int = Field(10, ge=1, description="Epochs without improvement before the run stops.")
    min_delta: float = Field(0.001, ge=0, description="The least change that counts as improvement.")


class TrainConfig(Keys):
    """One SimCLR training run."""

    # Data
    data_dir: str | None = Field(None, description="Folder of images, searched recursively.")
    out_dir: Annotated[str, AfterValidator(_local)] = Field(
        "outputs/train", description="Folder for checkpoints, logs and the resolved configuration."
    )
    labels: str | None = Field(
        None, description="CSV (filename,label[,group]) instead of class sub-folders; used for the objective only."
    )
    group_by: str | None = Field(
        None, description="Regular expression on the file name; images with the same match stay in one part."
    )
    val_fraction: float = Field(0.15, gt=0, lt=1, description="Share of the specimens for validation.")
    test_fraction: float = Field(0.15, ge=0, lt=1, description="Share of the specimens for the one final test.")
    split_seed: int = Field(42, ge=0, le=2**31, description="Seed of the split into parts; the same for every trial.")
    resize: Literal["pad", "crop", "squash"] = Field(
        "pad", description="How an image becomes square: pad keeps all of the organism and its proportions."
    )
    background: Annotated[str, AfterValidator(_colour)] = Field(
        "grey", description="Colour behind transparent images and of padding."
    )
    max_unreadable: float = Field(
        0.05, ge=0, le=1, description="Largest share of unreadable image files that is left out without refusing."
    )
    cache_dir: str | None = Field(
        None, description="Folder for packed images; null: $PHENOSCAPE_CACHE or the user's cache folder."
    )
    storage: Annotated[str, AfterValidator(check_url)] | None = Field(
        None,
        description="URL of a folder, such as s3://bucket/birds, to which checkpoints, logs and results are copied; "
        "null: none.",
    )
    pack: bool = Field(
        True,
        description="Decode all images once into a memory-mapped file; false, or where the disk has no room for it: "
        "decode them anew in each epoch.",
    )
    balance: bool = Field(
        False, description="Sample classes evenly in training; needs labels, and no batch holds an image twice."
    )
    modality: Literal["auto", "rgb", "multispectral", "hyperspectral"] = Field(
        "auto", description="Kind of images; auto: told from the files, and said."
    )
    channels: Annotated[str | list[int | str], BeforeValidator(_no_booleans), AfterValidator(_channels)] | None = Field(
        None,
        description="Channels of multispectral images: rgb_only, uv_only, full, or a list of indices (from 0) or "
        "names; null: full, which is all but the mask.",
    )
    channel_names: Annotated[list[str], AfterValidator(_channel_names)] | None = Field(
        None,
        description="Names of all channels of a multispectral file; red, green, blue, mask and what begins with uv are "
        "known. null: the file's own, or by their number (7: red, green, blue, uv1, uv2, uv3, mask).",
    )
    bands: Annotated[str | list[int | str], BeforeValidator(_no_booleans), AfterValidator(_bands)] = Field(
        "all",
        description="Bands of hyperspectral images: all, every:4, uniform:32 (evenly spaced), range:400-700nm, "
        "range:10-90 (indices), rgb (nearest to 650, 550, 450 nm), or a list of indices (from 0) or "
        "wavelengths (550nm).",
    )
    value_scaling: Annotated[
        Literal["auto", "bit_depth", "percentile"] | tuple[float, float], BeforeValidator(_value_scaling)
    ] = Field(
        "auto",
        description="What becomes 0 and 1 in multispectral and hyperspectral images: bit_depth: 0 and the largest "
        "value of the type (float: 1); percentile: the 0.5 and 99.5 percentile over the training part; a range such as "
        "[0, 10000]; auto: bit_depth where values reach a quarter of it, else percentile.",
    )
    use_segmentation_mask: bool = Field(False, description="Put `background` where the mask channel is 0.")
    crop_to_mask: bool = Field(
        False, description="Cut each image to the specimen that its mask shows; needs use_segmentation_mask."
    )

    # Model
    backbone: str = Field("resnet50", min_length=1, description="Encoder: any model name of timm.")
    weights: str | None = Field(
        None, description="DEFAULT: pretrained weights from timm; null: random; else a file of weights."
    )
    input_size: int = Field(
        224, ge=8, le=4096, json_schema_extra={"unit": "px"}, description="Side of the square input of the encoder."
    )
    stem: Literal["auto", "standard", "small"] = Field(
        "auto", description="small: 3x3 first convolution without max-pool; auto: small for inputs up to 64 px."
    )
    spectral_stem: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Width k of a learned 1x1 convolution to k channels, if there are more, before the backbone.",
    )
    projection_dim: int = Field(128, ge=2, le=8192, description="Width of the projection that the loss sees.")

    # Optimisation
    lr: float = Field(0.001, gt=0, json_schema_extra=advised(1e-5, 1e-1), description="Peak learning rate.")
    batch_size: int = Field(32, ge=2, json_schema_extra=advised(8, 512), description="Images per device and step.")
    max_epochs: int = Field(
        100, ge=1, json_schema_extra={**advised(50, 500), "unit": "epochs"}, description="Length of training."
    )
    temperature: float = Field(
        0.1, gt=0, json_schema_extra=advised(0.05, 0.5), description="Temperature of the NT-Xent loss."
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(
        "adamw", description="Optimiser (measured: docs/experiments.md)."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd and lars.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay; not applied to biases and normalisation.")
    lr_scheduler: Literal["cosine"] = Field("cosine", description="Shape of the learning-rate schedule.")
    warmup_epochs: float | None = Field(
        None,
        ge=0,
        json_schema_extra={"unit": "epochs"},
        description="Linear warm-up; null: a tenth of max_epochs (or T_max), at most 10.",
    )
    T_max: int | None = Field(
        None, ge=1, json_schema_extra={"unit": "epochs"}, description="Period of the cosine; null: max_epochs."
    )
    eta_min: float | None = Field(None, ge=0, description="Floor of the learning rate; null: min(1e-4, lr / 10).")
    gradient_clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; null: no clipping.")
    accumulate_grad_batches: int = Field(1, ge=1, description="Batches that the contrastive loss sees as one.")
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="Images of a batch that go through the network at once; the loss sees them all. auto: the whole "
        "batch, halved where memory runs out.",
    )
    early_stopping: EarlyStoppingConfig | None = Field(None, description="Stop when a value no longer improves.")
    transforms: TransformsConfig = Field(default_factory=TransformsConfig, description="Augmentation.")

    # Hardware
    seed: int = Field(42, ge=0, le=2**31, description="Seed of the weights, the order of images and the augmentation.")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto: a GPU where there is one.")
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(1, description="Devices of one run.")
    strategy: Literal["auto", "ddp"] = Field("auto", description="How several devices work together.")
    precision: Literal["auto", "bf16", 16, 32] = Field(
        "auto", description="auto: bf16 where the device profits, else 32."
    )
    sync_batchnorm: bool = Field(False, description="Batch statistics over all devices.")
    deterministic: bool = Field(False, description="Same result to the bit on the same machine; may be slower.")
    compile: bool = Field(False, description="Use torch.compile.")
    gradient_checkpointing: bool = Field(False, description="Trade speed for memory.")
    num_workers: int = Field(
        4, ge=0, description="Threads that decode images: while packing, or in each epoch where they are not packed."
    )
    pin_memory: bool = Field(True, description="Copy batches to a GPU from page-locked memory.")
    persistent_workers: bool = Field(
        True, description="Keep the threads that decode images from epoch to epoch; of no account for packed images."
    )

    # Logging
    log_every_n_steps: int = Field(
        50, ge=1, json_schema_extra={"unit": "steps"}, description="Steps between log lines."
    )

    @model_validator(mode="after")
    def _one_input_size(self) -> TrainConfig:
        inner, outer = self.transforms.input_size, self.input_size
        if inner is not None and "input_size" in self.model_fields_set and inner != outer:
            raise ValueError(f"input_size: {outer} and transforms.input_size: {inner} differ; write one of them")
        size = outer if inner is None else inner
        object.__setattr__(self, "transforms", _filled(self.transforms, {"input_size": size}))
        object.__setattr__(self, "input_size", size)
        return self

    @model_validator(mode="after")
    def _transforms_of_the_modality(self) -> TrainConfig:
        told = chosen_channels(self.modality, self.channels, self.channel_names, self.bands)
        return _with_defaults(self, *told)

    @model_validator(mode="after")
    def _parts_leave_training(self) -> TrainConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction: {self.val_fraction} and test_fraction: {self.test_fraction} leave nothing to train on"
            )
        return self

    @model_validator(mode="after")
    def _warmup_leaves_a_cosine(self) -> TrainConfig:
        if self.warmup_epochs is not None and self.warmup_epochs >= self.schedule_epochs:
            period = "max_epochs" if self.T_max is None else "T_max"
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} must be below {period}: {self.schedule_epochs}")
        return self

    @model_validator(mode="after")
    def _keys_of_the_modality(self) -> TrainConfig:
        if self.crop_to_mask and not self.use_segmentation_mask:
            raise ValueError("crop_to_mask: true needs use_segmentation_mask: true; write both, or neither")
        if self.modality in ("rgb", "hyperspectral") and (self.channels or self.channel_names) is not None:
            key = "channels" if self.channels is not None else "channel_names"
            other = "bands chooses those of hyperspectral images" if self.modality != "rgb" else "remove it"
            raise ValueError(f"{key}: is for multispectral images, and modality is {self.modality}; {other}")
        if self.modality in ("rgb", "multispectral") and self.bands != "all":
            other = "channels chooses those of multispectral images" if self.modality != "rgb" else "remove it"
            raise ValueError(f"bands: is for hyperspectral images, and modality is {self.modality}; {other}")
        if self.modality == "rgb" and self.use_segmentation_mask:
            raise ValueError(
                "use_segmentation_mask: is for multispectral and hyperspectral images; in RGB pictures transparency "
                "is the mask, and is always put on `background`"
            )
        return self

    @property
    def step_images(self) -> int:
        """Images of one device that a training step sees at once: batch_size times accumulate_grad_batches."""
        return self.batch_size * self.accumulate_grad_batches

    @property
    def schedule_epochs(self) -> int:
        """Period of the cosine, in epochs."""
        return self.max_epochs if self.T_max is None else self.T_max

    @property
    def resolved_warmup_epochs(self) -> float:
        """Length of the linear warm-up, in epochs; at most the run's."""
        auto = min(10.0, self.max_epochs / 10, self.schedule_epochs / 10)
        return auto if self.warmup_epochs is None else self.warmup_epochs

    @property
    def resolved_eta_min(self) -> float:
        """Floor of the learning rate; a tenth of lr where the configured floor is not below lr."""
        floor = min(1e-4, self.lr / 10) if self.eta_min is None else self.eta_min
        return floor if floor < self.lr else self.lr / 10

    def to_mapping(self) -> dict[str, Any]:
        """Plain values (for YAML, checkpoints, other processes) that `build_config` reads back to an equal one."""
        return self.model_dump(mode="json")

    def unwritten_transforms(self) -> list[str]:
        """The transforms whose defaults follow from the images' channels, and that were not written."""
        return sorted(KINDRED - self.transforms.model_fields_set)

    def to_unsettled_mapping(self) -> dict[str, Any]:
        """As `to_mapping`, without what follows from the images' channels and was not written."""
        mapping = self.to_mapping()
        if self.modality != "rgb":
            for key in self.unwritten_transforms():
                del mapping["transforms"][key]
        return mapping

    def given(self) -> dict[str, Any]:
        """Plain values of the keys that were written, without defaults; `build_config` makes an equal one of them."""
        return self.model_dump(mode="json", exclude_unset=True)


def _filled(transforms: TransformsConfig, values: Mapping[str, Any]) -> TransformsConfig:
    """A copy with some values, which count as defaults: `model_fields_set` stays as it was."""
    filled = transforms.model_copy()
    for key, value in values.items():
        object.__setattr__(filled, key, value)
    return filled


def _with_transforms(config: TrainConfig, transforms: TransformsConfig) -> TrainConfig:
    """A copy with other transforms, which count as written only where they did before."""
    copied = config.model_copy()
    object.__setattr__(copied, "transforms", transforms)
    return copied


def _with_defaults(config: TrainConfig, rgb: bool, uv: bool, ordered: bool) -> TrainConfig:
    """Put the defaults of the configuration's modality into the transforms that were not written."""
    defaults = defaults_of(config.modality, rgb, uv, ordered)
    unset = {key: value for key, value in defaults.items() if key not in config.transforms.model_fields_set}
    object.__setattr__(config, "transforms", _filled(config.transforms, unset))
    return config


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
    blank = _filled(known.transforms, {key: TransformsConfig.model_fields[key].default for key in _unset(known)})
    return _with_defaults(_with_transforms(known, blank), *seen)


def like_earlier(config: TrainConfig, earlier: TrainConfig) -> TrainConfig:
    """The configuration with an earlier one's values where its own follow from the images and were not written."""
    unwritten = config.unwritten_transforms()
    return _with_transforms(
        config, _filled(config.transforms, {key: getattr(earlier.transforms, key) for key in unwritten})
    )


def forget_written(config: TrainConfig, transforms: Iterable[str]) -> TrainConfig:
    """The configuration with some transforms that count as not written, as they were before it was saved whole."""
    forgotten = _filled(config.transforms, {})
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


def _unset(config: TrainConfig) -> set[str]:
    """Transforms that were not written."""
    return set(TransformsConfig.model_fields) - config.transforms.model_fields_set - {"input_size"}


def known_keys() -> dict[str, Any]:
    """Every configuration key, dotted where nested, with its pydantic FieldInfo."""
    keys: dict[str, Any] = {}
    nested_groups: dict[str, type[BaseModel]] = {"transforms": TransformsConfig, "early_stopping": EarlyStoppingConfig}
    for name, field in TrainConfig.model_fields.items():
        keys[name] = field
        inner = nested_groups.get(name)
        if inner is not None:
            keys.update({f"{name}.{key}": nested for key, nested in inner.model_fields.items()})
    return keys


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to a misspelt one, or lists the known ones."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'?" if match else f"known: {', '.join(known)}"


def get_key(mapping: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; KeyError where there is none."""
    for part in key.split("."):
        mapping = mapping[part]
    return mapping


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def set_key(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, making mappings on the way."""
    *path, last = key.split(".")
    for part in path:
        if not isinstance(mapping.get(part), dict):
            mapping[part] = {}
        mapping = mapping[part]
    mapping[last] = value


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with the upper one's values winning key by key."""
    merged = dict(lower)
    # input_size has two spellings: the upper layer's takes the place of both.
    if "input_size" in upper or "input_size" in (upper.get("transforms") or {}):
        merged.pop("input_size", None)
        if isinstance(merged.get("transforms"), Mapping):
            merged["transforms"] = {k: v for k, v in merged["transforms"].items() if k != "input_size"}
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`key=value` arguments as a nested mapping. Raises UserError for an argument that has no `=`."""
    mapping: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{argument}' is neither an option nor key=value; for example: lr=0.001")
        set_key(mapping, key.strip(), value if _is_text(key.strip(), value) else parse_scalar(value))
    return mapping


def _is_text(key: str, value: str) -> bool:
    """Whether a value is taken as it stands: `background=#808080` is no comment, `data_dir=2024` no number."""
    field = known_keys().get(key)
    return field is not None and field.annotation in (str, str | None) and value.strip() not in ("", "null", "~")


def build_config(values: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """Validate a nested mapping of configuration keys.

    Raises UserError that lists all faults at once, each with key, value and what to write instead; `source` names the
    file or the command line.
    """
    config, faults = _validate(values)
    if config is None:
        raise UserError("\n".join(f"{source}: {text}" for _, text in faults))
    return config


def _validate(values: Mapping[str, Any]) -> tuple[TrainConfig | None, list[tuple[str, str]]]:
    """The configuration, or None and all faults as (key, text)."""
    try:
        return TrainConfig.model_validate(dict(values)), []
    except ValidationError as error:
        known = known_keys()
        faults = {
            describe_fault(fault, known): str(fault["loc"][0]) if fault["loc"] else "" for fault in error.errors()
        }
    # pydantic judges keys against each other only where each is right by itself: do so for those that are.
    sound = {key: value for key, value in values.items() if key not in faults.values()}
    if len(sound) < len(values):
        faults |= {text: key for key, text in _validate(sound)[1]}
    return None, [(key, text) for text, key in faults.items()]


def describe_fault(fault: ErrorDetails, known: Mapping[str, Any]) -> str:
    """One validation fault as `key: value: what is wrong; what to write instead`."""
    # pydantic appends the branch of a union that it tried; the key is the part that the schema knows.
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    while location and key not in known and fault["type"] != "extra_forbidden":
        location.pop()
        key = ".".join(location)
    value = fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; {nearest(key, known)}"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and not key:
        return message
    if fault["type"] == "missing":
        return f"{key}: is missing"
    message = message[0].lower() + message[1:]
    if key == "storage":  # there may be a password in it
        return f"storage: {message}"
    return f"{key}: {value!r} is not valid: {message}{_remedy(known.get(key))}"


def _remedy(field: Any) -> str:
    if field is None or field.default is None or not isinstance(field.default, int | float | str):
        return ""
    extra = field.json_schema_extra or {}
    bounds = f", usually {extra['advice'][0]:g} to {extra['advice'][1]:g}" if "advice" in extra else ""
    return f" (default {field.default}{bounds})"


def advice(config: TrainConfig) -> list[str]:
    """One line for each value outside the range that the training guide recommends."""
    lines = []
    mapping = config.to_mapping()
    for key, field in known_keys().items():
        extra = field.json_schema_extra or {}
        if "advice" in extra:
            low, high = extra["advice"]
            value = get_key(mapping, key)
            if not low <= value <= high:
                lines.append(f"{key}: {value:g} is outside the guide's range {low:g} to {high:g}")
    return lines


def shipped_folder(kind: Literal["configs", "search_spaces"]) -> Path:
    """The folder of configurations or search spaces that comes with the package (wheel or checkout)."""
    package = Path(__file__).resolve().parent
    inside = package / kind
    return inside if inside.is_dir() else package.parent / kind


def find_file(name: str, kind: Literal["configs", "search_spaces"]) -> Path:
    """A path, or a name among the shipped files, with or without `.yaml`. Raises UserError naming the known ones."""
    folder = shipped_folder(kind)
    for candidate in (Path(name), Path(f"{name}.yaml"), folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    # `configs/rgb.yaml` typed outside the checkout means the shipped one.
    if (folder / Path(name).name).is_file() and Path(name).parent.name == kind:
        return folder / Path(name).name
    shipped = [path.stem for path in folder.glob("*.yaml")]
    raise UserError(f"{name}: no such file, and none of the shipped {kind}: {nearest(name, shipped)}")


def load_config(path: str | None, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Defaults, then a configuration file, then overrides. Raises UserError with all faults."""
    file = None if path is None else find_file(path, "configs")
    own = {} if file is None else load_mapping(file)
    config, faults = _validate(merge(own, overrides or {}))
    if config is None:
        # Each fault is told with the place where it was written.
        lines = [
            f"{file if file is not None and key not in (overrides or {}) else 'command line'}: {text}"
            for key, text in faults
        ]
        raise UserError("\n".join(lines))
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML that `load_config` reads back to an equal one."""
    write_whole(path, dump_mapping(config.to_mapping()))
