"""Where a generated specimen's wings, body, pattern, background and light lie: what its pictures of any kind share.

Each picture is computed backwards: every pixel is carried into the butterfly's own frame, where wings and patterns are
formulas. Fields are float arrays (S, S) over the picture, x to the right and y downwards from −1 to 1.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

OVERSAMPLING = 2  # pixels drawn for each of a picture's, along a side


@dataclass(frozen=True)
class Wing:
    """One pair of wings in the butterfly's frame; fields of float32 (S, S)."""

    along: np.ndarray
    """0 at the root, 1 at the tip."""
    across: np.ndarray
    """−1 at the rear edge, 1 at the front edge."""
    inside: np.ndarray
    """Distance to the nearest edge in body lengths, negative outside."""


def picture_plane(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel: float32 (side, side) each."""
    ys, xs = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    return xs, ys


def edge_width(side: int) -> float:
    """How soft an edge is drawn, so that it has no steps."""
    return 2.5 / side


def step(values: np.ndarray, width: float) -> np.ndarray:
    """0 below −width, 1 above width, smooth between."""
    t = np.clip(values / (2 * width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def texture(side: int, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, 0..1, float32 (side, side), of about ``cells`` blobs down and across."""
    grid = Image.fromarray(rng.random(cells, dtype=np.float32))
    return np.clip(np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)


def background_mixture(xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How a background's two tones mix, 0..1: blobs, grass-like streaks and a gradient."""
    side = len(xs)
    fine = int(rng.integers(8, 24))
    streaks = (int(rng.integers(2, 5)), int(rng.integers(12, 30)))
    mix = texture(side, (4, 4), rng) * rng.uniform(0.2, 1) + texture(side, (fine, fine), rng) * rng.uniform(0.1, 0.6)
    mix += texture(side, streaks if rng.random() < 0.5 else streaks[::-1], rng) * rng.uniform(0, 0.7)
    angle = rng.uniform(0, 2 * np.pi)
    mix += 0.3 * (np.cos(angle) * xs + np.sin(angle) * ys)
    return np.clip((mix - mix.mean()) * rng.uniform(0.5, 1.6) + 0.5, 0, 1)


def background_patches(side: int, rng: np.random.Generator) -> np.ndarray:
    """How much of a third tone covers a background, 0..1: a few soft patches."""
    return step(texture(side, (3, 3), rng) - rng.uniform(0.45, 0.9), 0.1) * rng.uniform(0, 0.9)


def to_body_frame(xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's place beside (+ right) and ahead of the body's middle: turned, moved, scaled and seen aslant."""
    angle = rng.uniform(-1, 1) * np.radians(30)
    scale = rng.uniform(0.92, 1.15)
    dx, dy = rng.uniform(-0.09, 0.09, 2)
    x, y = (xs - dx) / scale, (dy - ys) / scale
    across = np.cos(angle) * x + np.sin(angle) * y
    ahead = -np.sin(angle) * x + np.cos(angle) * y
    across = across / rng.uniform(0.8, 1) + rng.uniform(-0.12, 0.12) * ahead
    # One side is often raised a little towards the viewer.
    raised = rng.uniform(0.78, 1, 2)
    return np.where(across > 0, across / raised[0], across / raised[1]), ahead / rng.uniform(0.9, 1)


def spread_wings(across: np.ndarray, ahead: np.ndarray, rng: np.random.Generator) -> tuple[Wing, Wing]:
    """Fore and hind wings; how far they are spread differs between specimens and a little between the sides."""
    lean = np.where(across > 0, rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07))
    fore_angle = np.radians(rng.uniform(28, 44)) + lean
    hind_angle = np.radians(rng.uniform(-46, -32)) + lean
    beside = np.abs(across)
    fore = _wing(beside, ahead - 0.08, fore_angle, 0.98 * rng.uniform(0.94, 1.06), 0.36 * rng.uniform(0.9, 1.1))
    hind = _wing(beside, ahead + 0.02, hind_angle, 0.80 * rng.uniform(0.94, 1.06), 0.37 * rng.uniform(0.9, 1.1))
    return fore, hind


def _wing(beside: np.ndarray, ahead: np.ndarray, angle: np.ndarray, length: float, width: float) -> Wing:
    along = (np.cos(angle) * beside + np.sin(angle) * ahead) / length
    offset = -np.sin(angle) * beside + np.cos(angle) * ahead
    reach = np.clip(along, 0, 1)
    # Narrow at the root, widest at two thirds, blunt at the tip.
    half = width * np.sqrt(np.clip(1 - (2 * reach**1.3 - 1) ** 4, 0, 1)) * (0.35 + 0.65 * reach**0.8)
    inside = np.where((along > 0) & (along < 1), half - np.abs(offset), -1.0)
    return Wing(along, np.clip(offset / np.maximum(half, 1e-3), -1.5, 1.5), inside)


def body_parts(
    across: np.ndarray, ahead: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How much of each pixel trunk, head and antennae cover, 0..1."""
    soft = edge_width(len(across))
    body = np.hypot(across / rng.uniform(0.05, 0.075), (ahead + 0.05) / rng.uniform(0.34, 0.42))
    head = np.hypot(across, ahead - 0.36) / 0.075
    antennae = np.abs(np.abs(across) - 0.45 * (ahead - 0.38)) + 9 * np.clip(np.abs(ahead - 0.55) - 0.15, 0, None)
    return step(0.05 * (1 - body), soft), step(1 - head, 0.3), 0.8 * step(0.018 - antennae, soft)


def individual_style(rng: np.random.Generator) -> dict[str, float]:
    """What differs between the patterns of one species' specimens."""
    return {
        "number": rng.uniform(0.88, 1.12),
        "width": rng.uniform(0.8, 1.2),
        "shift": rng.uniform(-0.05, 0.05),
        "strength": rng.uniform(0.75, 1.0),
    }


def wing_pattern(name: str, wing: Wing, style: dict[str, float]) -> np.ndarray:
    """How much of the mark's colour each pixel of a wing has: float (S, S), 0..1."""
    along, across = wing.along + style["shift"], wing.across
    if name == "banded":
        wave = np.sin(2 * np.pi * 2.4 * style["number"] * (along + 0.10 * across**2))
        marked = step(wave - 0.15 / style["width"], 0.3)
    elif name == "striped":
        wave = np.sin(np.pi * 3.0 * style["number"] * across + 0.6)
        marked = step(wave - 0.15 / style["width"], 0.3)
    elif name == "spotted":
        rows, columns = along * 3.9 * style["number"], across * 1.6 + 0.5
        columns = columns + 0.5 * (np.floor(rows) % 2)
        distance = np.hypot(rows - np.floor(rows) - 0.5, (columns - np.floor(columns) - 0.5) * 1.1)
        marked = step(0.31 * style["width"] - distance, 0.1)
    elif name == "bordered":
        border = 0.12 * style["width"] - np.minimum(wing.inside, 0.9 * (1 - along))
        dots = np.cos(2 * np.pi * 4 * style["number"] * across) * np.cos(2 * np.pi * 5 * along) - 0.55
        marked = step(border, 0.02) * (1 - 0.9 * step(dots, 0.2))
    elif name == "patched":
        marked = np.maximum(step(along - 0.62 - 0.12 * across, 0.05), 0.7 * step(0.26 * style["width"] - along, 0.15))
    elif name == "eyespotted":
        marked = 0.35 * np.clip(along, 0, 1) ** 2
    else:
        raise ValueError(f"no wing pattern is called {name!r}")
    return marked * style["strength"]


def wing_shade(wing: Wing) -> np.ndarray:
    """How light a wing's surface is, 0.6..1.15: it is vaulted."""
    return np.clip(0.82 + 0.25 * np.clip(wing.along, 0, 1) + 0.08 * wing.across, 0.6, 1.15)


def wing_rim(wing: Wing) -> np.ndarray:
    """How light a wing is towards its edge, 0.55..1: it bends away there."""
    return np.clip(wing.inside / 0.035, 0.55, 1)


def cast_shadow(covered: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darkening (0..1) of the background beside the butterfly, which covers ``covered`` (0..1) of each pixel."""
    side = len(covered)
    shift = rng.integers(-side // 14, side // 14 + 1, 2)
    moved = Image.fromarray((255 * np.roll(covered, shift, (0, 1))).astype(np.uint8))
    blurred = moved.filter(ImageFilter.BoxBlur(side * rng.uniform(0.01, 0.05)))
    return np.asarray(blurred, dtype=np.float32) * (rng.uniform(0.1, 0.6) / 255)


def light_field(xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How much light falls on each pixel, about 1: brighter to one side, and sometimes a shadow's edge."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * xs + np.sin(angle) * ys
    light = rng.uniform(0.7, 1.2) * (1 + rng.uniform(0, 0.3) * slope)
    if rng.random() < 0.35:
        light = light * (1 - rng.uniform(0.2, 0.45) * step(slope - rng.uniform(-0.3, 0.6), 0.08))
    return light
