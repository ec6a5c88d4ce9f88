"""A trained encoder as `embed.py` is given it: found, opened, with other images in the place of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.errors import UserError
from phenoscape_tune.layers import merge

if TYPE_CHECKING:  # --help must not pay for torch
    from phenoscape_tune.data.channels import Channels
    from phenoscape_tune.data.images import Images
    from phenoscape_tune.model import Encoder

# What decides in which part an image is.
SPLIT_KEYS = ("labels", "group_by", "val_fraction", "test_fraction", "split_seed")


@dataclass(frozen=True)
class TrainedEncoder:
    """A trained encoder and where it stands.

    Attributes:
        path: of the checkpoint.
        config: as it was trained.
        asked: the same with this command's images and machine.
        state: the encoder's weights.
        epoch: that the checkpoint was written after.
        channels: of the images that it was trained on; None where the checkpoint does not say.
    """

    path: Path
    config: TrainConfig
    asked: TrainConfig
    state: dict[str, Any]
    epoch: int
    channels: Channels | None

    @property
    def own_images(self) -> bool:
        """Whether the images are those that the run was trained on, or a part of which it was."""
        return Path(str(self.config.data_dir)).resolve() == Path(str(self.asked.data_dir)).resolve()

    @property
    def own_parts(self) -> bool:
        """Whether they are also in the same parts: what is the test part was not trained on."""
        return self.own_images and all(getattr(self.config, key) == getattr(self.asked, key) for key in SPLIT_KEYS)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a file, a run's folder or its checkpoints' folder means. Raises UserError where none is."""
    if path.is_file():
        return path
    for candidate in (path / "checkpoints" / "best.ckpt", path / "best.ckpt"):
        if candidate.is_file():
            return candidate
    if (path / "search.yaml").is_file():
        raise UserError(
            f"{path}: is a search's folder; train its winner (python scripts/train.py --config {path / 'best.yaml'}) "
            f"and give that run's folder, or one of {path / 'trials'}"
        )
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint or folder; give a run's folder, for example outputs/train")
    raise UserError(
        f"{path}: holds no checkpoints/best.ckpt; give the folder of a run that finished an epoch (a search keeps the "
        "checkpoints of its best trials: keep)"
    )


def open_trained(path: Path, data_dir: str | None, overrides: dict[str, Any]) -> TrainedEncoder:
    """The encoder of a checkpoint, for the images of a folder (None: its run's own) and with other keys.

    Raises UserError where the checkpoint cannot be read, a key is wrong, or the images are gone.
    """
    from phenoscape_tune.training import checkpoint

    try:
        state = checkpoint.load(path)
    except TypeError as error:
        raise UserError(f"{path}: is not a checkpoint of this version ({error})") from error
    config = build_config(state.config, str(path))
    given: dict[str, Any] = dict(overrides)
    if data_dir is not None:
        given["data_dir"] = str(Path(data_dir).expanduser().absolute())
        if Path(given["data_dir"]).resolve() != Path(str(config.data_dir)).resolve():
            given.setdefault("labels", None)  # the run's table is of other images
            if state.value_range is not None:  # measured there: the encoder knows no other scale
                given.setdefault("value_scaling", list(state.value_range))
    if given.get("labels"):
        given["labels"] = str(Path(given["labels"]).expanduser().absolute())
    asked = build_config(merge(config.to_mapping(), given), "command line")
    if not Path(str(asked.data_dir)).is_dir() and data_dir is None:
        raise UserError(f"data_dir: {asked.data_dir}, on which {path} was trained, is gone; name a folder of images")
    return TrainedEncoder(path, config, asked, state.model, state.epoch, _channels(path, state.channels))


def _channels(path: Path, told: dict[str, Any]) -> Channels | None:
    from pydantic import TypeAdapter

    from phenoscape_tune.data.channels import Channels

    try:
        return TypeAdapter(Channels).validate_python(told) if told else None
    except ValueError as error:
        raise UserError(f"{path}: says of its channels what cannot be read; give another checkpoint") from error


def check_channels(trained: TrainedEncoder, encoder: Encoder, images: Images) -> None:
    """Raise UserError where the images have other channels than those that the encoder was trained on."""
    known, here = encoder.mean.shape[1], images.channels
    if trained.channels is not None:
        difference = trained.channels.difference(here)
    else:  # an earlier checkpoint does not say which they were
        difference = None if known == len(here) else f"{known} channels there, {len(here)} here"
    if difference is not None:
        raise UserError(
            f"{trained.path}: was trained on other channels than the images in {trained.asked.data_dir} have: "
            f"{difference}; name a folder of images of the same kind"
        )
