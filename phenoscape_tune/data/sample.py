"""Generated sample specimens: six species of butterflies that differ in wing pattern and, less surely, in colour.

Each picture is computed backwards: every pixel is carried into the butterfly's own frame, where wings and patterns are
formulas. What must not give a species away (pose, place, light, background) is drawn alike for all of them.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from phenoscape_tune.errors import UserError

SAMPLE_VERSION = 1
MARKER = ".sample.json"
OVERSAMPLING = 2

SPECIES = ("banded", "bordered", "eyespotted", "patched", "spotted", "striped")

# Ground and mark colours in sRGB, 0..1; a species has a favourite and shares all of them with the others.
PALETTES = (
    ((0.86, 0.47, 0.12), (0.13, 0.08, 0.07)),  # orange with black
    ((0.90, 0.83, 0.52), (0.28, 0.16, 0.10)),  # straw with brown
    ((0.30, 0.45, 0.74), (0.08, 0.09, 0.16)),  # blue with black
    ((0.45, 0.27, 0.16), (0.88, 0.76, 0.55)),  # brown with cream
    ((0.92, 0.91, 0.86), (0.22, 0.22, 0.26)),  # white with grey
    ((0.18, 0.16, 0.19), (0.83, 0.30, 0.20)),  # black with red
)
FAVOURITES = ((0, 3), (0, 4), (3, 1), (5, 2), (4, 1), (2, 5))
FAVOURITE_SHARE = 0.8

# Two natural colours each: foliage, bark, sand, sky, stone, petals, drawer cardboard, soil.
BACKGROUNDS = (
    ((0.16, 0.30, 0.10), (0.45, 0.60, 0.25)),
    ((0.25, 0.18, 0.13), (0.52, 0.42, 0.32)),
    ((0.68, 0.58, 0.42), (0.86, 0.79, 0.64)),
    ((0.45, 0.62, 0.82), (0.82, 0.89, 0.94)),
    ((0.33, 0.34, 0.36), (0.63, 0.62, 0.60)),
    ((0.66, 0.30, 0.50), (0.90, 0.72, 0.80)),
    ((0.84, 0.83, 0.79), (0.95, 0.94, 0.91)),
    ((0.14, 0.10, 0.08), (0.36, 0.27, 0.20)),
)


@dataclass(frozen=True)
class Wing:
    """One pair of wings in the butterfly's frame; fields of float32 (S, S)."""

    along: np.ndarray
    """0 at the root, 1 at the tip."""
    across: np.ndarray
    """−1 at the rear edge, 1 at the front edge."""
    inside: np.ndarray
    """Distance to the nearest edge in body lengths, negative outside."""


