"""Two random views of a batch, on the batch's device, for any number of channels (SimCLR, arXiv 2002.05709).

Parameters are drawn on the CPU by a seeded generator, then applied to many views at once: crop, flip and resize as
one `grid_sample`; brightness, contrast, saturation and greyscale as 3×3 matrices; blur as shifted sums over the views
drawn for it. Measured against these on a CPU at 32 to 224 px, and slower: crop and resize as two matrix products a
view (2.5 to 7 times), blur as a grouped convolution (oneDNN compiles anew for each number of views) or as matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601 luma as torchvision rounds it, so that greyscale, contrast and saturation agree to the last digit.
LUMA = (0.2989, 0.587, 0.114)
RATIO, CROP_TRIES = (3 / 4, 4 / 3), 10
HUE = 3  # a step's number in `ViewParameters.order`, after brightness, contrast and saturation
# An image packed for training is at most 8/7 of the input size, rounded up: plain bilinear sampling serves it.
UNFILTERED_DOWNSCALE = 1.2
# The share of a Gaussian beyond four standard deviations, 6e-5, is below an 8-bit image's resolution.
BLUR_REACH = 4
# Values worked on at a time: on a CPU what stays in its cache, on a GPU what bounds the extra memory.
CPU_SLICE, GPU_SLICE = 2**19, 2**27


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

    def share(self, part: int, parts: int, views: int = 2) -> ViewParameters:
        """What was drawn for one of `parts` equal runs of the images, `part` counting from 0."""
        rows = torch.arange(len(self.flip)).view(views, parts, -1)[:, part].flatten()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        last = ("box", "factors")  # the images are their last dimension
        return ViewParameters(**{key: value[:, rows] if key in last else value[rows] for key, value in values.items()})


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

    Colour acts on the first three channels. Raises ValueError that names every setting outside its range.
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
        if faults:
            raise ValueError("; ".join(faults))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Two views of each image: uint8 (B, C, H, W) → float32 (2B, C, input_size, input_size) in [0, 1].

        Rows i and i + B are a positive pair. Images may be on any device; the generator is on the CPU, so that one
        seed gives the same views everywhere. Raises ValueError for another dtype, shape or generator, and for colour
        settings when C < 3.
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
        )

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """The views that `parameters` describe; arguments, result and errors as `__call__`'s, for any number of views.

        A GPU is never waited for: what is drawn is copied to it from pinned memory.
        """
        _check_images(images)
        (B, C, _, _), s = images.shape, self.input_size
        views, rest = divmod(len(parameters.flip), B)
        if rest:
            raise ValueError(f"{len(parameters.flip)} views for {B} images: draw them for this batch size")
        jitters = self.cj_prob > 0 and self.cj_strength > 0
        recolours = jitters or self.random_gray_scale > 0
        if C < 3 and recolours:
            raise ValueError(f"colour needs red, green and blue, not {C} channel: set cj_prob, random_gray_scale to 0")
        xs, ys = _sampling_points(parameters, images, s)
        out = torch.empty(views, B, C, s, s, device=images.device)
        # A trainer may call this under autocast, whose half precision would lose the last bits of 8-bit images.
        with torch.autocast(images.device.type, enabled=False):
            before, after, turns = (_to(m, images.device).unflatten(0, (views, B)) for m in colour_maps(parameters))
            for rows in _slices(B, views * C * xs.shape[-1] ** 2, images.device):
                sampled = _sample(images[rows], xs[rows], ys[rows], s)  # (b, C, views, s, s) in 0…255
                for v in range(views):
                    view = torch.mul(sampled[:, :, v], 1 / 255, out=out[v, rows])  # (b, C, s, s)
                    if jitters:
                        _mix(view, before[v, rows])
                        _turn_hue(view, turns[v, rows])
                    if recolours:
                        _mix(view, after[v, rows])
        out = out.flatten(0, 1)  # (views·B, C, s, s)
        _blur(out, parameters.sigma, parameters.blur, max(1, int(self.kernel_size * s) // 2))
        return out


def plain_view(images: Tensor, input_size: int) -> Tensor:
    """The whole image resized, bilinear and antialiased: uint8 (B, C, H, W) → float32 (B, C, size, size) in [0, 1]."""
    _check_images(images)
    view = images.to(torch.float32) / 255
    if view.shape[-2:] == (input_size, input_size):
        return view
    return F.interpolate(view, (input_size, input_size), mode="bilinear", antialias=True).clamp_(0, 1)


def colour_maps(parameters: ViewParameters) -> tuple[Tensor, Tensor, Tensor]:
    """The colour steps of each view as an affine map, a turn of the hue in HSV (N,), and another affine map.

    A map is A and E, float32 (N, 2, 3, 3), of rgb ↦ A·rgb + E·(mean rgb). Brightness f: f·rgb. Saturation f: f·rgb +
    (1−f)·grey. Contrast f: f·rgb + (1−f)·mean(grey), where the mean within a chain is a linear map of that at its
    start. Greyscale comes last.
    """
    N = len(parameters.hue)
    b, c, s = torch.where(parameters.jitter, parameters.factors, 1.0)[..., None, None]  # (N, 1, 1) each
    one, zero, to_gray = (m.expand(N, 3, 3) for m in (torch.eye(3), torch.zeros(3, 3), torch.tensor([LUMA] * 3)))
    steps = torch.stack((b * one, c * one, s * one + (1 - s) * to_gray, one), dim=1)  # (N, 4, 3, 3)
    pulls = torch.stack((zero, (1 - c) * to_gray, zero, zero), dim=1)  # towards the mean
    identity = torch.stack((one, zero), dim=1)  # (N, 2, 3, 3)
    before = after = identity
    for kind in parameters.order.unbind(1):
        step, pull = steps[torch.arange(N), kind], pulls[torch.arange(N), kind]
        direct, of_mean = after.unbind(1)
        after = torch.stack((step @ direct, step @ of_mean + pull @ (direct + of_mean)), dim=1)
        turning = (kind == HUE).view(N, 1, 1, 1)
        before, after = torch.where(turning, after, before), torch.where(turning, identity, after)
    after = torch.where(parameters.gray.view(N, 1, 1, 1), to_gray[:, None] @ after, after)
    return before, after, torch.where(parameters.jitter, parameters.hue, 0.0)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected uint8 images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
    drawn = torch.cat((parameters.box, parameters.flip[None])).float()  # (5, N)
    top, left, h, w, flip = _to(drawn.view(5, -1, batch).mT.contiguous(), device)[..., None]  # (B, views, 1) each
    share = (torch.arange(n, device=device) + 0.5) / n
    columns = left + w * torch.where(flip > 0, 1 - share, share) - 0.5  # (B, views, n), whole at a pixel's centre
    rows = top + h * share - 0.5
    # A crop is cut out before it is resized: its border does not see the pixels beyond it.
    columns = torch.minimum(torch.maximum(columns, left), left + w - 1)
    rows = torch.minimum(torch.maximum(rows, top), top + h - 1)
    return (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1


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


def _mix(view: Tensor, maps: Tensor) -> None:
    """Apply maps (b, 2, 3, 3) to the first three channels of `view` (b, C, s, s) in place, clamped to [0, 1]."""
    rgb = view[:, :3].flatten(2)  # (b, 3, s·s)
    mixed = torch.baddbmm(maps[:, 1] @ rgb.mean(2, keepdim=True), maps[:, 0], rgb)
    torch.clamp(mixed.view_as(view[:, :3]), 0, 1, out=view[:, :3])


def _turn_hue(view: Tensor, turns: Tensor) -> None:
    """Shift the HSV hue of the first three channels of `view` (b, C, s, s) by turns (b,), in place."""
    r, g, b = view[:, :3].unbind(1)  # (b, s, s) each
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = torch.maximum(torch.maximum(r, g), b).sub_(low)
    # Flags as 0 and 1, selected by lerp: several times faster than `where` on a CPU.
    has_red, has_blue = (r - low).sign_(), (b - low).sign_()
    # Hue in sixths: 1 + (g−r)/chroma without blue, 3 + (b−g)/chroma without red, 5 + (r−b)/chroma without green.
    sixth = torch.lerp(g - r, torch.lerp(b - g, r - b, has_red), has_blue).div_(chroma.clamp_min(1e-9))
    sixth.add_(1 + 6 * turns[:, None, None]).add_(has_red.add_(1).mul_(has_blue), alpha=2)
    sixth.sub_((sixth / 6).floor_(), alpha=6)
    # Each primary is full within a sixth of its own hue and gone two sixths from it.
    torch.addcmul(low, chroma, (sixth - 3).abs_().sub_(1).clamp_(0, 1), out=r)
    torch.addcmul(low, chroma, (sixth - 2).abs_().neg_().add_(2).clamp_(0, 1), out=g)
    torch.addcmul(low, chroma, (sixth - 4).abs_().neg_().add_(2).clamp_(0, 1), out=b)


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
        taps = _to(taps / taps.sum(0), images.device)[..., None, None, None]  # (2·reach+1, n, 1, 1, 1)
        rows = _to(chosen_rows[block], images.device)
        padded = F.pad(images.index_select(0, rows), (reach,) * 4, mode="reflect")  # (n, C, s+2·reach, s+2·reach)
        across = padded[..., :s] * taps[0]
        for d in range(1, len(taps)):
            across.addcmul_(padded[..., d : d + s], taps[d])
        blurred = across[:, :, :s] * taps[0]
        for d in range(1, len(taps)):
            blurred.addcmul_(across[:, :, d : d + s], taps[d])
        images.index_copy_(0, rows, blurred.clamp_(0, 1))
