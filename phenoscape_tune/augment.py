"""Two random views of a batch, on the batch's device, for any number of channels (SimCLR, arXiv 2002.05709).

In this order: crop, flip and resize; colour jitter and greyscale of red, green and blue; what `augment_spectra` does to
each channel; blur; noise and lost bands. docs/augmentation.md has the formulas.

Parameters are drawn on the CPU by a seeded generator, then applied to many views at once: crop, flip and resize as
one `grid_sample`; brightness, contrast, saturation and greyscale as one map of colours before and one after the hue
(`augment_colour`), on a GPU each a kernel; blur as shifted sums over the views drawn for it, on a GPU as a grouped
convolution. Measured against these on a CPU at 32 to 224 px, and slower: crop and resize as two matrix products a view
(2.5 to 7 times), blur as a grouped convolution (oneDNN compiles anew for each number of views) or as matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from phenoscape_tune.augment_blur import blur
from phenoscape_tune.augment_checks import check_transforms, meaningless
from phenoscape_tune.augment_colour import colour_maps, colours_of, put_back, recolour
from phenoscape_tune.augment_crop import draw_crops, sample, sampling_points
from phenoscape_tune.augment_device import send, slices
from phenoscape_tune.augment_spectra import NO_STEPS, NOTHING_DRAWN, Spectra, SpectralParameters, degrade, relight
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.transforms import TransformsConfig, scaled

FULL_SCALE = {torch.uint8: 255, torch.uint16: 65535}


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for N = views · B views of B images, on the CPU; row v·B + i is view v of image i."""

    box: Tensor  # int64 (4, N): top, left, height, width of the crop in pixels of the source
    flip: Tensor  # bool (N,), as are the other flags
    jitter: Tensor
    factors: Tensor  # float32 (3, N): brightness, contrast, saturation; used where `jitter` is set
    hue: Tensor  # float32 (N,), turns
    order: Tensor  # int64 (N, 4): the jitter's steps, 0 to 3 for brightness, contrast, saturation, hue
    gray: Tensor
    blur: Tensor
    sigma: Tensor  # float32 (N,), pixels of the view
    spectra: SpectralParameters = NOTHING_DRAWN

    def share(self, part: int, parts: int, views: int = 2) -> ViewParameters:
        """What was drawn for one of `parts` equal runs of the images, `part` counting from 0."""
        if parts == 1:
            return self
        rows = torch.arange(len(self.flip)).view(views, parts, -1)[:, part].flatten()
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "spectra"}
        last = ("box", "factors")  # the images are their last dimension
        own = {key: value[:, rows] if key in last else value[rows] for key, value in values.items()}
        return ViewParameters(**own, spectra=self.spectra.take(rows))


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """SimCLR's random views: crop and resize, flip, colour jitter, greyscale, blur (arXiv 2002.05709, appendix A).

    Distributions are those of `torchvision.transforms`; pixels differ in two ways. The jitter clamps before the hue
    step and at its end, torchvision after each step: on photographs a mean of 0.4 of 255 levels at cj_strength 0.5,
    none in most views. A crop is read without antialiasing up to a downscale of 1.2 (0.5 levels at 8/7); a larger
    source's pixels are means of several samples, where torchvision's antialiasing is a triangle.

    Args:
        input_size: side of a view, at least 2 pixels.
        cj_prob, random_gray_scale, gaussian_blur, hf_prob: probabilities of jitter, greyscale, blur, horizontal flip.
        cj_strength: scales the jitter's ranges (0.8, 0.8, 0.8, 0.2) of brightness, contrast, saturation, hue; 0 to 2.5.
        min_scale: smallest crop as a share of the image's area, in (0, 1].
        kernel_size: blur kernel as a share of `input_size`, in (0, 1]; made odd, at least 3 pixels.
        sigmas: bounds of blur's standard deviation in pixels, both positive.
        channels: those of the images. Jitter and greyscale act on red, green and blue, wherever they stand.
        spectra: what is done to each channel by itself; nothing by default.
        fill: what a lost band becomes, one number a channel, in [0, 1]; None: 0.5.

    Raises ValueError that names every setting outside its range, or without a meaning for the channels.
    """

    input_size: int
    cj_prob: float
    cj_strength: float
    min_scale: float
    random_gray_scale: float
    gaussian_blur: float
    kernel_size: float
    sigmas: tuple[float, float]
    hf_prob: float = 0.5
    channels: Channels = RGB
    spectra: Spectra = NO_STEPS
    fill: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("cj_prob", "random_gray_scale", "gaussian_blur", "hf_prob"), (0.0, 1.0))
        ranges |= {
            "input_size": (2, math.inf),
            "cj_strength": (0, 2.5),
            "min_scale": (1e-6, 1),
            "kernel_size": (1e-6, 1),
        }
        faults = [
            f"{name}={getattr(self, name)}: write a number from {low:g} to {high:g}"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if not (len(self.sigmas) == 2 and 0 < self.sigmas[0] <= self.sigmas[1] < math.inf):
            faults.append(f"sigmas={self.sigmas}: write two positive numbers, the smaller first")
        for key, reason in meaningless(self.channels).items():
            if getattr(self if hasattr(self, key) else self.spectra, key) > 0:
                faults.append(f"{key}: {reason}: set it to 0")
        if self.fill is not None and len(self.fill) != len(self.channels):
            faults.append(f"fill has {len(self.fill)} numbers for {len(self.channels)} channels")
        if faults:
            raise ValueError("; ".join(faults))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Two views of each image: uint8 or uint16 (B, C, H, W) → float32 (2B, C, input_size, input_size) in [0, 1].

        Rows i and i + B are a positive pair. Images may be on any device; the generator is on the CPU, so that one
        seed gives the same views everywhere. Raises ValueError for another dtype, shape or generator, and where C is
        not the number of `channels`.
        """
        B, H, W = len(images), images.shape[-2], images.shape[-1]
        return self.apply(images, self.draw(B, H, W, generator))

    def draw(self, batch: int, height: int, width: int, generator: torch.Generator, views: int = 2) -> ViewParameters:
        """Parameters of `views` views of each of `batch` images of height × width pixels."""
        if generator.device.type != "cpu":
            raise ValueError(f"the generator is on {generator.device}: write torch.Generator(), the CPU's")
        N = views * batch

        def happens(probability: float) -> Tensor:
            return torch.rand(N, generator=generator) < probability

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, N, generator=generator)

        strength = 0.8 * self.cj_strength
        return ViewParameters(
            box=draw_crops(N, height, width, self.min_scale, generator),
            flip=happens(self.hf_prob),
            jitter=happens(self.cj_prob),
            factors=uniform(max(0.0, 1 - strength), 1 + strength, 3),
            hue=uniform(-0.2 * self.cj_strength, 0.2 * self.cj_strength),
            order=torch.rand(N, 4, generator=generator).argsort(dim=1),
            gray=happens(self.random_gray_scale),
            blur=happens(self.gaussian_blur),
            sigma=uniform(*self.sigmas),
            spectra=self.spectra.draw(N, len(self.channels), generator),
        )

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """The views that `parameters` describe; arguments, result and errors as `__call__`'s, for any number of views.

        A GPU is never waited for: what is drawn is copied to it from pinned memory.
        """
        _check_images(images)
        (B, C, _, _), s = images.shape, self.input_size
        if len(self.channels) != C:
            raise ValueError(f"images of {C} channels, for {len(self.channels)}: {', '.join(self.channels.names)}")
        views, rest = divmod(len(parameters.flip), B)
        if rest:
            raise ValueError(f"{len(parameters.flip)} views for {B} images: draw them for this batch size")
        jitters = self.cj_prob > 0 and self.cj_strength > 0
        rgb = self.channels.rgb if jitters or self.random_gray_scale > 0 else None
        xs, ys = sampling_points(parameters.box, parameters.flip, images, s)
        out = torch.empty(views, B, C, s, s, device=images.device)
        spectra, unit = parameters.spectra, 1 / FULL_SCALE[images.dtype]
        # A trainer may call this under autocast, whose half precision would lose the last bits of 8-bit images.
        p, numbers = parameters, torch.arange(views * B).view(views, B)
        with torch.autocast(images.device.type, enabled=False):
            maps = send(colour_maps(p.jitter, p.factors, p.hue, p.order, p.gray), images.device).view(views, B, -1)
            parts = slices(B, views * C * xs.shape[-1] ** 2, images.device)
            # All views at once where they fit: a GPU has half as many kernels to be sent.
            together = [slice(0, views)] if len(parts) == 1 else [slice(v, v + 1) for v in range(views)]
            for rows in parts:
                sampled = sample(images[rows], xs[rows], ys[rows], s)  # (b, C, views, s, s) in 0…full scale
                for v in together:
                    view = out[v, rows].flatten(0, 1)  # (n, C, s, s), not a copy
                    torch.mul(sampled[:, :, v].permute(2, 0, 1, 3, 4), unit, out=out[v, rows])
                    if rgb is not None:
                        colours = colours_of(view, rgb)  # (n, 3, s, s)
                        recolour(colours, maps[v, rows].flatten(0, 1), jitters)
                        put_back(view, rgb, colours)
                    relight(view, spectra.take(numbers[v, rows].flatten()), self.channels.uv)
            out = out.flatten(0, 1)  # (views·B, C, s, s)
            blur(out, parameters.sigma, parameters.blur, max(1, int(self.kernel_size * s) // 2))
            degrade(out, spectra, self.fill)
        return out


def build_views(
    transforms: TransformsConfig,
    channels: Channels,
    input_size: int | None = None,
    fill: tuple[float, ...] | None = None,
) -> TwoViews:
    """The views that a configuration asks for, scaled by its `augmentation_strength`.

    Args:
        transforms: of a TrainConfig.
        channels: those of the images.
        input_size: side of a view in pixels; None: `transforms.input_size`.
        fill: as TwoViews'; best what the encoder subtracts of each channel, so that a lost band is a neutral one.

    Raises UserError where a step has no meaning for the channels.
    """
    check_transforms(transforms, channels)
    values = scaled(transforms).model_dump(exclude={"augmentation_strength"})
    if input_size is not None:
        values["input_size"] = input_size
    spectra = Spectra(**{field.name: values.pop(field.name) for field in fields(Spectra)})
    return TwoViews(**values, channels=channels, spectra=spectra, fill=fill)


def plain_view(images: Tensor, input_size: int) -> Tensor:
    """The whole image resized, bilinear and antialiased.

    Images uint8 or uint16 (B, C, H, W) → float32 (B, C, input_size, input_size) in [0, 1].
    """
    _check_images(images)
    view = images.to(torch.float32) / FULL_SCALE[images.dtype]
    if view.shape[-2:] == (input_size, input_size):
        return view
    return F.interpolate(view, (input_size, input_size), mode="bilinear", antialias=True).clamp_(0, 1)


def _check_images(images: Tensor) -> None:
    if images.dtype not in FULL_SCALE or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected uint8 or uint16 images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")
