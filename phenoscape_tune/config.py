"""The training configuration: the training guide's keys with their types, ranges, defaults and meanings.

Every default stands here, those of the images in `data_keys.py` and of the augmentation in `transforms.py`, and
nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from phenoscape_tune.channel_keys import chosen_channels
from phenoscape_tune.data_keys import DataKeys, OptionalPath
from phenoscape_tune.errors import UserError
from phenoscape_tune.key_faults import MadeByName, describe_fault
from phenoscape_tune.transforms import KINDRED, Keys, TransformsConfig, advised, filled, with_defaults


class EarlyStoppingConfig(Keys):
    """Stop a single run whose monitored value no longer improves."""

    monitor: str = Field(default="val_loss", description="The reported value to watch.")
    patience: int = Field(default=10, ge=1, description="Epochs without improvement before the run stops.")
    min_delta: float = Field(default=0.001, ge=0, description="The least change that counts as improvement.")


class TrainConfig(DataKeys, MadeByName):
    """One SimCLR training run: the keys of a configuration file, by name; the others have their defaults.

    A path may be given as a Path, and is kept as text. Raises UserError of all faults at once, as `build_config` does.
    """

    # Model
    backbone: str = Field(default="resnet50", min_length=1, description="Encoder: any model name of timm.")
    weights: OptionalPath = Field(
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
    def _warmup_leaves_a_cosine(self) -> TrainConfig:
        if self.warmup_epochs is not None and self.warmup_epochs >= self.schedule_epochs:
            period = "max_epochs" if self.T_max is None else "T_max"
            raise ValueError(f"warmup_epochs: {self.warmup_epochs:g} must be below {period}: {self.schedule_epochs}")
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
