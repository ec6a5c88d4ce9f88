"""The encoder: a timm backbone that gives features h, and a projection head that gives z for the loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.key_faults import nearest
from phenoscape_tune.spectral_stem import build_spectral_stem, spectral_stem_state, stem_shape
from phenoscape_tune.weights import WeightsFile, fit_weights, impatient_hub, read_weights, tell_adapted

log = logging.getLogger(__name__)

SMALL_INPUT = 64  # px: up to here a stem made for 224 px would leave next to no resolution (SimCLR appendix B.9)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Backbone and projection head; normalises its input by itself, so that a checkpoint is complete.

    `forward` takes images (B, C, S, S) in [0, 1] and returns features h (B, D) and projections z (B, projection_dim).
    The head is the two-layer one of SimCLR (arXiv 2002.05709, section 2.1): z = W2 relu(bn(W1 h)). `spectral_stem`,
    where there is one, mixes the C channels to the few that the backbone takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        projection_dim: int,
        channels: int,
        spectral_stem: nn.Sequential | None = None,
    ) -> None:
        super().__init__()
        self.spectral_stem = spectral_stem
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.head = nn.Sequential(
            nn.Linear(feature_dim, feature_dim, bias=False),
            nn.BatchNorm1d(feature_dim),
            nn.ReLU(inplace=True),
            nn.Linear(feature_dim, projection_dim),
        )
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, channels, 1, 1), 0.25))

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Mean and standard deviation of each channel, of images in [0, 1]."""
        self.mean.copy_(torch.tensor(mean).view(1, -1, 1, 1))
        # A constant channel must not divide by zero.
        self.std.copy_(torch.tensor(std).clamp_min(1e-3).view(1, -1, 1, 1))

    def features(self, images: Tensor) -> Tensor:
        """Features h (B, D) of images (B, C, S, S) in [0, 1]."""
        # In place: of many channels each further copy is gigabytes.
        normalised = torch.sub(images, self.mean).div_(self.std)
        return self.backbone(normalised if self.spectral_stem is None else self.spectral_stem(normalised))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(images)
        return h, self.head(h)


