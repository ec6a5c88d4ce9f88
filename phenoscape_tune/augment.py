"""Two random views of a batch, on the batch's device, for any number of channels (SimCLR, arXiv 2002.05709).

Parameters are drawn on the CPU by a seeded generator and then applied to the whole batch at once: crop, flip and
resize as one `grid_sample`; colour jitter and greyscale as one affine map a view; blur as a grouped separable
convolution over the views that were drawn for it. Folding crop, flip, resize and blur into two matrix products a view
was measured too: exact, but 2.5 to 7 times slower than `grid_sample` at 32 to 224 px on a CPU.
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
# On a CPU a slice of the batch that stays in cache is faster than the whole batch; measured flat from 2**18 to 2**20.
CPU_SLICE_VALUES = 2**19


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
        colourful = (self.cj_prob > 0 and self.cj_strength > 0) or self.random_gray_scale > 0
        if C < 3 and colourful:
            raise ValueError(
                f"colour augmentation needs red, green and blue, but images have {C} channel(s): "
                "set cj_prob and random_gray_scale to 0"
            )
        views = N // B
        xs, ys = _sampling_points(parameters, H, W, s, _samples_per_pixel(H, W, s), images.device)
        colour = _to(colour_maps(parameters), images.device) if colourful else None
        out = torch.empty(N, C, s, s, device=images.device)
        step = B
        if images.device.type == "cpu":
            step = max(1, min(B, CPU_SLICE_VALUES // (views * C * xs.shape[1] ** 2)))
        # A trainer may call this under autocast, whose half precision would lose the last bits of 8-bit images.
        with torch.autocast(images.device.type, enabled=False):
            for start in range(0, B, step):
                rows = slice(start, min(start + step, B))
                self._fill(out.view(views, B, C, s, s)[:, rows], images[rows], xs, ys, colour, parameters, start)
        return out
