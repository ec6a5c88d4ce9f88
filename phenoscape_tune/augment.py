"""Two random views of a batch, on the batch's device, for any number of channels (SimCLR, arXiv 2002.05709).

Parameters are drawn on the CPU by a seeded generator, then applied to many views at once: crop, flip and resize as
one `grid_sample`; brightness, contrast, saturation and greyscale as 3×3 matrices; blur as shifted sums over the views
drawn for it. Measured against these and slower on a CPU at 32 to 224 px: crop and resize as two matrix products a
view (2.5 to 7 times), blur as a grouped convolution (oneDNN compiles anew for each number of views) or as matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601 luma as torchvision rounds it, so that greyscale, contrast and saturation agree to the last digit.
LUMA = (0.2989, 0.587, 0.114)
RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# An image packed for training is at most 8/7 of the input size, rounded up: plain bilinear sampling serves it.
UNFILTERED_DOWNSCALE = 1.2
# The share of a Gaussian beyond four standard deviations, 6e-5, is below an 8-bit image's resolution.
BLUR_REACH = 4
# Values worked on at a time: on a CPU what stays in its cache, on a GPU what bounds the extra memory.
CPU_SLICE, GPU_SLICE = 2**19, 2**27


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for N = views · B views of B images; row v·B + i is view v of image i. All on the CPU.

    Crop box in pixels of the source, int64 (N,); `flip`, `jitter`, `gray`, `blur` bool (N,); the jitter's factors
    float32 (N,), hue in turns; `order` int64 (N, 4), the jitter's steps in the order of their application; `sigma`
    float32 (N,), pixels of the view. Factors and sigma are drawn for every view and used where its flag is set.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flip: Tensor
    jitter: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        return len(self.top)


@dataclass(frozen=True, kw_only=True)
class TwoViews:
    """SimCLR's random views: crop and resize, flip, colour jitter, greyscale, blur (arXiv 2002.05709, appendix A).

    Draws what `torchvision.transforms` draws; pixels differ from torchvision's in three stated ways:

    - jitter clamps once, after its four steps, where torchvision clamps after each one;
    - hue turns the colour about the grey axis, where torchvision shifts HSV hue: the same at multiples of a third of
      a turn, and within HUE_GAP on average between (saturated colours differ most);
    - a crop is read bilinearly, without antialiasing, up to a downscale of 1.2; a larger source is sampled on a finer
      grid and averaged, a box where torchvision's antialiasing is a triangle.

    Colour acts on the first three channels, geometry and blur on all.

    Args:
        input_size: side of a view, pixels, at least 2.
        cj_prob: probability of the colour jitter.
        cj_strength: scales its ranges (0.8, 0.8, 0.8, 0.2) for brightness, contrast, saturation, hue; 0 to 2.5.
        min_scale: smallest crop as a share of the image's area, in (0, 1].
        random_gray_scale: probability of greyscale.
        gaussian_blur: probability of blur.
        kernel_size: blur kernel as a share of `input_size`, in (0, 1]; rounded up to an odd size of at least 3.
        sigmas: blur's standard deviation is uniform between these two, pixels, both positive.
        hf_prob: probability of a horizontal flip.

    Raises:
        ValueError: a setting is outside its range.
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
        faults = [
            f"{name}={getattr(self, name)} is no probability: write a number from 0 to 1"
            for name in ("cj_prob", "random_gray_scale", "gaussian_blur", "hf_prob")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.input_size < 2:
            faults.append(f"input_size={self.input_size}: write at least 2 pixels")
        if not 0 <= self.cj_strength <= 2.5:
            faults.append(f"cj_strength={self.cj_strength}: write 0 to 2.5 (hue then spans the whole circle)")
        if not 0 < self.min_scale <= 1:
            faults.append(f"min_scale={self.min_scale}: write a share of the area above 0 and up to 1")
        if not 0 < self.kernel_size <= 1:
            faults.append(f"kernel_size={self.kernel_size}: write a share of input_size above 0 and up to 1")
        if not (len(self.sigmas) == 2 and 0 < self.sigmas[0] <= self.sigmas[1] < math.inf):
            faults.append(f"sigmas={self.sigmas}: write two positive numbers, the smaller first")
        if faults:
            raise ValueError("; ".join(faults))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Two views of each image.

        Args:
            images: uint8 (B, C, H, W), on any device.
            generator: on the CPU, so that one seed gives the same views on every device.

        Returns:
            float32 (2B, C, input_size, input_size) in [0, 1]: rows i and i + B are a positive pair.

        Raises:
            ValueError: colour settings with fewer than three channels; wrong dtype or shape; generator not on the CPU.
        """
        _check_images(images)
        B, _, H, W = images.shape
        return self.apply(images, self.draw(B, H, W, generator))

    def draw(self, batch: int, height: int, width: int, generator: torch.Generator, views: int = 2) -> ViewParameters:
        """Parameters of `views` views of `batch` images of height × width pixels; distributions as torchvision's."""
        if generator.device.type != "cpu":
            raise ValueError(f"the generator is on {generator.device}: write torch.Generator() (the CPU's)")
        N = views * batch

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(N, generator=generator)

        def happens(probability: float) -> Tensor:
            return torch.rand(N, generator=generator) < probability

        top, left, crop_height, crop_width = _draw_crops(N, height, width, self.min_scale, generator)
        strong = 0.8 * self.cj_strength
        weakest = max(0.0, 1 - strong)
        return ViewParameters(
            top=top,
            left=left,
            height=crop_height,
            width=crop_width,
            flip=happens(self.hf_prob),
            jitter=happens(self.cj_prob),
            brightness=uniform(weakest, 1 + strong),
            contrast=uniform(weakest, 1 + strong),
            saturation=uniform(weakest, 1 + strong),
            hue=uniform(-0.2 * self.cj_strength, 0.2 * self.cj_strength),
            order=torch.rand(N, 4, generator=generator).argsort(dim=1),
            gray=happens(self.random_gray_scale),
            blur=happens(self.gaussian_blur),
            sigma=uniform(*self.sigmas),
        )

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """The views that `parameters` (of length views · B) describe.

        Args:
            images: uint8 (B, C, H, W), on any device; a GPU is not synchronised.

        Returns:
            float32 (views · B, C, input_size, input_size) in [0, 1]; row v·B + i is view v of image i.

        Raises:
            ValueError: as `__call__`; or the parameters' number is no multiple of B.
        """
        _check_images(images)
        B, C, H, W = images.shape
        N, s = len(parameters), self.input_size
        if N % B:
            raise ValueError(f"{N} parameter rows for {B} images: draw them for this batch size")
        jitters = self.cj_prob > 0 and self.cj_strength > 0
        colourful = jitters or self.random_gray_scale > 0
        if C < 3 and colourful:
            raise ValueError(
                f"colour augmentation needs red, green and blue, but images have {C} channel(s): "
                "set cj_prob and random_gray_scale to 0"
            )
        views = N // B
        xs, ys = _sampling_points(parameters, B, H, W, s, images.device)
        before, after, turns = (_to(m, images.device).unflatten(0, (views, B)) for m in colour_maps(parameters))
        out = torch.empty(views, B, C, s, s, device=images.device)
        # A trainer may call this under autocast, whose half precision would lose the last bits of 8-bit images.
        with torch.autocast(images.device.type, enabled=False):
            for rows in _slices(B, views * C * xs.shape[-1] ** 2, images.device):
                sampled = _sample(images[rows], xs[rows], ys[rows], s)  # (b, C, views, s, s) in 0…255
                for v in range(views):
                    view = torch.mul(sampled[:, :, v], 1 / 255, out=out[v, rows])  # (b, C, s, s)
                    if jitters:
                        _mix(view, before[v, rows])
                        _turn_hue(view, turns[v, rows])
                    if colourful:
                        _mix(view, after[v, rows])
            out = out.flatten(0, 1)  # (N, C, s, s)
            _blur(out, parameters.sigma, parameters.blur, self.kernel_size)
        return out


def plain_view(images: Tensor, input_size: int) -> Tensor:
    """The evaluation's view: the whole image, resized bilinearly with antialiasing.

    Args:
        images: uint8 (B, C, H, W), on any device.
        input_size: side of the view, pixels.

    Returns:
        float32 (B, C, input_size, input_size) in [0, 1].

    Raises:
        ValueError: wrong dtype or shape.
    """
    _check_images(images)
    view = images.to(torch.float32) / 255
    if view.shape[-2:] == (input_size, input_size):
        return view
    return F.interpolate(view, (input_size, input_size), mode="bilinear", antialias=True).clamp_(0, 1)


def colour_maps(parameters: ViewParameters) -> tuple[Tensor, Tensor, Tensor]:
    """The chain of each view's colour steps as: an affine map, a turn of the hue, an affine map.

    A map is A and E, float32 (N, 2, 3, 3), of rgb ↦ A·rgb + E·(mean rgb of the view). Brightness f: f·rgb. Saturation
    f: f·rgb + (1−f)·grey. Contrast f: f·rgb + (1−f)·mean(grey), where the mean in the middle of a chain is itself a
    linear map of the mean at its start. Greyscale comes last. The turns are float32 (N,), 0 without jitter.
    """
    N = len(parameters)
    jitter = parameters.jitter
    b, c, sat = (
        torch.where(jitter, f, 1.0).view(N, 1, 1)
        for f in (parameters.brightness, parameters.contrast, parameters.saturation)
    )
    identity = torch.eye(3).expand(N, 3, 3)
    to_gray = torch.tensor(LUMA).expand(N, 3, 3)  # every row yields the luma
    steps = torch.stack((b * identity, c * identity, sat * identity + (1 - sat) * to_gray, identity), dim=1)
    pulls = torch.stack((0 * identity, (1 - c) * to_gray, 0 * identity, 0 * identity), dim=1)  # towards the mean
    neutral = torch.stack((identity, 0 * identity), dim=1)
    before = current = neutral
    for kind in parameters.order.unbind(1):
        step, pull = steps[torch.arange(N), kind], pulls[torch.arange(N), kind]
        direct, of_mean = current.unbind(1)
        current = torch.stack((step @ direct, step @ of_mean + pull @ (direct + of_mean)), dim=1)
        is_hue = (kind == HUE).view(N, 1, 1, 1)
        before = torch.where(is_hue, current, before)
        current = torch.where(is_hue, neutral, current)
    after = torch.where(parameters.gray.view(N, 1, 1, 1), to_gray[:, None] @ current, current)
    return before, after, torch.where(jitter, parameters.hue, 0.0)


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Normalised Gaussian weights at −radius … radius: sigma float32 (n,), pixels → float32 (n, 2·radius+1)."""
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    within = offsets.abs() <= (BLUR_REACH * sigma).ceil()[:, None]
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2) * within
    return weights / weights.sum(1, keepdim=True)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected uint8 images (B, C, H, W), got {images.dtype} {tuple(images.shape)}")


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; from pinned memory the copy is queued and the host does not wait for the GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _draw_crops(
    N: int, height: int, width: int, min_scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Top, left, height, width of N crops, int64 (N,); distributed as `torchvision.transforms.RandomResizedCrop`'s."""
    area = height * width * (min_scale + (1 - min_scale) * torch.rand(N, CROP_TRIES, generator=generator))
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = torch.exp(low + (high - low) * torch.rand(N, CROP_TRIES, generator=generator))
    w = (area * ratio).sqrt().round().long()  # (N, tries)
    h = (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    whole_h = min(height, round(width / RATIO[0]))
    whole_w = min(width, round(height * RATIO[1]))
    h = torch.where(found, h.gather(1, first).squeeze(1), whole_h)
    w = torch.where(found, w.gather(1, first).squeeze(1), whole_w)
    # In double precision u·n stays below n for u < 1, so that no corner leaves the image.
    u = torch.rand(2, N, generator=generator, dtype=torch.float64)
    top = torch.where(found, (u[0] * (height - h + 1)).long(), (height - h) // 2)
    left = torch.where(found, (u[1] * (width - w + 1)).long(), (width - w) // 2)
    return top, left, h, w


def _samples_per_pixel(height: int, width: int, size: int) -> int:
    """Grid points along each side of a view's pixel, so that no crop is read coarser than UNFILTERED_DOWNSCALE."""
    return max(1, math.ceil(max(height, width) / (size * UNFILTERED_DOWNSCALE)))


def _sampling_points(
    parameters: ViewParameters, batch: int, height: int, width: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Columns and rows that the views read, in grid_sample's [-1, 1]: float32 (B, views, n) each.

    n is a multiple of `size`: the least that reads no crop more coarsely than UNFILTERED_DOWNSCALE.
    """
    n = size * max(1, math.ceil(max(height, width) / (size * UNFILTERED_DOWNSCALE)))
    box = torch.stack((parameters.left, parameters.width, parameters.top, parameters.height, parameters.flip))
    box = box.float().view(5, -1, batch).transpose(1, 2).contiguous()  # (5, B, views)
    left, w, top, h, flip = _to(box, device)[..., None]  # (B, views, 1) each
    share = (torch.arange(n, device=device) + 0.5) / n
    columns = left + w * torch.where(flip > 0, 1 - share, share) - 0.5  # (B, views, n); pixel centres are whole
    rows = top + h * share - 0.5
    # A crop is cut out before it is resized: its border does not see the pixels beyond it.
    columns = torch.minimum(torch.maximum(columns, left), left + w - 1)
    rows = torch.minimum(torch.maximum(rows, top), top + h - 1)
    return (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1


def _sample(images: Tensor, xs: Tensor, ys: Tensor, size: int) -> Tensor:
    """Read `images` (b, C, H, W) at the points xs × ys, (b, views, n) each → float32 (b, C, views, size, size)."""
    b, views, n = xs.shape
    # The views lie one below the other in a single grid, so that the images need not be repeated.
    grid = torch.empty(b, views, n, n, 2, device=images.device)
    grid[..., 0] = xs[:, :, None, :]
    grid[..., 1] = ys[:, :, :, None]
    source = images.to(torch.float32, memory_format=torch.contiguous_format)
    sampled = F.grid_sample(
        source, grid.view(b, views * n, n, 2), mode="bilinear", padding_mode="border", align_corners=False
    )  # (b, C, views·n, n)
    if n != size:
        sampled = F.avg_pool2d(sampled, n // size)
    return sampled.unflatten(2, (views, size))


def _mix(view: Tensor, maps: Tensor) -> None:
    """Apply affine maps (b, 2, 3, 3) to the first three channels of `view` (b, C, s, s) in place; clamp to [0, 1]."""
    rgb = view[:, :3].flatten(2)  # (b, 3, s·s)
    direct, of_mean = maps.unbind(1)
    mixed = torch.baddbmm(of_mean @ rgb.mean(2, keepdim=True), direct, rgb)
    torch.clamp(mixed.view_as(view[:, :3]), 0, 1, out=view[:, :3])


def _turn_hue(view: Tensor, turns: Tensor) -> None:
    """Shift the HSV hue of the first three channels of `view` (b, C, s, s) in place by `turns` (b,)."""
    r, g, b = view[:, :3].unbind(1)  # (b, s, s) each
    top = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = top - low
    red, green = r == top, g == top
    sextant = torch.where(red, g - b, torch.where(green, b - r, r - g)).div_(chroma.clamp_min(1e-9))
    sextant += torch.where(red, 0.0, torch.where(green, 2.0, 4.0))
    sextant += 6 * turns[:, None, None]
    sextant.remainder_(6)
    # Each primary is full within one sextant of its own hue and gone two away from it.
    torch.addcmul(low, chroma, (sextant - 3).abs_().sub_(1).clamp_(0, 1), out=view[:, 0])
    torch.addcmul(low, chroma, (sextant - 2).abs_().neg_().add_(2).clamp_(0, 1), out=view[:, 1])
    torch.addcmul(low, chroma, (sextant - 4).abs_().neg_().add_(2).clamp_(0, 1), out=view[:, 2])


def _blur(images: Tensor, sigma: Tensor, chosen: Tensor, kernel_size: float) -> None:
    """Blur the `chosen` of `images` (N, C, s, s) in place, reflecting at the border; sigma and chosen (N,) on the CPU."""
    _, C, s, _ = images.shape
    size = int(kernel_size * s)
    radius = max(3, size + 1 - size % 2) // 2
    # Sorted by sigma, so that the narrow ones come together and are spared the wide ones' taps.
    order = sigma.argsort()
    order = order[chosen[order]]
    for block in _slices(len(order), C * s * s, images.device):
        rows = order[block]
        reach = min(radius, math.ceil(BLUR_REACH * float(sigma[rows[-1]])))
        taps = _to(gaussian_kernels(sigma[rows], reach), images.device).T[..., None, None, None]  # (k, n, 1, 1, 1)
        rows = _to(rows, images.device)
        padded = F.pad(images.index_select(0, rows), (reach,) * 4, mode="reflect")  # (n, C, s+2·reach, s+2·reach)
        across = padded[..., :s] * taps[0]
        for d in range(1, 2 * reach + 1):
            across.addcmul_(padded[..., d : d + s], taps[d])
        blurred = across[:, :, :s] * taps[0]
        for d in range(1, 2 * reach + 1):
            blurred.addcmul_(across[:, :, d : d + s], taps[d])
        images.index_copy_(0, rows, blurred.clamp_(0, 1))


def _slices(rows: int, values_per_row: int, device: torch.device) -> list[slice]:
    """Consecutive slices that cover `rows` rows, each of about as many values as the device works on best."""
    step = max(1, (CPU_SLICE if device.type == "cpu" else GPU_SLICE) // values_per_row)
    return [slice(start, start + step) for start in range(0, rows, step)]
