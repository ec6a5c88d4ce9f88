from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import Encoder, build_encoder, restore_encoder
from phenoscape_tune.training import checkpoint

pytestmark = pytest.mark.slow  # timm takes seconds to import

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.2, 0.2]

Tiny = Callable[..., TrainConfig]


def build(config: TrainConfig, channels: int = 3) -> Encoder:
    return build_encoder(config, channels, [0.5] * channels, [0.2] * channels)


@pytest.mark.parametrize(("backbone", "width"), [("resnet18", 512), ("resnet50", 2048), ("test_vit.r160_in1k", 64)])
def test_features_and_projections_have_their_widths(tiny: Tiny, backbone: str, width: int) -> None:
    encoder = build(tiny(backbone=backbone, input_size=32, stem="auto", projection_dim=128))
    h, z = encoder(torch.rand(2, 3, 32, 32))
    assert h.shape == (2, width)
    assert z.shape == (2, 128)


def test_input_is_normalised_by_the_given_statistics(tiny: Tiny) -> None:
    encoder = build_encoder(tiny(), 3, MEAN, STD).eval()
    encoder.backbone = torch.nn.Flatten()
    image = torch.tensor(MEAN).view(1, 3, 1, 1) + 0.2
    assert torch.allclose(encoder.features(image), torch.ones(1, 3))


def test_a_constant_channel_does_not_divide_by_zero(tiny: Tiny) -> None:
    encoder = build_encoder(tiny(), 3, MEAN, [0.0, 0.1, 0.1]).eval()
    assert torch.isfinite(encoder.features(torch.rand(1, 3, 32, 32))).all()


def test_the_input_is_normalised_with_one_copy_and_to_the_same_bits(tiny: Tiny) -> None:
    encoder = build_encoder(tiny(), 7, [n / 10 for n in range(1, 8)], [0.01 * n for n in range(1, 8)])
    seen: list[torch.Tensor] = []
    encoder.backbone = torch.nn.Identity()
    encoder.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for layout in (torch.contiguous_format, torch.channels_last):
        images = torch.rand(4, 7, 32, 32).contiguous(memory_format=layout).requires_grad_()
        before = images.detach().clone()
        encoder.features(images).sum().backward()
        assert torch.equal(seen[-1], (before - encoder.mean) / encoder.std)
        assert seen[-1].is_contiguous(memory_format=layout)
        assert torch.equal(images.detach(), before)
        assert torch.allclose(images.grad, (1 / encoder.std).expand_as(images))
    images = torch.rand(4, 7, 64, 64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        encoder.features(images)
    copies = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert copies < 1.5 * images.nbytes


def test_the_small_stem_keeps_the_resolution_and_auto_takes_it_up_to_64_px(tiny: Tiny) -> None:
    def first(**changes: object) -> torch.nn.Module:
        return build(tiny(backbone="resnet18", **changes)).backbone

    for changes in ({"stem": "small", "input_size": 96}, {"stem": "auto", "input_size": 64}):
        backbone = first(**changes)
        assert backbone.conv1.kernel_size == (3, 3)
        assert backbone.conv1.stride == (1, 1)
        assert isinstance(backbone.maxpool, torch.nn.Identity)
    for changes in ({"stem": "standard", "input_size": 64}, {"stem": "auto", "input_size": 72}):
        assert first(**changes).conv1.kernel_size == (7, 7)


def test_a_small_stem_on_a_backbone_without_one_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="stem: small"):
        build(tiny(backbone="test_vit.r160_in1k", stem="small", input_size=32))


def test_any_number_of_channels(tiny: Tiny) -> None:
    h, _ = build(tiny(), channels=7)(torch.rand(2, 7, 32, 32))
    assert h.shape[0] == 2


@pytest.mark.parametrize(
    ("backbone", "size", "width"),
    [("vit_base_patch16_224", 32, 768), ("resnet101", 32, 2048), ("swin_tiny_patch4_window7_224", 64, 768)],
)
def test_the_guides_backbones_and_others_of_a_fixed_size_at_another(
    tiny: Tiny, backbone: str, size: int, width: int
) -> None:
    encoder = build(tiny(backbone=backbone, input_size=size, stem="auto")).eval()
    assert encoder.features(torch.rand(1, 3, size, size)).shape == (1, width)


def test_a_size_that_the_backbone_cannot_take_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match=r"input_size: 40.*divisible by patch size \(16\)"):
        build(tiny(backbone="test_vit.r160_in1k", input_size=40))


def test_an_unknown_backbone_names_the_nearest(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="resnet51.*did you mean 'resnet5"):
        build(tiny(backbone="resnet51"))


