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

import functools
import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phenoscape_tune.augment_checks import check_transforms, meaningless
from phenoscape_tune.augment_colour import colour_maps, colours_of, put_back, recolour
from phenoscape_tune.augment_spectra import NO_STEPS, NOTHING_DRAWN, Spectra, SpectralParameters, degrade, relight, send
from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.transforms import TransformsConfig, scaled

RATIO, CROP_TRIES = (3 / 4, 4 / 3), 10
# An image packed for training is at most 8/7 of the input size, rounded up: plain bilinear sampling serves it.
UNFILTERED_DOWNSCALE = 1.2
# The share of a Gaussian beyond four standard deviations, 6e-5, is below an 8-bit image's resolution.
BLUR_REACH = 4
# Values worked on at a time: on a CPU what stays in its cache, on a GPU what bounds the extra memory.
CPU_SLICE, GPU_SLICE = 2**19, 2**27
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
            box=_draw_crops(N, height, width, self.min_scale, generator),
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
        xs, ys = _sampling_points(parameters, images, s)
        out = torch.empty(views, B, C, s, s, device=images.device)
        spectra, unit = parameters.spectra, 1 / FULL_SCALE[images.dtype]
        # A trainer may call this under autocast, whose half precision would lose the last bits of 8-bit images.
        p, numbers = parameters, torch.arange(views * B).view(views, B)
        with torch.autocast(images.device.type, enabled=False):
            maps = send(colour_maps(p.jitter, p.factors, p.hue, p.order, p.gray), images.device).view(views, B, -1)
            slices = _slices(B, views * C * xs.shape[-1] ** 2, images.device)
            # All views at once where they fit: a GPU has half as many kernels to be sent.
            together = [slice(0, views)] if len(slices) == 1 else [slice(v, v + 1) for v in range(views)]
            for rows in slices:
                sampled = _sample(images[rows], xs[rows], ys[rows], s)  # (b, C, views, s, s) in 0…full scale
                for v in together:
                    view = out[v, rows].flatten(0, 1)  # (n, C, s, s), not a copy
                    torch.mul(sampled[:, :, v].permute(2, 0, 1, 3, 4), unit, out=out[v, rows])
                    if rgb is not None:
                        colours = colours_of(view, rgb)  # (n, 3, s, s)
                        recolour(colours, maps[v, rows].flatten(0, 1), jitters)
                        put_back(view, rgb, colours)
                    relight(view, spectra.take(numbers[v, rows].flatten()), self.channels.uv)
        out = out.flatten(0, 1)  # (views·B, C, s, s)
        _blur(out, parameters.sigma, parameters.blur, max(1, int(self.kernel_size * s) // 2))
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


def _slices(rows: int, values_per_row: int, device: torch.device) -> list[slice]:
    step = max(1, (CPU_SLICE if device.type == "cpu" else GPU_SLICE) // values_per_row)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _draw_crops(N: int, height: int, width: int, min_scale: float, generator: torch.Generator) -> Tensor:
    """N crops as `torchvision.transforms.RandomResizedCrop` draws them: int64 (4, N), top, left, height, width."""
    area = height * width * (min_scale + (1 - min_scale) * torch.rand(N, CROP_TRIES, generator=generator))
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** torch.rand(N, CROP_TRIES, generator=generator)  # log-uniform
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()  # (N, tries)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    found, first = fits.any(dim=1), fits.int().argmax(dim=1, keepdim=True)
    h = torch.where(found, h.gather(1, first).squeeze(1), min(height, round(width / RATIO[0])))
    w = torch.where(found, w.gather(1, first).squeeze(1), min(width, round(height * RATIO[1])))
    # In double precision u·n stays below n for u < 1, so that no corner leaves the image.
    u, v = torch.rand(2, N, generator=generator, dtype=torch.float64)
    top = torch.where(found, (u * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (v * (width - w + 1)).long(), (width - w) // 2)
    return torch.stack((top, left, h, w))


def _sampling_points(parameters: ViewParameters, images: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Columns and rows that the views read, in grid_sample's [-1, 1]: float32 (B, views, n), n a multiple of `size`."""
    (batch, _, height, width), device = images.shape, images.device
    n = size * max(1, math.ceil(max(height, width) / (size * UNFILTERED_DOWNSCALE)))
    extent = np.array((width, height))[:, None]
    first, length = parameters.box.numpy()[[[1, 0], [3, 2]]]  # (2, N) each: of columns, of rows, in pixels
    flipped = np.stack((parameters.flip.numpy(), np.zeros(len(parameters.flip), bool)))
    # On a line from one end of the crop to the other; a crop is cut out before it is resized, so that its border does
    # not see the pixels beyond it. Pixel p's centre stands at (2p + 1) / extent − 1.
    line = np.stack((first + flipped * length, np.where(flipped, -length, length))) * 2.0 / extent
    ends = (2.0 * np.stack((first, first + length - 1)) + 1) / extent
    numbers = np.concatenate((line - [[[1]], [[0]]], ends - 1)).astype(np.float32)  # (4, 2, N)
    drawn = send(torch.from_numpy(numbers).unflatten(2, (-1, batch)).mT.contiguous(), device)[..., None]
    start, slope, lowest, highest = drawn  # (2, B, views, 1) each
    points = torch.clamp(torch.addcmul(start, slope, _shares(n, device)), lowest, highest)
    return points[0], points[1]


@functools.cache
def _shares(n: int, device: torch.device) -> Tensor:
    """The middles of n equal parts of 0 … 1, (n,)."""
    return (torch.arange(n, device=device) + 0.5) / n


def _sample(images: Tensor, xs: Tensor, ys: Tensor, size: int) -> Tensor:
    """Read images (b, C, H, W) at the points xs × ys, (b, views, n) each → float32 (b, C, views, size, size)."""
    b, views, n = xs.shape
    # The views lie one below the other in a single grid, so that the images need not be repeated.
    grid = torch.empty(b, views, n, n, 2, device=images.device)
    grid[..., 0], grid[..., 1] = xs[:, :, None, :], ys[:, :, :, None]
    grid = grid.flatten(1, 2)  # (b, views·n, n, 2)
    source = images.to(torch.float32, memory_format=torch.contiguous_format)
    sampled = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if n != size:
        sampled = F.avg_pool2d(sampled, n // size)  # (b, C, views·size, size)
    return sampled.unflatten(2, (views, size))


def _blur(images: Tensor, sigma: Tensor, chosen: Tensor, radius: int) -> None:
    """Blur the chosen of `images` (N, C, s, s) in place, reflecting at the border; sigma, chosen (N,) on the CPU."""
    _, C, s, _ = images.shape
    chosen_rows = chosen.nonzero().squeeze(1)
    # Sorted, so that the narrow kernels come together and are spared the wide ones' taps.
    chosen_rows = chosen_rows[sigma[chosen_rows].argsort()]
    for block in _slices(len(chosen_rows), C * s * s, images.device):
        widths = sigma[chosen_rows[block]]
        reach = min(radius, math.ceil(BLUR_REACH * float(widths[-1])))
        offsets = torch.arange(-reach, reach + 1)[:, None]
        # Each kernel ends at its own reach, so that a view does not depend on which others are in its block.
        taps = torch.exp(-0.5 * (offsets / widths) ** 2) * (offsets.abs() <= (BLUR_REACH * widths).ceil())
        taps = send(taps / taps.sum(0), images.device)  # (2·reach+1, n)
        rows = send(chosen_rows[block], images.device)
        padded = F.pad(images.index_select(0, rows), (reach,) * 4, mode="reflect")  # (n, C, s+2·reach, s+2·reach)
        blurred = (_convolved if images.device.type == "cuda" else _summed)(padded, taps)
        images.index_copy_(0, rows, blurred.clamp_(0, 1))


def _convolved(padded: Tensor, taps: Tensor) -> Tensor:
    """Images (n, C, s+k-1, s+k-1) across and down with kernels (k, n) of their own, one group a channel of an image."""
    n, C, side, _ = padded.shape
    k = len(taps)
    kernels = taps.T.repeat_interleave(C, dim=0)  # (n·C, k)
    planes = padded.view(1, n * C, side, side)
    across = F.conv2d(planes, kernels[:, None, None], groups=n * C)
    return F.conv2d(across, kernels[:, None, :, None], groups=n * C).view(n, C, side - k + 1, side - k + 1)


def _summed(padded: Tensor, taps: Tensor) -> Tensor:
    """The same as shifted sums: on a CPU a grouped convolution would be compiled anew for each number of images."""
    s = padded.shape[-1] - len(taps) + 1
    weights = taps[..., None, None, None]  # (k, n, 1, 1, 1)
    across = padded[..., :s] * weights[0]
    for d in range(1, len(weights)):
        across.addcmul_(padded[..., d : d + s], weights[d])
    down = across[:, :, :s] * weights[0]
    for d in range(1, len(weights)):
        down.addcmul_(across[:, :, d : d + s], weights[d])
    return down