def check_backbone(name: str) -> None:
    """Raise UserError, naming the nearest known one, where timm has no model of that name."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"backbone: '{name}' is not a model of timm; {_nearest_model(name)}")


def _nearest_model(name: str) -> str:
    import timm

    known = timm.list_models()
    hint = nearest(name, known)
    return hint if hint.startswith("did") else "for example resnet18, resnet50, resnet101, vit_base_patch16_224"


def build_encoder(
    config: TrainConfig,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    say: Callable[[str], None] = log.info,
) -> Encoder:
    """The encoder that a configuration asks for.

    Args:
        channels: C of the images; the first convolution is adapted to it, pretrained weights included (timm's way).
        mean, std: per channel, of the training images in [0, 1]; pretrained weights of RGB pictures bring their own.
        say: gets a line on each thing that was decided.

    Raises UserError for an unknown backbone, weights that cannot be had or do not fit, or a stem that the backbone does
    not have.
    """
    mixed_to = _spectral_stem_width(config, channels, say)
    width = mixed_to or channels
    file = None if config.weights in (None, "DEFAULT") else read_weights(Path(str(config.weights)))
    pretrained = config.weights == "DEFAULT"
    backbone = create_backbone(config, width, pretrained)
    if pretrained:
        say(f"weights: timm's for '{config.backbone}'")
        _tell_pretrained(backbone, width, say)
    if small := uses_small_stem(config, backbone, file):
        shrink_stem(backbone, width)
    spectral_stem = None if mixed_to is None else build_spectral_stem(channels, mixed_to)
    if file is not None:
        other_stem = hasattr(backbone, "conv1") and file.has_small_stem != has_shrunk_stem(backbone)
        fitted = fit_weights(file, backbone, config.backbone, own_stem=other_stem, say=say)
        backbone.load_state_dict(fitted, strict=False)
        say(f"weights: from {file.path}")
        if other_stem:
            there, here = ("standard", "small") if small else ("small", "standard")
            log.warning("weights: %s has the %s stem and stem=%s: the stem starts anew", file.path, there, here)
        if file.spectral_stem is not None:
            _load_spectral_stem(spectral_stem, file.spectral_stem, channels, file.path)
    encoder = Encoder(backbone, _feature_dim(config, backbone, width), config.projection_dim, channels, spectral_stem)
    _normalise(encoder, config, file, mean, std, say)
    return encoder


def _spectral_stem_width(config: TrainConfig, channels: int, say: Callable[[str], None]) -> int | None:
    """Channels that a spectral stem leaves; None without one."""
    width = config.spectral_stem
    if width is None:
        return None
    if width >= channels:
        # A search may compare all bands with a few of them: these need no mixing.
        say(f"spectral_stem: {width}: the images have {channels} channels, which the backbone takes as they are")
        return None
    say(f"spectral_stem: {channels} channels are mixed to {width} by a learned 1x1 convolution")
    return width


def _tell_pretrained(backbone: nn.Module, width: int, say: Callable[[str], None]) -> None:
    known = getattr(backbone, "pretrained_cfg", {})
    names = known.get("first_conv") or ()
    theirs = (known.get("input_size") or (3,))[0]
    if names and theirs != width:
        say(tell_adapted([names] if isinstance(names, str) else list(names), theirs, width))


def _load_spectral_stem(
    spectral_stem: nn.Sequential | None, state: Mapping[str, Tensor], channels: int, path: Path
) -> None:
    there = stem_shape(state)
    if spectral_stem is None:
        log.warning("weights: %s has a spectral stem, which is left out; spectral_stem=%d keeps it", path, there[1])
        return
    here = (channels, int(spectral_stem[1].num_features))  # type: ignore[arg-type]
    if there == here:
        spectral_stem.load_state_dict(dict(state))
    else:
        told = "weights: %s has a spectral stem from %d channels to %d and here it is from %d to %d: it starts anew"
        log.warning(told, path, *there, *here)


def _normalise(
    encoder: Encoder,
    config: TrainConfig,
    file: WeightsFile | None,
    mean: Sequence[float],
    std: Sequence[float],
    say: Callable[[str], None],
) -> None:
    channels = encoder.mean.shape[1]
    # Only of pictures it is known that a file's channels are the same ones: it tells their number, not their names.
    pictures = channels == 3 and config.modality in ("auto", "rgb")
    of_file = None if file is None or file.mean is None or file.std is None else (file.mean, file.std)
    if of_file is not None and len(of_file[0]) == channels and pictures:
        encoder.set_normalisation(*of_file)
    elif config.weights is not None and pictures:
        known = getattr(encoder.backbone, "pretrained_cfg", {})
        encoder.set_normalisation(known.get("mean", IMAGENET_MEAN), known.get("std", IMAGENET_STD))
    else:
        encoder.set_normalisation(mean, std)
        if config.weights is not None:
            why = ", not by the file's, whose channels may be others" if of_file is not None else ""
            say(
                f"weights: images are normalised by the training part's own mean and deviation, channel by channel{why}"
            )


def restore_encoder(config: TrainConfig, state: Mapping[str, Tensor], path: Path) -> Encoder:
    """The encoder of a checkpoint, on the CPU, in evaluation mode.

    Args:
        config: the checkpoint's own; another input_size than the one trained at resamples position embeddings.
        state: an encoder's `state_dict()`.
        path: of the checkpoint, for messages.

    Raises UserError where the state is not one of this configuration's network.
    """
    try:
        channels, projection_dim = state["mean"].shape[1], len(state["head.3.weight"])
        own_stem = spectral_stem_state(state)
        width = channels if own_stem is None else stem_shape(own_stem)[1]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: holds no encoder of this project; give checkpoints/best.ckpt of a run") from error
    body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    file = WeightsFile(path, body)
    backbone = create_backbone(config, width, pretrained=False)
    # What `auto` meant when the run began may have followed from a file that is gone: the weights know it.
    if uses_small_stem(config.model_copy(update={"stem": "auto"}), backbone, file):
        shrink_stem(backbone, width)
    backbone.load_state_dict(fit_weights(file, backbone, config.backbone), strict=False)
    spectral_stem = None if own_stem is None else build_spectral_stem(channels, width)
    encoder = Encoder(backbone, _feature_dim(config, backbone, width), projection_dim, channels, spectral_stem)
    try:
        encoder.load_state_dict({**state, **{f"backbone.{k}": v for k, v in backbone.state_dict().items()}})
    except RuntimeError as error:
        raise UserError(f"{path}: is a checkpoint of another network than '{config.backbone}': {error}") from error
    return encoder.eval()


def backbone_arguments(config: TrainConfig, channels: int) -> dict[str, Any]:
    """What `timm.create_model` needs beside the name to build the backbone for these images."""
    from timm.models import get_pretrained_cfg

    arguments: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    known = get_pretrained_cfg(config.backbone, allow_unregistered=True)
    if known is not None and known.fixed_input_size:  # timm's word for: its layers are made for one size of image
        arguments["img_size"] = config.input_size
    return arguments


def create_backbone(config: TrainConfig, channels: int, pretrained: bool) -> nn.Module:
    """timm's model without a classifier. Raises UserError for an unknown one, or weights that cannot be had."""
    import timm

    check_backbone(config.backbone)
    try:
        with impatient_hub() if pretrained else nullcontext():
            return timm.create_model(config.backbone, pretrained=pretrained, **backbone_arguments(config, channels))
    except Exception as error:
        told = (str(error).splitlines() or [""])[0][:200]
        if not pretrained:
            raise UserError(
                f"backbone: '{config.backbone}' cannot be built for input_size {config.input_size}: {told}"
            ) from error
        raise UserError(
            f"weights: DEFAULT: the pretrained weights of '{config.backbone}' cannot be fetched "
            f"({type(error).__name__}: {told}); give a local file "
            "(weights: path/to/file) or start from random weights (weights: null)"
        ) from error


def uses_small_stem(config: TrainConfig, backbone: nn.Module, file: WeightsFile | None = None) -> bool:
    """Whether the 3x3 stem without max-pool replaces the backbone's. Raises UserError where it cannot.

    `auto` follows the weights where there are some: a pretrained first layer is worth more than resolution.
    """
    possible = isinstance(getattr(backbone, "conv1", None), nn.Conv2d | nn.Sequential) and hasattr(backbone, "maxpool")
    if config.stem == "small" and not possible:
        raise UserError(f"stem: small needs a ResNet-like backbone, '{config.backbone}' is none; set stem=standard")
    if config.stem == "auto" and file is not None:
        return possible and file.has_small_stem
    if config.stem == "auto":
        return possible and config.input_size <= SMALL_INPUT and config.weights is None
    return config.stem == "small"


def shrink_stem(backbone: nn.Module, channels: int) -> None:
    """Put a 3x3 first convolution without max-pool in the place of a ResNet's stem (SimCLR appendix B.9)."""
    width = int(backbone.bn1.num_features)  # type: ignore[union-attr, arg-type]
    backbone.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()


def has_shrunk_stem(backbone: nn.Module) -> bool:
    """Whether the first convolution is the 3x3 one of `shrink_stem`."""
    first = getattr(backbone, "conv1", None)
    plain = isinstance(getattr(backbone, "maxpool", None), nn.Identity)
    return plain and isinstance(first, nn.Conv2d) and first.kernel_size == (3, 3)


def _feature_dim(config: TrainConfig, backbone: nn.Module, channels: int) -> int:
    """Width of the features h. Raises UserError where the backbone gives none for images of `config.input_size`."""
    training, size = backbone.training, config.input_size
    backbone.eval()
    try:
        with torch.no_grad():
            h = backbone(torch.zeros(1, channels, size, size))
    except Exception as error:
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"input_size: {size}: backbone '{config.backbone}' cannot take images of that size ({told}); "
            "set another input_size, or another backbone"
        ) from error
    backbone.train(training)
    if not isinstance(h, Tensor) or h.ndim != 2:
        shape = f"features of shape {tuple(h.shape)}" if isinstance(h, Tensor) else f"a {type(h).__name__}"
        raise UserError(
            f"backbone: '{config.backbone}' gives {shape} and not one vector an image; choose another, "
            "for example resnet50"
        )
    return int(h.shape[1])
