from __future__ import annotations

import json
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("backbone", "stem"), [("resnet18", "standard"), ("resnet18", "small"), ("test_vit.r160_in1k", "standard")]
)
def test_a_spectral_stem_is_exported_and_the_lines_that_are_told_load_it_elsewhere(
    tiny: Tiny, tmp_path: Path, backbone: str, stem: str
) -> None:
    import timm

    config = tiny(backbone=backbone, stem=stem, spectral_stem=3, input_size=32)
    encoder = build_encoder(config, 9, [0.1 * n for n in range(1, 10)], [0.2] * 9)
    for _ in range(2):  # batch norm's statistics are no longer those it began with
        encoder(torch.rand(8, 9, 32, 32))
    description = export_backbone(encoder.eval(), config, tmp_path)
    told = json.loads(description.read_text())
    assert (told["input_size"], told["spectral_stem"], told["arguments"]["in_chans"]) == ([9, 32, 32], 3, 3)
    images = torch.rand(4, 9, 32, 32)
    wanted = encoder.features(images)

    mean, std = (torch.tensor(told[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    assert torch.equal(load_backbone(description)((images - mean) / std), wanted)
    # A process that knows nothing of this project.
    torch.save(images, tmp_path / "images.pt")
    reads = 'told = json.load(open("backbone.json")); model, arguments = told["model"], told["arguments"]'
    code = [
        "import json, sys, timm, torch, safetensors.torch",
        reads,
        *told["stem_code"],
        'mean, std = (torch.tensor(told[key]).view(1, -1, 1, 1) for key in ("mean", "std"))',
        'images = (torch.load("images.pt") - mean) / std',
        'torch.save(model.eval()(images).detach(), "features.pt")',
        'assert "phenoscape_tune" not in sys.modules',
    ]
    subprocess.run([sys.executable, "-c", "\n".join(code)], check=True, cwd=tmp_path, timeout=300)
    assert torch.equal(torch.load(tmp_path / "features.pt"), wanted)
    # Whoever overlooks the stem is told of it by timm.
    with pytest.raises(RuntimeError, match="spectral_stem"):
        timm.create_model(told["model"], checkpoint_path=str(tmp_path / told["weights"]), **told["arguments"])

    again = tiny(backbone=backbone, stem=stem, spectral_stem=3, weights=str(tmp_path / told["weights"]))
    # Of nine channels a file does not tell which they are: they are normalised as the images at hand are.
    same = ((value.flatten().tolist()) for value in (encoder.mean, encoder.std))
    loaded = build_encoder(again, 9, *same).eval()
    assert torch.equal(loaded.features(images), wanted)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="backbone.json.*embed.py"):
        load_backbone(tmp_path / "backbone.json")
