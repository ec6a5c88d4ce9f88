"""The configuration's keys of the images: where they lie, how they are read, and into which parts they are divided."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from PIL import ImageColor
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from phenoscape_tune.channel_keys import MODALITY_OF, Bands, ChannelChoice, ChannelNames, ValueScaling
from phenoscape_tune.storage import check_url, is_url
from phenoscape_tune.transforms import Keys


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


def _as_text(path: Any) -> Any:
    return os.fspath(path) if isinstance(path, os.PathLike) else path


# Kept as text, where Python gives a Path.
OptionalPath = Annotated[str | None, BeforeValidator(_as_text)]


class DataKeys(Keys):
    """Where images and results are; how images are read, and which of them train."""

    # Data
    data_dir: OptionalPath = Field(default=None, description="Folder of images, searched recursively.")
    out_dir: Annotated[str, BeforeValidator(_as_text), AfterValidator(_local)] = Field(
        default="outputs/train", description="Folder for checkpoints, logs and the resolved configuration."
    )
    labels: OptionalPath = Field(
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
    cache_dir: OptionalPath = Field(
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

    @model_validator(mode="after")
    def _parts_leave_training(self) -> DataKeys:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"val_fraction: {self.val_fraction} and test_fraction: {self.test_fraction} leave nothing to train on"
            )
        return self

    @model_validator(mode="after")
    def _keys_of_the_modality(self) -> DataKeys:
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
