from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phenoscape_tune import weights
from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import Encoder, build_encoder, restore_encoder
from phenoscape_tune.training import checkpoint

pytestmark = pytest.mark.slow  # timm takes seconds to import

Tiny = Callable[..., TrainConfig]


def build(config: TrainConfig, channels: int = 3) -> Encoder:
    return build_encoder(config, channels, [0.4] * channels, [0.2] * channels).eval()


def own_checkpoint(encoder: Encoder, config: TrainConfig, folder: Path) -> str:
    state = checkpoint.State(model=encoder.state_dict(), optimizer={}, config=config.to_mapping())
    checkpoint.save(state, folder, best=False)
    return str(folder / "last.ckpt")


def test_a_torchvision_resnet_gives_the_same_features(tiny: Tiny, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    theirs = resnet18().eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "tv.pt")
    own = build(tiny(backbone="resnet18", stem="auto", weights=str(tmp_path / "tv.pt")))
    theirs.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    # Its weights bring their own normalisation.
    assert own.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert torch.allclose(own.features(images), theirs((images - own.mean) / own.std), atol=1e-5)


def test_a_torchvision_vit_gives_the_same_features(tiny: Tiny, tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    theirs = VisionTransformer(32, 16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768).eval()
    save_file(theirs.state_dict(), tmp_path / "tv.safetensors")
    own = build(tiny(backbone="vit_tiny_patch16_224", weights=str(tmp_path / "tv.safetensors")))
    theirs.heads = torch.nn.Identity()
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(own.features(images), theirs((images - own.mean) / own.std), atol=1e-5)


def test_position_embeddings_of_another_size_are_resampled(tiny: Tiny, tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    small, large = (
        tiny(backbone="test_vit.r160_in1k", input_size=48),
        tiny(backbone="test_vit.r160_in1k", input_size=80),
    )
    source = build(small)
    path = own_checkpoint(source, small, tmp_path)
    tokens = source.backbone.pos_embed
    assert tokens.shape[1] == 1 + 9
    for loaded in (
        build(tiny(backbone="test_vit.r160_in1k", input_size=80, weights=path)),
        restore_encoder(large, source.state_dict(), Path(path)),
    ):
        wanted = resample_abs_pos_embed(tokens, new_size=[5, 5], num_prefix_tokens=1)
        assert torch.allclose(loaded.backbone.pos_embed, wanted)
        assert torch.equal(loaded.backbone.blocks[0].attn.qkv.weight, source.backbone.blocks[0].attn.qkv.weight)
        assert loaded.features(torch.rand(1, 3, 80, 80)).shape == (1, 64)


@pytest.mark.parametrize("channels", [1, 7])
def test_rgb_weights_are_adapted_to_other_channels(tiny: Tiny, tmp_path: Path, channels: int) -> None:
    from timm.models import adapt_input_conv

    source = build(tiny(backbone="resnet18"))
    torch.save(source.backbone.state_dict(), tmp_path / "rgb.pt")
    said: list[str] = []
    config = tiny(backbone="resnet18", weights=str(tmp_path / "rgb.pt"))
    loaded = build_encoder(config, channels, [0.4] * channels, [0.2] * channels, said.append).eval()
    assert torch.equal(loaded.backbone.conv1.weight, adapt_input_conv(channels, source.backbone.conv1.weight))
    assert loaded.mean.flatten().tolist() == pytest.approx([0.4] * channels)  # of the images: the file's are of RGB
    how = {1: "its filters summed", 7: "its filters repeated and scaled by 3/7, as timm does"}[channels]
    assert f"weights: first convolution (conv1) adapted from 3 to {channels} channels: {how}" in said


def test_torchvisions_weights_are_adapted_to_other_channels_and_it_is_said(tiny: Tiny, tmp_path: Path) -> None:
    from timm.models import adapt_input_conv
    from torchvision.models import VisionTransformer

    theirs = VisionTransformer(32, 16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768)
    save_file(theirs.state_dict(), tmp_path / "tv.safetensors")
    said: list[str] = []
    config = tiny(backbone="vit_tiny_patch16_224", weights=str(tmp_path / "tv.safetensors"))
    own = build_encoder(config, 6, [0.4] * 6, [0.2] * 6, said.append)
    assert torch.equal(own.backbone.patch_embed.proj.weight, adapt_input_conv(6, theirs.conv_proj.weight))
    assert any("first convolution (patch_embed.proj) adapted from 3 to 6 channels" in line for line in said)


def test_auto_follows_the_stem_of_a_checkpoint_and_another_one_starts_anew(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(backbone="resnet18", stem="small")
    source = build(config)
    path = own_checkpoint(source, config, tmp_path)
    loaded = build(tiny(backbone="resnet18", stem="auto", input_size=96, weights=path))
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded.features(images), source.features(images))
    standard = build(tiny(backbone="resnet18", stem="standard", weights=path))
    assert standard.backbone.conv1.kernel_size == (7, 7)
    assert torch.equal(standard.backbone.layer1[0].conv1.weight, source.backbone.layer1[0].conv1.weight)
    assert "small stem and stem=standard: the stem starts anew" in caplog.text
    # Resumed or embedded, a checkpoint has the stem that it was trained with, whatever `auto` says of its weights.
    again = restore_encoder(tiny(backbone="resnet18", stem="auto", weights="gone.pt"), source.state_dict(), Path(path))
    assert torch.equal(again.features(images), source.features(images))


def test_what_differs_is_named(tiny: Tiny, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "34.pt")
    with pytest.raises(UserError, match=r"'resnet18'.*belong to another network \(layer1\.2\..*set backbone"):
        build(tiny(backbone="resnet18", weights=str(tmp_path / "34.pt")))
    config = tiny()
    path = own_checkpoint(build(config), config, tmp_path)
    with pytest.raises(UserError, match=r"tensors are missing.*checkpoint of 'test_resnet.r160_in1k': set backbone="):
        build(tiny(backbone="resnet18", weights=path))
    short = {k: v for k, v in build(tiny(backbone="resnet18")).backbone.state_dict().items() if k != "conv1.weight"}
    save_file(short | {"bn1.weight": torch.zeros(8)}, tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"1 of \d+ tensors are missing \(conv1.weight\).*bn1.weight is 8 there and 64"):
        build(tiny(backbone="resnet18", weights=str(tmp_path / "short.safetensors")))


def test_other_numbers_of_channels_are_named(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny()
    path = own_checkpoint(build(config, 5), config, tmp_path)
    told = (
        r"trained on 5 channels, and here it is given 6 \(conv1.0.weight is .*×5×3×3 there .*; choose the same channels"
    )
    with pytest.raises(UserError, match=told):
        build(tiny(weights=path), 6)


@pytest.mark.parametrize("channels", [3, 5])
def test_a_files_normalisation_is_only_for_pictures(tiny: Tiny, tmp_path: Path, channels: int) -> None:
    config = tiny()
    path = own_checkpoint(build(config, channels), config, tmp_path)  # of mean 0.5
    said: list[str] = []
    others = tiny(weights=path, modality="multispectral")
    loaded = build_encoder(others, channels, [0.1] * channels, [0.2] * channels, said.append)
    assert loaded.mean.flatten().tolist() == pytest.approx([0.1] * channels)
    assert any("training part's own mean" in line and "not by the file's" in line for line in said)


def test_a_file_without_tensors_or_half_a_file_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="no tensors by name"):
        build(tiny(weights=str(tmp_path / "list.pt")))
    (tmp_path / "half.safetensors").write_bytes(b"\x20\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="not a file of weights alone"):
        build(tiny(weights=str(tmp_path / "half.safetensors")))


def test_a_hub_that_does_not_answer_is_given_up_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    # A closed port of this machine: its client would try again for most of a minute.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(UserError, match="weights: DEFAULT.*local file"):
        build(tiny(weights="DEFAULT"))
    assert time.monotonic() - started < weights.HUB_SECONDS + 3
    assert not constants.HF_HUB_OFFLINE


def test_a_checkpoint_of_an_earlier_version_is_refused_as_such(tmp_path: Path) -> None:
    content = vars(checkpoint.State({"conv1.weight": torch.zeros(1)}, {}, {}))
    torch.save({"format": 1, **content}, tmp_path / "old.ckpt")
    with pytest.raises(UserError, match=r"old\.ckpt: is of an earlier version of this project \(format 1\)"):
        weights.read_weights(tmp_path / "old.ckpt")