@pytest.mark.parametrize("kind", ["torch", "safetensors", "checkpoint"])
def test_weights_from_a_file(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    source = build(tiny(seed=1))
    for parameter in source.parameters():
        torch.nn.init.uniform_(parameter)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "torch":
        torch.save(source.backbone.state_dict(), path)
    elif kind == "safetensors":
        save_file(source.backbone.state_dict(), path)
    else:
        checkpoint.save(checkpoint.State(source.state_dict(), {}, {}), tmp_path, best=False)
        path = tmp_path / "last.ckpt"
    loaded = build(tiny(weights=str(path)))
    for own, other in zip(source.backbone.parameters(), loaded.backbone.parameters(), strict=True):
        assert torch.equal(own, other)


def test_weights_that_do_not_fit_or_are_missing_or_hold_code_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"tensors are missing.*1 belong.*\(other\)"):
        build(tiny(weights=str(tmp_path / "other.pt")))
    with pytest.raises(UserError, match="no such file"):
        build(tiny(weights=str(tmp_path / "none.pt")))
    mark = tmp_path / "executed"
    torch.save({"x": _Touch(mark)}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="weights alone"):
        build(tiny(weights=str(tmp_path / "code.pt")))
    assert not mark.exists()


def test_pretrained_weights_out_of_reach_are_a_plain_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real hub client, told that it is offline.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="weights: DEFAULT.*local file"):
        build(tiny(weights="DEFAULT"))


# Channels and pretrained weights