def write_sample(folder: Path, *, per_class: int = 60, size: int = 64, seed: int = 0) -> Path:
    """Write ``per_class`` pictures of each species as ``<folder>/<species>/<species>_<nnn>.png``; the folder.

    Pictures are RGB, ``size`` × ``size`` pixels, and the same for the same seed. A complete sample with the same
    settings is left as it is; one with other settings is replaced. Raises UserError where the folder holds anything
    else, or cannot be written.
    """
    folder = Path(folder).expanduser()
    settings = {"version": SAMPLE_VERSION, "per_class": per_class, "size": size, "seed": seed}
    if _is_complete(folder, settings):
        return folder
    building = folder.parent / f".{folder.name}-{os.getpid()}"
    try:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
            raise UserError(
                f"{folder} holds files that are no generated sample. Name another folder for the sample, or data_dir "
                "for these images."
            )
        shutil.rmtree(building, ignore_errors=True)
        for index, species in enumerate(SPECIES):
            (building / species).mkdir(parents=True)
            for number in range(per_class):
                rng = np.random.default_rng([seed, index, number])
                picture = Image.fromarray(draw_specimen(index, size, rng))
                picture.save(building / species / f"{species}_{number:03d}.png", compress_level=3)
        (building / MARKER).write_text(json.dumps(settings), encoding="utf-8")
        if (folder / MARKER).exists():
            shutil.rmtree(folder)
        try:
            os.replace(building, folder)
        except OSError:
            # Another process that writes the same sample was faster.
            if not _is_complete(folder, settings):
                raise
    except OSError as fault:
        raise UserError(
            f"{folder}: the sample specimens cannot be written ({fault.strerror or fault}). Name a folder that can."
        ) from fault
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def draw_specimen(species: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of the species with this index: uint8 (size, size, 3)."""
    side = OVERSAMPLING * size
    ys, xs = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    picture = _draw_background(side, xs, ys, rng)

    across, ahead = _to_body_frame(xs, ys, rng)
    fore, hind = _spread_wings(across, ahead, rng)
    ground, mark = _choose_colours(species, rng)
    soft = 2.5 / side
    body = np.hypot(across / rng.uniform(0.05, 0.075), (ahead + 0.05) / rng.uniform(0.34, 0.42))
    head = np.hypot(across, ahead - 0.36) / 0.075
    antennae = np.abs(np.abs(across) - 0.45 * (ahead - 0.38)) + 9 * np.clip(np.abs(ahead - 0.55) - 0.15, 0, None)
    covered = np.maximum.reduce(
        [_step(fore.inside, soft), _step(hind.inside, soft), _step(0.05 * (1 - body), soft), _step(1 - head, 0.3)]
    )
    picture *= 1 - _cast_shadow(covered, side, rng)[..., None]

    style = _individual_style(rng)
    for wing in (hind, fore):
        marked = _pattern(species, wing, style)[..., None]
        shade = (0.82 + 0.25 * np.clip(wing.along, 0, 1) + 0.08 * wing.across)[..., None]
        colour = (ground * (1 - marked) + mark * marked) * np.clip(shade, 0.6, 1.15)
        if SPECIES[species] == "eyespotted":
            colour = _draw_eyespot(colour, wing, style)
        alpha = _step(wing.inside, soft)[..., None]
        edge = np.clip(wing.inside / 0.035, 0.55, 1)[..., None]
        picture = picture * (1 - alpha) + colour * edge * alpha
    trunk = np.clip(0.35 * mark + 0.25 * ground, 0.06, 0.5) * rng.uniform(0.6, 1.1)
    for mask in (_step(0.05 * (1 - body), soft), _step(1 - head, 0.3), 0.8 * _step(0.018 - antennae, soft)):
        picture = picture * (1 - mask[..., None]) + trunk * mask[..., None]
    return _photograph(picture, xs, ys, size, rng)


def _is_complete(folder: Path, settings: dict[str, int]) -> bool:
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return found == settings and all(
        len(list((folder / species).glob("*.png"))) == settings["per_class"] for species in SPECIES
    )


def _step(values: np.ndarray, width: float) -> np.ndarray:
    """0 below −width, 1 above width, smooth between."""
    t = np.clip(values / (2 * width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _texture(side: int, cells: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, 0..1, float32 (side, side), of about ``cells`` blobs down and across."""
    grid = Image.fromarray(rng.random(cells, dtype=np.float32))
    return np.clip(np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)


def _draw_background(side: int, xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 (side, side, 3): two or three natural colours mixed by blobs, grass-like streaks and a gradient."""
    dark, light = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
    other = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))][rng.integers(2)])
    fine = int(rng.integers(8, 24))
    streaks = (int(rng.integers(2, 5)), int(rng.integers(12, 30)))
    mix = _texture(side, (4, 4), rng) * rng.uniform(0.2, 1) + _texture(side, (fine, fine), rng) * rng.uniform(0.1, 0.6)
    mix += _texture(side, streaks if rng.random() < 0.5 else streaks[::-1], rng) * rng.uniform(0, 0.7)
    angle = rng.uniform(0, 2 * np.pi)
    mix += 0.3 * (np.cos(angle) * xs + np.sin(angle) * ys)
    mix = np.clip((mix - mix.mean()) * rng.uniform(0.5, 1.6) + 0.5, 0, 1)[..., None]
    picture = dark * (1 - mix) + light * mix
    patch = (_step(_texture(side, (3, 3), rng) - rng.uniform(0.45, 0.9), 0.1) * rng.uniform(0, 0.9))[..., None]
    return np.clip((picture * (1 - patch) + other * patch) * rng.uniform(0.85, 1.15, 3), 0, 1).astype(np.float32)


def _to_body_frame(xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
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


def _spread_wings(across: np.ndarray, ahead: np.ndarray, rng: np.random.Generator) -> tuple[Wing, Wing]:
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


def _choose_colours(species: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    favourites = FAVOURITES[species]
    favourite = rng.random() < FAVOURITE_SHARE
    palette = favourites[rng.integers(2)] if favourite else int(rng.integers(len(PALETTES)))
    ground, mark = np.array(PALETTES[palette])
    return (
        np.clip(ground * rng.uniform(0.85, 1.15) + rng.uniform(-0.06, 0.06, 3), 0.02, 1),
        np.clip(mark * rng.uniform(0.85, 1.15) + rng.uniform(-0.05, 0.05, 3), 0.02, 1),
    )


def _individual_style(rng: np.random.Generator) -> dict[str, float]:
    return {
        "number": rng.uniform(0.88, 1.12),
        "width": rng.uniform(0.8, 1.2),
        "shift": rng.uniform(-0.05, 0.05),
        "strength": rng.uniform(0.75, 1.0),
    }


def _pattern(species: int, wing: Wing, style: dict[str, float]) -> np.ndarray:
    """How much of the mark's colour each pixel of a wing has: float (S, S), 0..1."""
    along, across = wing.along + style["shift"], wing.across
    name = SPECIES[species]
    if name == "banded":
        wave = np.sin(2 * np.pi * 2.4 * style["number"] * (along + 0.10 * across**2))
        marked = _step(wave - 0.15 / style["width"], 0.3)
    elif name == "striped":
        wave = np.sin(np.pi * 3.0 * style["number"] * across + 0.6)
        marked = _step(wave - 0.15 / style["width"], 0.3)
    elif name == "spotted":
        rows, columns = along * 3.9 * style["number"], across * 1.6 + 0.5
        columns = columns + 0.5 * (np.floor(rows) % 2)
        distance = np.hypot(rows - np.floor(rows) - 0.5, (columns - np.floor(columns) - 0.5) * 1.1)
        marked = _step(0.31 * style["width"] - distance, 0.1)
    elif name == "bordered":
        border = 0.12 * style["width"] - np.minimum(wing.inside, 0.9 * (1 - along))
        dots = np.cos(2 * np.pi * 4 * style["number"] * across) * np.cos(2 * np.pi * 5 * along) - 0.55
        marked = _step(border, 0.02) * (1 - 0.9 * _step(dots, 0.2))
    elif name == "patched":
        marked = np.maximum(_step(along - 0.62 - 0.12 * across, 0.05), 0.7 * _step(0.26 * style["width"] - along, 0.15))
    else:
        marked = 0.35 * np.clip(along, 0, 1) ** 2
    return marked * style["strength"]


def _draw_eyespot(colour: np.ndarray, wing: Wing, style: dict[str, float]) -> np.ndarray:
    """An eye on each wing: pale ring, dark ring and disc, white pupil."""
    distance = np.hypot((wing.along - 0.66 - style["shift"]) * 2.6, wing.across * 0.82) / style["width"]
    for radius, tone in ((0.56, (0.93, 0.86, 0.55)), (0.43, (0.08, 0.07, 0.10)), (0.16, (0.95, 0.95, 0.98))):
        mask = _step(radius - distance, 0.05)[..., None]
        colour = colour * (1 - mask) + np.array(tone) * mask
    return colour


def _cast_shadow(covered: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Darkening (0..1) of the background beside the butterfly."""
    shift = rng.integers(-side // 14, side // 14 + 1, 2)
    moved = Image.fromarray((255 * np.roll(covered, shift, (0, 1))).astype(np.uint8))
    blurred = moved.filter(ImageFilter.BoxBlur(side * rng.uniform(0.01, 0.05)))
    return np.asarray(blurred, dtype=np.float32) * (rng.uniform(0.1, 0.6) / 255)


def _photograph(picture: np.ndarray, xs: np.ndarray, ys: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Light, shadow, focus and noise of one photograph; uint8 (size, size, 3)."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * xs + np.sin(angle) * ys
    light = rng.uniform(0.7, 1.2) * (1 + rng.uniform(0, 0.3) * slope)
    if rng.random() < 0.35:
        light = light * (1 - rng.uniform(0.2, 0.45) * _step(slope - rng.uniform(-0.3, 0.6), 0.08))
    lit = picture * light[..., None] * rng.uniform(0.9, 1.1, 3)
    image = Image.fromarray((255 * np.clip(lit, 0, 1)).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6) * OVERSAMPLING))
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    return np.clip(small + rng.normal(0, rng.uniform(1, 5), small.shape), 0, 255).astype(np.uint8)
