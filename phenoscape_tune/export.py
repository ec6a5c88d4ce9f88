"""The backbone of an encoder for others: a timm state dict, and what timm needs to be told to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.files import naming_full_disk, removed_on_failure, write_whole
from phenoscape_tune.model import Encoder, backbone_arguments, has_shrunk_stem, shrink_stem
from phenoscape_tune.spectral_stem import PREFIX, build_spectral_stem, spectral_stem_state, stem_shape
from phenoscape_tune.weights import NORMALISATION

WEIGHTS, DESCRIPTION = "backbone.safetensors", "backbone.json"


def export_backbone(encoder: Encoder, config: TrainConfig, folder: Path) -> Path:
    """Write `backbone.safetensors` and `backbone.json`; returns the latter's path.

    With the standard stem, `timm.create_model(model, checkpoint_path=".../backbone.safetensors", **arguments)` of the
    description gives the same features for images in [0, 1] that are normalised by its mean and std. timm has neither a
    ResNet with the 3x3 stem nor a spectral stem, and refuses a file of the latter: there `load_backbone`, or the lines
    that `stem_code` says, stand for it.
    """
    from safetensors.torch import save

    channels = encoder.mean.shape[1]
    mean, std = (values.flatten().tolist() for values in (encoder.mean, encoder.std))
    state = dict(encoder.backbone.state_dict())
    if encoder.spectral_stem is not None:
        state |= {f"{PREFIX}{key}": value for key, value in encoder.spectral_stem.state_dict().items()}
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    # Written here: of a full disk safetensors' own writer tells in an exception of its own kind.
    content = save(state, metadata={NORMALISATION: json.dumps({"mean": mean, "std": std})})
    with naming_full_disk(folder), removed_on_failure(folder / WEIGHTS):
        (folder / WEIGHTS).write_bytes(content)
    small, own_stem = has_shrunk_stem(encoder.backbone), spectral_stem_state(state)
    width = channels if own_stem is None else stem_shape(own_stem)[1]
    told: dict[str, Any] = {
        "model": config.backbone,
        "arguments": backbone_arguments(config, width),
        "weights": WEIGHTS,
        "input_size": [channels, config.input_size, config.input_size],
        "mean": mean,
        "std": std,
        "resize": config.resize,
        "features": encoder.feature_dim,
        "stem": "small" if small else "standard",
        "spectral_stem": None if own_stem is None else width,
    }
    if small or own_stem is not None:
        told["stem_code"] = _stem_code(encoder, width, small)
    write_whole(folder / DESCRIPTION, json.dumps(told, indent=2) + "\n")
    return folder / DESCRIPTION


def _stem_code(encoder: Encoder, width: int, small: bool) -> list[str]:
    """Lines of Python that make the model, where timm alone cannot; `model` and `arguments` are the description's."""
    lines = ["model = timm.create_model(model, **arguments)  # without checkpoint_path"]
    if small:
        first = encoder.backbone.bn1.num_features  # type: ignore[union-attr]
        lines += [
            f"model.conv1 = torch.nn.Conv2d({width}, {first}, 3, padding=1, bias=False)",
            "model.maxpool = torch.nn.Identity()",
        ]
    if encoder.spectral_stem is None:
        return [*lines, 'model.load_state_dict(safetensors.torch.load_file("backbone.safetensors"))']
    channels = encoder.mean.shape[1]
    return [
        *lines,
        f"mixture = torch.nn.Conv2d({channels}, {width}, 1, bias=False)",
        f"stem = torch.nn.Sequential(mixture, torch.nn.BatchNorm2d({width}))",
        'state = safetensors.torch.load_file("backbone.safetensors")',
        f'own = {{key: state.pop(key) for key in list(state) if key.startswith("{PREFIX}")}}',
        f'stem.load_state_dict({{key.removeprefix("{PREFIX}"): value for key, value in own.items()}})',
        "model.load_state_dict(state)",
        f"model = torch.nn.Sequential(stem, model)  # takes the {channels} normalised channels",
    ]


def load_backbone(description: str | Path) -> nn.Module:
    """timm's model of a `backbone.json`, in evaluation mode: normalised images (B, C, S, S) → features h (B, D).

    Raises UserError where the description or the weights beside it are missing or do not fit.
    """
    import timm
    from safetensors.torch import load_file

    description = Path(description)
    try:
        told = json.loads(description.read_text(encoding="utf-8"))
        model = timm.create_model(told["model"], **told["arguments"])
        if told["stem"] == "small":
            shrink_stem(model, told.get("spectral_stem") or told["input_size"][0])
        state: dict[str, Tensor] = load_file(description.parent / told["weights"])
        own_stem = spectral_stem_state(state)
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith(PREFIX)})
        if own_stem is not None:
            spectral_stem = build_spectral_stem(*stem_shape(own_stem))
            spectral_stem.load_state_dict(own_stem)
            model = nn.Sequential(spectral_stem, model)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{description}: cannot be loaded ({error}); export the backbone again by embed.py") from error
    return model.eval()
