from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.errors import UserError
from phenoscape_tune.model import Encoder, build_encoder
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


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)
