"""The encoder: a timm backbone that gives features h, and a projection head that gives z for the loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phenoscape_tune.config import TrainConfig, nearest
from phenoscape_tune.errors import UserError

log = logging.getLogger(__name__)

SMALL_INPUT = 64  # px: up to here a stem made for 224 px would leave next to no resolution (SimCLR appendix B.9)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Backbone and projection head; normalises its input by itself, so that a checkpoint is complete.

    `forward` takes images (B, C, S, S) in [0, 1] and returns features h (B, D) and projections z (B, projection_dim).
    The head is the two-layer one of SimCLR (arXiv 2002.05709, section 2.1): z = W2 relu(bn(W1 h)).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, feature_dim: int, projection_dim: int, channels: int) -> None:
        super().__init__()
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
        return self.backbone((images - self.mean) / self.std)

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


def build_encoder(config: TrainConfig, channels: int, mean: Sequence[float], std: Sequence[float]) -> Encoder:
    """The encoder that a configuration asks for.

    Args:
        channels: C of the images; the first convolution is adapted to it, pretrained weights included (timm's way).
        mean, std: per channel, of the training images in [0, 1]; pretrained weights bring their own.

    Raises UserError for an unknown backbone, weights that cannot be had, or a stem that the backbone does not have.
    """
    import timm

    check_backbone(config.backbone)
    arguments: dict[str, Any] = {"in_chans": channels, "num_classes": 0}
    if "vit" in config.backbone or "swin" in config.backbone or "deit" in config.backbone:
        arguments["img_size"] = config.input_size
    pretrained = config.weights == "DEFAULT"
    try:
        backbone = timm.create_model(config.backbone, pretrained=pretrained, **arguments)
    except UserError:
        raise
    except Exception as error:
        if not pretrained:
            raise UserError(
                f"backbone: '{config.backbone}' cannot be built for input_size {config.input_size}: {error}"
            ) from error
        raise UserError(
            f"weights: DEFAULT: the pretrained weights of '{config.backbone}' cannot be fetched "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}); give a local file "
            "(weights: path/to/file) or start from random weights (weights: null)"
        ) from error
    if uses_small_stem(config, backbone):
        _shrink_stem(backbone, channels)
    if config.weights not in (None, "DEFAULT"):
        _load_backbone(backbone, Path(str(config.weights)))
    feature_dim = _feature_dim(backbone, channels, config.input_size)
    encoder = Encoder(backbone, feature_dim, config.projection_dim, channels)
    if pretrained and channels == 3:
        known = getattr(backbone, "pretrained_cfg", {})
        encoder.set_normalisation(known.get("mean", IMAGENET_MEAN), known.get("std", IMAGENET_STD))
    else:
        encoder.set_normalisation(mean, std)
    return encoder


def uses_small_stem(config: TrainConfig, backbone: nn.Module) -> bool:
    """Whether the 3x3 stem without max-pool replaces the backbone's. Raises UserError where it cannot."""
    possible = isinstance(getattr(backbone, "conv1", None), nn.Conv2d | nn.Sequential) and hasattr(backbone, "maxpool")
    if config.stem == "small" and not possible:
        raise UserError(f"stem: small needs a ResNet-like backbone, '{config.backbone}' is none; set stem=standard")
    if config.stem == "auto":
        # Pretrained first layers are worth more than resolution.
        return possible and config.input_size <= SMALL_INPUT and config.weights is None
    return config.stem == "small"


def _shrink_stem(backbone: nn.Module, channels: int) -> None:
    width = int(backbone.bn1.num_features)  # type: ignore[union-attr, arg-type]
    backbone.conv1 = nn.Conv2d(channels, width, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()


def _feature_dim(backbone: nn.Module, channels: int, size: int) -> int:
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        width = backbone(torch.zeros(1, channels, size, size)).shape[1]
    backbone.train(training)
    return int(width)


def _load_backbone(backbone: nn.Module, path: Path) -> None:
    """Load a state dict (torch file or safetensors) or one of our own checkpoints; never executes what is in it."""
    if not path.is_file():
        raise UserError(f"weights: {path}: no such file; give a file, DEFAULT or null")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"weights: {path}: is not a file of weights alone ({type(error).__name__}); "
            "save a state dict with torch.save or as safetensors"
        ) from error
    if "model" in state and isinstance(state["model"], dict):
        state = state["model"]
    own = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    state = own or state
    known = backbone.state_dict()
    fitting = {k: v for k, v in state.items() if k in known and known[k].shape == getattr(v, "shape", None)}
    if len(fitting) < len(known) / 2:
        raise UserError(f"weights: {path}: only {len(fitting)} of {len(known)} tensors fit '{type(backbone).__name__}'")
    backbone.load_state_dict(fitting, strict=False)
    missing = sorted(set(known) - set(fitting))
    log.info(
        "weights: %d of %d tensors from %s%s",
        len(fitting),
        len(known),
        path,
        f"; newly initialised: {', '.join(missing[:5])}" if missing else "",
    )