@pytest.fixture
def published(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Weights for RGB that timm loads, by its own way, where `weights: DEFAULT` is asked for; no hub is needed."""
    import timm
    from timm.models import _registry

    name = "test_resnet.r160_in1k"
    torch.manual_seed(7)
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "published.pt")
    known = _registry._model_pretrained_cfgs[name]
    replaced = dataclasses.replace(known, file=str(tmp_path / "published.pt"), hf_hub_id=None, url="")
    monkeypatch.setitem(_registry._model_pretrained_cfgs, name, replaced)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return whole


@pytest.mark.parametrize(
    ("channels", "told"),
    [
        (1, "from 3 to 1 channels: its filters summed"),
        (6, "from 3 to 6 channels: its filters repeated and scaled by 3/6, as timm does"),
    ],
)
def test_timms_own_weights_are_adapted_to_other_channels_and_it_is_said(
    tiny: Tiny, published: torch.nn.Module, channels: int, told: str
) -> None:
    from timm.models import adapt_input_conv

    said: list[str] = []
    config = tiny(weights="DEFAULT", modality="multispectral")
    encoder = build_encoder(config, channels, [0.4] * channels, [0.2] * channels, said.append)
    first = published.pretrained_cfg["first_conv"]
    wanted = adapt_input_conv(channels, published.get_parameter(f"{first}.weight"))
    assert torch.equal(encoder.backbone.get_parameter(f"{first}.weight"), wanted)
    assert torch.equal(encoder.backbone.layer2[0].conv1.weight, published.layer2[0].conv1.weight)
    assert f"weights: first convolution ({first}) adapted {told}" in said
    assert encoder.mean.flatten().tolist() == pytest.approx([0.4] * channels)
    assert any("the training part's own mean and deviation" in line for line in said)


def test_the_statistics_of_photographs_are_for_rgb_pictures_only(tiny: Tiny, published: torch.nn.Module) -> None:
    for modality, mean in (("auto", 0.5), ("rgb", 0.5), ("multispectral", 0.4), ("hyperspectral", 0.4)):
        said: list[str] = []
        encoder = build_encoder(tiny(weights="DEFAULT", modality=modality), 3, [0.4] * 3, [0.2] * 3, said.append)
        assert published.pretrained_cfg["mean"][0] == 0.5
        assert encoder.mean.flatten()[0].item() == pytest.approx(mean)
        assert not any("adapted" in line for line in said)


# A spectral stem


def spectral(config: TrainConfig, channels: int, seed: int = 0) -> Encoder:
    """An encoder whose spectral stem is no longer as it began."""
    torch.manual_seed(seed)
    encoder = build(config, channels)
    assert encoder.spectral_stem is not None
    for tensor in encoder.spectral_stem.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return encoder


def test_a_spectral_stem_mixes_the_channels_and_is_trained(tiny: Tiny) -> None:
    encoder = build(tiny(spectral_stem=4), 40)
    assert encoder.mean.shape == (1, 40, 1, 1)
    assert encoder.backbone.conv1[0].in_channels == 4
    h, z = encoder(torch.rand(2, 40, 32, 32))
    assert (h.shape[0], z.shape) == (2, (2, 16))
    z.square().sum().backward()
    assert encoder.spectral_stem[0].weight.grad.abs().sum() > 0


def test_layout_precision_and_compilation_change_nothing_behind_a_spectral_stem(tiny: Tiny) -> None:
    encoder = spectral(tiny(spectral_stem=4), 40).eval()
    images = torch.rand(2, 40, 32, 32)
    plain = encoder.features(images).detach()
    compiled = torch.compile(encoder, backend="aot_eager")(images)[0]
    assert torch.allclose(compiled, plain, atol=1e-5)
    laid_out = encoder.to(memory_format=torch.channels_last)
    assert torch.allclose(laid_out.features(images.contiguous(memory_format=torch.channels_last)), plain, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(encoder.features(images).float(), plain, atol=0.05 * float(plain.abs().max()))


def test_weights_for_rgb_stand_unchanged_behind_a_spectral_stem_of_three(
    tiny: Tiny, published: torch.nn.Module
) -> None:
    said: list[str] = []
    encoder = build_encoder(
        tiny(weights="DEFAULT", modality="hyperspectral", spectral_stem=3), 40, [0.4] * 40, [0.2] * 40, said.append
    )
    first = published.pretrained_cfg["first_conv"]
    assert torch.equal(encoder.backbone.get_parameter(f"{first}.weight"), published.get_parameter(f"{first}.weight"))
    assert encoder.mean.flatten().tolist() == pytest.approx([0.4] * 40)
    assert "spectral_stem: 40 channels are mixed to 3 by a learned 1x1 convolution" in said
    assert not any("adapted" in line for line in said)


@pytest.mark.parametrize("width", [7, 8])
def test_channels_that_are_no_more_than_a_spectral_stem_is_wide_are_not_mixed(tiny: Tiny, width: int) -> None:
    said: list[str] = []
    encoder = build_encoder(tiny(spectral_stem=width), 7, [0.5] * 7, [0.2] * 7, said.append)
    assert encoder.spectral_stem is None
    assert f"spectral_stem: {width}: the images have 7 channels, which the backbone takes as they are" in said
    restored = restore_encoder(tiny(spectral_stem=width), encoder.state_dict(), Path("x"))
    assert restored.spectral_stem is None and restored.mean.shape[1] == 7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": "resnet18", "stem": "small"},
        {"backbone": "test_vit.r160_in1k"},
    ],
)
def test_a_checkpoint_brings_its_spectral_stem_back(tiny: Tiny, changes: dict[str, object]) -> None:
    config = tiny(spectral_stem=3, **changes)
    encoder = spectral(config, 9).eval()
    images = torch.rand(2, 9, 32, 32)
    # What was trained counts, whatever the key says: embed.py reads the checkpoint's own configuration.
    for asked in (config, config.model_copy(update={"spectral_stem": None})):
        again = restore_encoder(asked, encoder.state_dict(), Path("last.ckpt"))
        assert torch.equal(again.features(images), encoder.features(images))
    state = {k: v for k, v in encoder.state_dict().items() if k != "spectral_stem.0.weight"}
    with pytest.raises(UserError, match="holds no encoder of this project"):
        restore_encoder(config, state, Path("last.ckpt"))


def test_a_run_may_start_from_a_checkpoint_with_a_spectral_stem(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = spectral(tiny(spectral_stem=3), 9)
    checkpoint.save(checkpoint.State(source.state_dict(), {}, {}), tmp_path, best=False)
    path = str(tmp_path / "last.ckpt")
    loaded = build(tiny(spectral_stem=3, weights=path), 9)
    for own, other in zip(source.spectral_stem.parameters(), loaded.spectral_stem.parameters(), strict=True):
        assert torch.equal(own, other)
    assert not caplog.text
    other = build(tiny(spectral_stem=3, weights=path), 12)
    assert "has a spectral stem from 9 channels to 3 and here it is from 12 to 3: it starts anew" in caplog.text
    assert torch.equal(other.backbone.layer1[0].conv1.weight, source.backbone.layer1[0].conv1.weight)
    build(tiny(weights=path), 3)
    assert "has a spectral stem, which is left out; spectral_stem=3 keeps it" in caplog.text
    wide = spectral(tiny(spectral_stem=5), 9)
    checkpoint.save(checkpoint.State(wide.state_dict(), {}, {}), tmp_path, best=False)
    with pytest.raises(UserError, match="it stands behind a spectral stem: set spectral_stem=5"):
        build(tiny(weights=path), 9)


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)
