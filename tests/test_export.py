from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.export import export_backbone, load_backbone
from phenoscape_tune.model import build_encoder

pytestmark = pytest.mark.slow  # timm takes seconds to import

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("backbone", "stem", "channels"),
    [("resnet18", "standard", 3), ("resnet18", "standard", 5), ("test_vit.r160_in1k", "auto", 3)],
)
def test_timm_alone_loads_what_is_exported(tiny: Tiny, tmp_path: Path, backbone: str, stem: str, channels: int) -> None:
    import timm

    config = tiny(backbone=backbone, stem=stem, input_size=48)
    encoder = build_encoder(config, channels, [0.4] * channels, [0.2] * channels).eval()
    told = json.loads(export_backbone(encoder, config, tmp_path).read_text())
    model = timm.create_model(
        told["model"], checkpoint_path=str(tmp_path / told["weights"]), **told["arguments"]
    ).eval()
    images = torch.rand(2, *told["input_size"])
    mean, std = (torch.tensor(told[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(model((images - mean) / std), encoder.features(images), atol=1e-6)
    assert torch.equal(load_backbone(tmp_path / "backbone.json")(images), model(images))


def test_the_small_stem_is_loaded_by_the_helper_and_by_the_lines_that_are_told(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(backbone="resnet18", stem="small")
    encoder = build_encoder(config, 3, [0.5] * 3, [0.2] * 3).eval()
    description = export_backbone(encoder, config, tmp_path)
    told = json.loads(description.read_text())
    assert told["stem"] == "small"
    images = torch.rand(2, 3, 32, 32)
    wanted = encoder.backbone(images)
    assert torch.equal(load_backbone(description)(images), wanted)

    import safetensors.torch
    import timm

    names = {"timm": timm, "torch": torch, "safetensors": safetensors, "arguments": told["arguments"]}
    names["model"] = told["model"]
    code = "\n".join(told["stem_code"]).replace('"backbone.safetensors"', repr(str(tmp_path / told["weights"])))
    exec(code, names)
    assert torch.equal(names["model"].eval()(images), wanted)


def test_the_export_is_weights_to_train_from(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(backbone="resnet18", stem="small")
    encoder = build_encoder(config, 3, [0.1, 0.2, 0.3], [0.2] * 3).eval()
    export_backbone(encoder, config, tmp_path)
    again = tiny(backbone="resnet18", stem="auto", weights=str(tmp_path / "backbone.safetensors"))
    loaded = build_encoder(again, 3, [0.5] * 3, [0.5] * 3).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.features(images), encoder.features(images))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="backbone.json.*embed.py"):
        load_backbone(tmp_path / "backbone.json")
