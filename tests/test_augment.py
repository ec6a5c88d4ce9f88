"""Drawn parameters against torchvision's distributions, pixels against torchvision's functional operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare, ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop

from phenoscape_tune.augment import TwoViews, ViewParameters, build_views, plain_view
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.errors import UserError
from phenoscape_tune.transforms import TransformsConfig

SETTINGS = {
    "input_size": 32,
    "cj_prob": 0.8,
    "cj_strength": 0.5,
    "min_scale": 0.08,
    "random_gray_scale": 0.2,
    "gaussian_blur": 0.5,
    "kernel_size": 0.1,
    "sigmas": (0.1, 2.0),
}
TOLERANCE = 1e-5  # in units of the [0, 1] range
BLUR_TOLERANCE = 5e-4  # kernels end at four standard deviations, torchvision's at kernel_size


def two_views(**changes: object) -> TwoViews:
    return TwoViews(**(SETTINGS | changes))  # type: ignore[arg-type]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def channels_of(C: int) -> Channels:
    """C channels, of which the first three are red, green and blue where there are so many."""
    return Channels(tuple(f"c{i}" for i in range(C)), rgb=(0, 1, 2) if C >= 3 else None)


def random_images(B: int, C: int, H: int, W: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8, generator=seeded(seed))


def untouched(N: int, side: int) -> ViewParameters:
    """Parameters of the identity for images of side × side pixels."""
    none = torch.zeros(N, dtype=torch.bool)
    return ViewParameters(
        box=torch.tensor([0, 0, side, side])[:, None].repeat(1, N),
        flip=none,
        jitter=none,
        factors=torch.ones(3, N),
        hue=torch.zeros(N),
        order=torch.arange(4).repeat(N, 1),
        gray=none,
        blur=none,
        sigma=torch.ones(N),
    )


@pytest.mark.parametrize(("height", "width", "min_scale"), [(64, 64, 0.08), (48, 96, 0.3), (20, 100, 0.9)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int, min_scale: float) -> None:
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [min_scale, 1], [3 / 4, 4 / 3]) for _ in range(3000)])
    box = two_views(min_scale=min_scale).draw(1500, height, width, seeded()).box.T  # (3000, 4)
    top, left, h, w = box.double().unbind(1)
    top_r, left_r, h_r, w_r = theirs.double().unbind(1)
    for mine, its in ((h * w, h_r * w_r), (w / h, w_r / h_r), (top, top_r), (left, left_r)):
        assert ks_2samp(mine.numpy(), its.numpy()).pvalue > 1e-3
    assert torch.stack((top, left)).min() >= 0
    assert (top + h <= height).all()
    assert (left + w <= width).all()


def test_jitter_factors_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(1)
    jitter = ColorJitter(0.8 * 0.5, 0.8 * 0.5, 0.8 * 0.5, 0.2 * 0.5)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = [ColorJitter.get_params(*ranges) for _ in range(2000)]
    ours = two_views().draw(1000, 36, 36, seeded())
    for k, mine in enumerate((*ours.factors, ours.hue), start=1):
        assert ks_2samp(mine.numpy(), [p[k] for p in theirs]).pvalue > 1e-3
    _, counts = ours.order.unique(dim=0, return_counts=True)
    assert len(counts) == 24  # every order of four steps occurs, and equally often
    assert chisquare(counts.numpy()).pvalue > 1e-3


def test_strong_jitter_has_no_negative_factors() -> None:
    assert two_views(cj_strength=2.0).draw(500, 36, 36, seeded()).factors.min() >= 0


def test_flags_and_sigma_have_their_probabilities() -> None:
    drawn = two_views(cj_prob=0.8, random_gray_scale=0.2, gaussian_blur=0.35).draw(2000, 36, 36, seeded())
    for flag, probability in ((drawn.flip, 0.5), (drawn.jitter, 0.8), (drawn.gray, 0.2), (drawn.blur, 0.35)):
        assert binomtest(int(flag.sum()), len(flag), probability).pvalue > 1e-3
    assert kstest(drawn.sigma.numpy(), "uniform", args=(0.1, 1.9)).pvalue > 1e-3


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 36, 36), (3, 7, 20, 25), (30, 1, 5, 32), (35, 35, 1, 1)])
def test_crop_resize_and_flip_equal_torchvisions(box: tuple[int, int, int, int], flip: bool) -> None:
    images = random_images(2, 5, 36, 36)
    parameters = replace(
        untouched(2, 36), box=torch.tensor(box)[:, None].repeat(1, 2), flip=torch.full((2,), flip, dtype=torch.bool)
    )
    expected = TF.resized_crop(images / 255, *box, [32, 32], antialias=False)
    if flip:
        expected = TF.horizontal_flip(expected)
    torch.testing.assert_close(
        two_views(channels=channels_of(5)).apply(images, parameters), expected, atol=TOLERANCE, rtol=0
    )


def test_large_source_is_nearly_antialiased() -> None:
    """White noise shrunk four times: 0.29 of contrast, of which bilinear reading alone would keep most."""
    images = random_images(2, 3, 128, 128)
    expected = TF.resize(images / 255, [32, 32], antialias=True)
    aliased = TF.resize(images / 255, [32, 32], antialias=False)
    ours = two_views().apply(images, untouched(2, 128))
    assert (ours - expected).std() < 0.06
    assert (ours - expected).std() < 0.4 * (aliased - expected).std()


@pytest.mark.parametrize("kind", range(4))
def test_each_jitter_step_equals_torchvisions(kind: int) -> None:
    values = torch.tensor([[0.6, 0.9, 1.0, 1.4]] * 3 + [[-0.1, 0.03, 0.2, 0.5]])
    images = random_images(4, 3, 32, 32)
    images[0] = 77  # grey, where hue is undefined
    factors = torch.ones(4, 4)
    factors[kind] = values[kind]
    parameters = replace(
        untouched(4, 32), jitter=torch.ones(4, dtype=torch.bool), factors=factors[:3], hue=factors[3] * (kind == 3)
    )
    step = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[kind]
    expected = torch.stack([step(i / 255, float(f)) for i, f in zip(images, values[kind], strict=True)])
    torch.testing.assert_close(two_views().apply(images, parameters), expected, atol=TOLERANCE, rtol=0)


def test_jitter_in_any_order_equals_torchvisions_where_nothing_clips() -> None:
    N = 48
    drawn = two_views(cj_strength=0.3, cj_prob=1).draw(N, 32, 32, seeded(), views=1)
    images = random_images(N, 3, 32, 32) // 4 + 80  # mid-tones, which no step pushes out of the range
    parameters = replace(
        untouched(N, 32), jitter=drawn.jitter, factors=drawn.factors, hue=drawn.hue, order=drawn.order, gray=drawn.gray
    )
    steps = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    expected = []
    for i, image in enumerate(images / 255):
        for kind in drawn.order[i].tolist():
            image = steps[kind](image, float(torch.cat((drawn.factors, drawn.hue[None]))[kind, i]))
        expected.append(TF.rgb_to_grayscale(image, 3) if drawn.gray[i] else image)
    ours = two_views().apply(images, parameters)
    assert 0 < drawn.gray.sum() < N
    torch.testing.assert_close(ours, torch.stack(expected), atol=5e-5, rtol=0)


def test_grayscale_equals_torchvisions() -> None:
    images = random_images(3, 3, 32, 32)
    parameters = replace(untouched(3, 32), gray=torch.tensor([True, False, True]))
    ours = two_views().apply(images, parameters)
    torch.testing.assert_close(ours[::2], TF.rgb_to_grayscale(images[::2] / 255, 3), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours[1], images[1] / 255, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("kernel_size", "kernel"), [(0.05, 3), (0.1, 3), (0.2, 7), (0.22, 7), (0.5, 17)])
def test_blur_equals_torchvisions(kernel_size: float, kernel: int) -> None:
    images = random_images(5, 4, 32, 32)
    sigma = torch.tensor([2.0, 0.1, 1.3, 0.5, 0.8])
    chosen = torch.tensor([True, True, False, True, True])
    blurred = two_views(kernel_size=kernel_size, channels=channels_of(4))
    ours = blurred.apply(images, replace(untouched(5, 32), blur=chosen, sigma=sigma))
    for i, image in enumerate(images / 255):
        expected = TF.gaussian_blur(image, [kernel, kernel], [float(sigma[i])] * 2) if chosen[i] else image
        torch.testing.assert_close(ours[i], expected, atol=BLUR_TOLERANCE, rtol=0)


def test_same_seed_same_views_whatever_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(6, 3, 36, 36)
    first = two_views()(images, seeded(3))
    assert torch.equal(first, two_views()(images, seeded(3)))
    assert not torch.equal(first, two_views()(images, seeded(4)))
    monkeypatch.setattr("phenoscape_tune.augment_device.CPU_SLICE", 2**12)
    torch.testing.assert_close(two_views()(images, seeded(3)), first, atol=TOLERANCE, rtol=0)


def test_views_come_one_after_the_other_and_differ() -> None:
    images = torch.arange(0, 240, 40, dtype=torch.uint8).view(6, 1, 1, 1).repeat(1, 3, 36, 36)
    views = two_views(cj_prob=0, random_gray_scale=0)(images, seeded()).view(2, 6, 3, 32, 32)
    torch.testing.assert_close(views[0], views[1], atol=TOLERANCE, rtol=0)  # flat images: only their order is seen
    torch.testing.assert_close(views[0, :, 0, 0, 0], images[:, 0, 0, 0] / 255, atol=TOLERANCE, rtol=0)
    views = two_views()(random_images(6, 3, 36, 36), seeded()).view(2, 6, -1)
    assert ((views[0] - views[1]).abs().mean(1) > 0.01).all()


def test_half_precision_of_a_trainer_does_not_reach_the_views() -> None:
    images = random_images(4, 3, 36, 36)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = two_views()(images, seeded())
    assert torch.equal(views, two_views()(images, seeded()))


def test_channels_beyond_three_keep_their_values() -> None:
    images = random_images(4, 7, 36, 36)
    coloured = two_views(cj_prob=1, random_gray_scale=0.5, gaussian_blur=1, channels=channels_of(7))
    drawn = coloured.draw(4, 36, 36, seeded())
    plain = replace(drawn, jitter=torch.zeros(8, dtype=torch.bool), gray=torch.zeros(8, dtype=torch.bool))
    changed, unchanged = coloured.apply(images, drawn), coloured.apply(images, plain)
    assert torch.equal(changed[:, 3:], unchanged[:, 3:])
    assert ((changed - unchanged)[:, :3].abs().amax((1, 2, 3)) > 0.01).all()


def test_faults_are_named() -> None:
    one_channel = random_images(2, 1, 36, 36)
    for changes in ({"cj_prob": 0}, {"random_gray_scale": 0}):
        with pytest.raises(ValueError, match=r"red, green and blue, and the images have 1 channel \(c0\)"):
            two_views(**changes, channels=channels_of(1))
    colourless = two_views(cj_prob=0, random_gray_scale=0, channels=channels_of(1))
    assert colourless(one_channel, seeded()).shape == (4, 1, 32, 32)
    with pytest.raises(ValueError, match="images of 1 channels, for 3: red, green, blue"):
        two_views()(one_channel, seeded())
    with pytest.raises(ValueError, match="uint8"):
        two_views()(torch.rand(2, 3, 36, 36), seeded())
    with pytest.raises(ValueError, match="5 views for 2 images"):
        two_views().apply(random_images(2, 3, 36, 36), untouched(5, 36))
    with pytest.raises(ValueError, match=r"cj_prob=1\.5.*min_scale=0.*sigmas"):
        two_views(cj_prob=1.5, min_scale=0, sigmas=(2.0, 1.0))


def test_plain_view_is_torchvisions_resize() -> None:
    images = random_images(2, 5, 50, 70)
    expected = TF.resize(images / 255, [32, 32], antialias=True)
    torch.testing.assert_close(plain_view(images, 32), expected, atol=TOLERANCE, rtol=0)
    fitting = random_images(2, 3, 32, 32)
    assert torch.equal(plain_view(fitting, 32), fitting / 255)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_settings_give_finite_views_in_range(data: st.DataObject) -> None:
    share = st.floats(0, 1)
    low = data.draw(st.floats(0.01, 5))
    B, C = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 2, 3, 4, 7]))
    H, W, size = (data.draw(st.integers(low, 80)) for low in (1, 1, 2))
    views = TwoViews(
        input_size=size,
        cj_prob=data.draw(share) if C >= 3 else 0,
        cj_strength=data.draw(st.floats(0, 2.5)),
        min_scale=data.draw(st.floats(0.001, 1)),
        random_gray_scale=data.draw(share) if C >= 3 else 0,
        gaussian_blur=data.draw(share),
        kernel_size=data.draw(st.floats(0.01, 1)),
        sigmas=(low, low + data.draw(st.floats(0, 5))),
        hf_prob=data.draw(share),
        channels=channels_of(C),
    )(random_images(B, C, H, W), seeded(data.draw(st.integers(0, 2**32))))
    assert views.shape == (2 * B, C, size, size)
    assert views.dtype == torch.float32
    assert torch.isfinite(views).all()
    assert views.min() >= 0
    assert views.max() <= 1


# The views of a configuration


def test_a_configurations_views_are_its_transforms() -> None:
    images = random_images(4, 3, 40, 40)
    views = build_views(TransformsConfig(**SETTINGS), RGB)
    assert torch.equal(views(images, seeded(1)), two_views()(images, seeded(1)))
    assert build_views(TransformsConfig(), RGB, input_size=48).input_size == 48
    spectral = build_views(TransformsConfig(gain_prob=0.4, gain_strength=0.3), RGB, 32, fill=(0.1, 0.2, 0.3))
    assert (spectral.spectra.gain_prob, spectral.spectra.gain_strength) == (0.4, 0.3)
    assert spectral.fill == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="fill has 2 numbers for 3 channels"):
        build_views(TransformsConfig(), RGB, 32, fill=(0.1, 0.2))
    with pytest.raises(UserError, match=r"(?s)transforms.cj_prob: 0.8: .*transforms.random_gray_scale"):
        build_views(TransformsConfig(), channels_of(1), 32)


def test_without_strength_a_view_is_the_whole_image_perhaps_flipped() -> None:
    images = random_images(8, 3, 32, 32)
    everything = TransformsConfig(
        augmentation_strength=0, gain_prob=1, offset_prob=1, noise_prob=1, band_dropout_prob=1, gaussian_blur=1
    )
    views = build_views(everything, RGB, 32)(images, seeded()).view(2, 8, 3, 32, 32)
    plain = images / 255
    for view in views.unbind(0):
        for seen, whole in zip(view, plain, strict=True):
            flipped = whole.flip(-1)
            distance = min(float((seen - whole).abs().max()), float((seen - flipped).abs().max()))
            assert distance < TOLERANCE
    flips = (views[0, :, :, :, 0] - plain[:, :, :, -1]).abs().amax((1, 2)) < TOLERANCE
    assert 0 < flips.sum() < 8


def test_more_strength_takes_the_views_further_from_the_image() -> None:
    images = random_images(64, 3, 36, 36)
    written = TransformsConfig(gain_prob=0.8, offset_prob=0.5, noise_prob=0.5, min_scale=0.5, hf_prob=0)
    plain = plain_view(images, 32)
    distances = []
    for strength in (0, 0.5, 1, 1.5, 2):
        transform = build_views(written.model_copy(update={"augmentation_strength": strength}), RGB, 32)
        distances.append(float((transform(images, seeded())[:64] - plain).abs().mean()))
    assert distances == sorted(distances)
    assert distances[0] < 0.5 * distances[1]  # what resizing alone does


# What version e82065b, before there were steps for spectra, made of these settings: the mean of the views, the mean of
# their products with a ramp over all values, and the generator's next number, which tells how much was drawn.
BEFORE = {
    "settings": ({}, (0.4881810107, -0.0018841053, 381213320)),
    "stronger": ({"input_size": 64, "cj_strength": 1.2}, (0.4548180776, 0.0030196099, 381213320)),
    "no jitter": ({"cj_prob": 0}, (0.5011838858, -0.000292771, 381213320)),
    "no colour": ({"cj_prob": 0, "random_gray_scale": 0}, (0.5006647171, -7.03924e-05, 381213320)),
}


@pytest.mark.parametrize("name", BEFORE)
def test_rgb_views_are_what_they_were(name: str) -> None:
    changes, (mean, ramp_mean, following) = BEFORE[name]
    generator, images = seeded(3), random_images(16, 3, 37, 37)
    two_views(**changes)(images, generator)
    views = two_views(**changes)(images, generator).double().flatten()
    assert float(views.mean()) == pytest.approx(mean, abs=1e-7)
    assert float((views * torch.linspace(-1, 1, len(views), dtype=torch.float64)).mean()) == pytest.approx(
        ramp_mean, abs=1e-7
    )
    assert int(torch.randint(2**31, (1,), generator=generator)) == following
