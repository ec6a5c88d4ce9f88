"""The training configuration: the training guide's keys with their types, ranges, defaults and meanings.

Every default stands here, those of the augmentation in `transforms.py`, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from phenoscape_tune.channel_keys import MODALITY_OF, Bands, ChannelChoice, ChannelNames, ValueScaling, chosen_channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.key_faults import MadeByName, describe_fault
from phenoscape_tune.storage import check_url, is_url
from phenoscape_tune.transforms import KINDRED, Keys, TransformsConfig, advised, filled, with_defaults


def _colour(text: str) -> str:
    try:
        ImageColor.getrgb(text)
    except ValueError:
        raise ValueError("write a colour such as grey, white or '#808080'") from None
    return text


def _local(path: str) -> str:
    if is_url(path):
        raise ValueError(
            "is remote, while logs are appended to and files are locked here; write a local folder, and storage=URL "
            "for a copy of it there"
        )
    return path


class EarlyStoppingConfig(Keys):
    """Stop a single run whose monitored value no longer improves."""

    monitor: str = Field(default="val_loss", description="The reported value to watch.")
    patience: int = Field(default=10, ge=1, description="Epochs without improvement before the run stops.")
    min_delta: float = Field(default=0.001, ge=0, description="The least change that counts as improvement.")


class TrainConfig(Keys, MadeByName):
    """One SimCLR training run: the keys of a configuration file, by name; the others have their defaults.

    A path may be given as a Path, and is kept as text. Raises UserError of all faults at once, as `build_config` does.
    """

    # Data
    data_dir: str | None = Field(default=None, description="Folder of images, searched recursively.")
    out_dir: Annotated[str, AfterValidator(_local)] = Field(
        default="outputs/train", description="Folder for checkpoints, logs and the resolved configuration."
    )
    labels: str | None = Field(
        default=None,
        description="CSV (filename,label[,group]) instead of class sub-folders; used for the objective only.",
    )
    group_by: str | None = Field(
        default=None, description="Regular expression on the file name; images with the same match stay in one part."
    )
    val_fraction: float = Field(default=0.15, gt=0, lt=1, description="Share of the specimens for validation.")
    test_fraction: float = Field(default=0.15, ge=0, lt=1, description="Share of the specimens for the one final test.")
    split_seed: int = Field(
        default=42, ge=0, le=2**31, description="Seed of the split into parts; the same for every trial."
    )
    resize: Literal["pad", "crop", "squash"] = Field(
        default="pad", description="How an image becomes square: pad keeps all of the organism and its proportions."
    )
    background: Annotated[str, AfterValidator(_colour)] = Field(
        default="grey", description="Colour behind transparent images and of padding."
    )
    max_unreadable: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Largest share of unreadable image files that is left out without refusing.",
    )
    cache_dir: str | None = Field(
        default=None, description="Folder for packed images; null: $PHENOSCAPE_CACHE or the user's cache folder."
    )
    storage: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None,
        description="URL of a folder, such as s3://bucket/birds, to which checkpoints, logs and results are copied; "
        "null: none.",
    )
    pack: bool = Field(
        default=True,
        description="Decode all images once into a memory-mapped file; false, or where the disk has no room for it: "
        "decode them anew in each epoch.",
    )
    balance: bool = Field(
        default=False, description="Sample classes evenly in training; needs labels, and no batch holds an image twice."
    )
    modality: Literal["auto", "rgb", "multispectral", "hyperspectral"] = Field(
        default="auto", description="Kind of images; auto: told from the files, and said."
    )
    channels: ChannelChoice | None = Field(
        default=None,
        description="Channels of multispectral images: rgb_only, uv_only, full, or a list of indices (from 0) or "
        "names; null: full, which is all but the mask.",
    )
    channel_names: ChannelNames | None = Field(
        default=None,
        description="Names of all channels of a multispectral file; red, green, blue, mask and what begins with uv are "
        "known. null: the file's own, or by their number (7: red, green, blue, uv1, uv2, uv3, mask).",
    )
    bands: Bands = Field(
        default="all",
        description="Bands of hyperspectral images: all, every:4, uniform:32 (evenly spaced), range:400-700nm, "
        "range:10-90 (indices), rgb (nearest to 650, 550, 450 nm), or a list of indices (from 0) or "
        "wavelengths (550nm).",
    )
    value_scaling: ValueScaling = Field(
        default="auto",
        description="What becomes 0 and 1 in multispectral and hyperspectral images: bit_depth: 0 and the largest "
        "value of the type (float: 1); percentile: the 0.5 and 99.5 percentile over the training part; a range such as "
        "[0, 10000]; auto: bit_depth where values reach a quarter of it, else percentile.",
    )
    use_segmentation_mask: bool = Field(default=False, description="Put `background` where the mask channel is 0.")
    crop_to_mask: bool = Field(
        default=False, description="Cut each image to the specimen that its mask shows; needs use_segmentation_mask."
    )

    # Model
    backbone: str = Field(default="resnet50", min_length=1, description="Encoder: any model name of timm.")
    weights: str | None = Field(
        default=None, description="DEFAULT: pretrained weights from timm; null: random; else a file of weights."
    )
    input_size: int = Field(
        default=224,
        ge=8,
        le=4096,
        json_schema_extra={"unit": "px"},
        description="Side of the square input of the encoder.",
    )
    stem: Literal["auto", "standard", "small"] = Field(
        default="auto", description="small: 3x3 first convolution without max-pool; auto: small for inputs up to 64 px."
    )
    spectral_stem: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Width k of a learned 1x1 convolution to k channels, if there are more, before the backbone.",
    )
    projection_dim: int = Field(default=128, ge=2, le=8192, description="Width of the projection that the loss sees.")

    # Optimisation
    lr: float = Field(default=0.001, gt=0, json_schema_extra=advised(1e-5, 1e-1), description="Peak learning rate.")
    batch_size: int = Field(
        default=32, ge=2, json_schema_extra=advised(8, 512), description="Images per device and step."
    )
    max_epochs: int = Field(
        default=100, ge=1, json_schema_extra={**advised(50, 500), "unit": "epochs"}, description="Length of training."
    )
    temperature: float = Field(
        default=0.1, gt=0, json_schema_extra=advised(0.05, 0.5), description="Temperature of the NT-Xent loss."
    )
    optimizer: Literal["sgd", "adamw", "lars"] = Field(
        default="adamw", description="Optimiser (measured: docs/experiments.md)."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of sgd and lars.")
    weight_decay: float = Field(
        default=1e-4, ge=0, description="Weight decay; not applied to biases and normalisation."
    )
    lr_scheduler: Literal["cosine"] = Field(default="cosine", description="Shape of the learning-rate schedule.")
    warmup_epochs: float | None = Field(
        default=None,
        ge=0,
        json_schema_extra={"unit": "epochs"},
        description="Linear warm-up; null: a tenth of max_epochs (or T_max), at most 10.",
    )
    T_max: int | None = Field(
        default=None, ge=1, json_schema_extra={"unit": "epochs"}, description="Period of the cosine; null: max_epochs."
    )
    eta_min: float | None = Field(
        default=None, ge=0, description="Floor of the learning rate; null: min(1e-4, lr / 10)."
    )
    gradient_clip: float | None = Field(
        default=None, gt=0, description="Largest norm of the gradient; null: no clipping."
    )
    accumulate_grad_batches: int = Field(default=1, ge=1, description="Batches that the contrastive loss sees as one.")
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=2)] = Field(
        default="auto",
        description="Images of a batch that go through the network at once; the loss sees them all. auto: the whole "
        "batch, halved where memory runs out.",
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        default=None, description="Stop when a value no longer improves."
    )
    transforms: TransformsConfig = Field(default_factory=TransformsConfig, description="Augmentation.")

    # Hardware
    seed: int = Field(
        default=42, ge=0, le=2**31, description="Seed of the weights, the order of images and the augmentation."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="auto: a GPU where there is one.")
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(default=1, description="Devices of one run.")
    strategy: Literal["auto", "ddp"] = Field(default="auto", description="How several devices work together.")
    precision: Literal["auto", "bf16", 16, 32] = Field(
        default="auto", description="auto: bf16 where the device profits, else 32."
    )
    sync_batchnorm: bool = Field(default=False, description="Batch statistics over all devices.")
    deterministic: bool = Field(default=False, description="Same result to the bit on the same machine; may be slower.")
    compile: bool = Field(default=False, description="Use torch.compile.")
    gradient_checkpointing: bool = Field(default=False, description="Trade speed for memory.")
    num_workers: int = Field(
        default=4,
        ge=0,
        description="Threads that decode images: while packing, or in each epoch where they are not packed.",
    )
    pin_memory: bool = Field(default=True, description="Copy batches to a GPU from page-locked memory.")
    persistent_workers: bool = Field(
        default=True,
        description="Keep the threads that decode images from epoch to epoch; of no account for packed images.",
    )

    # Logging
    log_every_n_steps: int = Field(
        default=50, ge=1, json_schema_extra={"unit": "steps"}, description="Steps between log lines."
    )

    @classmethod
    def refuse(cls, values: Mapping[str, Any], source: str) -> None:
        """Raise UserError of all faults, as `build_config` does."""
        build_config(values, source)

    @field_validator("data_dir", "out_dir", "labels", "cache_dir", "weights", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _one_input_size(self) -> TrainConfig:
        inner, outer = self.transforms.input_size, self.input_size
        if inner is not None and "input_size" in self.model_fields_set and inner != outer:
            raise ValueError(f"input_size: {outer} and transforms.input_size: {inner} differ; write one of them")
        size = outer if inner is None else inner
        object.__setattr__(self, "transforms", filled(self.transforms, {"input_size": size}))
        object.__setattr__(self, "input_size", size)
        return self

    @model_validator(mode="after")
    def _transforms_of_the_modality(self) -> TrainConfig:
        told = chosen_channels(self.modality, self.channels, self.channel_names, self.bands)
        object.__setattr__(self, "transforms", with_defaults(self.transforms, self.modality, *told))
        return self

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
        key = None if self.modality == "auto" else self.misplaced_key(self.modality)
        if key == "use_segmentation_mask":
            raise ValueError(
                "use_segmentation_mask: is for multispectral and hyperspectral images; in RGB pictures transparency "
                "is the mask, and is always put on `background`"
            )
        if key is not None:
            own = {"multispectral": "channels", "hyperspectral": "bands"}.get(self.modality)
            other = "remove it" if own is None else f"{own} chooses those of {self.modality} images"
            raise ValueError(f"{key}: is for {MODALITY_OF[key]} images, and modality is {self.modality}; {other}")
        return self

    def misplaced_key(self, modality: str) -> str | None:
        """The first key that was given a value and has no meaning for images of a modality (not auto); None: none."""
        for key, of in MODALITY_OF.items():
            if of != modality and getattr(self, key) != type(self).model_fields[key].default:
                return key
        return "use_segmentation_mask" if modality == "rgb" and self.use_segmentation_mask else None

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


def build_config(values: Mapping[str, Any], source: str = "configuration") -> TrainConfig:
    """Validate a nested mapping of configuration keys.

    Raises UserError that lists all faults at once, each with key, value and what to write instead; `source` names the
    file or the command line.
    """
    config, faults = validate(values)
    if config is None:
        raise UserError("\n".join(f"{source}: {text}" for _, text in faults))
    return config


def validate(values: Mapping[str, Any]) -> tuple[TrainConfig | None, list[tuple[str, str]]]:
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
        faults |= {text: key for key, text in validate(sound)[1]}
    return None, [(key, text) for text, key in faults.items()]


def advice(config: TrainConfig) -> list[str]:
    """One line for each value outside the range that the training guide recommends."""
    lines = []
    for key, field in known_keys().items():
        extra = field.json_schema_extra or {}
        if "advice" in extra:
            low, high = extra["advice"]
            value = attrgetter(key)(config)
            if not low <= value <= high:
                lines.append(f"{key}: {value:g} is outside the guide's range {low:g} to {high:g}")
    return lines
