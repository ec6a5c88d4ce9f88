"""Generated sample specimens: six species of butterflies that differ in wing pattern and, less surely, in colour.

What must not give a species away (pose, place, light, background) is drawn alike for all of them.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from phenoscape_tune.data import sample_shapes as shapes
from phenoscape_tune.data.sample_folder import Progress, write_sample_folder
from phenoscape_tune.data.sample_shapes import OVERSAMPLING, Wing, step

SAMPLE_VERSION = 1

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


def write_sample(
    folder: Path, *, per_class: int = 60, size: int = 64, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write ``per_class`` pictures of each species as ``<folder>/<species>/<species>_<nnn>.png``; the folder.

    Pictures are RGB, ``size`` × ``size`` pixels, and the same for the same seed; ``progress`` gets (done, total). A
    complete sample with the same settings is left as it is; one with other settings is replaced. Raises UserError where
    the folder holds anything else, or cannot be written.
    """
    settings = {"version": SAMPLE_VERSION, "per_class": per_class, "size": size, "seed": seed}

    def write_specimen(path: Path, species: int, number: int) -> None:
        rng = np.random.default_rng([seed, species, number])
        Image.fromarray(draw_specimen(species, size, rng)).save(path.with_suffix(".png"), compress_level=3)

    return write_sample_folder(folder, settings, SPECIES, (".png",), write_specimen, progress)


def draw_specimen(species: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of the species with this index: uint8 (size, size, 3)."""
    side = OVERSAMPLING * size
    xs, ys = shapes.picture_plane(side)
    picture = _draw_background(xs, ys, rng)

    across, ahead = shapes.to_body_frame(xs, ys, rng)
    fore, hind = shapes.spread_wings(across, ahead, rng)
    ground, mark = _choose_colours(species, rng)
    soft = shapes.edge_width(side)
    body, head, antennae = shapes.body_parts(across, ahead, rng)
    covered = np.maximum.reduce([step(fore.inside, soft), step(hind.inside, soft), body, head])
    picture *= 1 - shapes.cast_shadow(covered, rng)[..., None]

    style = shapes.individual_style(rng)
    for wing in (hind, fore):
        marked = shapes.wing_pattern(SPECIES[species], wing, style)[..., None]
        colour = (ground * (1 - marked) + mark * marked) * shapes.wing_shade(wing)[..., None]
        if SPECIES[species] == "eyespotted":
            colour = _draw_eyespot(colour, wing, style)
        alpha = step(wing.inside, soft)[..., None]
        picture = picture * (1 - alpha) + colour * shapes.wing_rim(wing)[..., None] * alpha
    trunk = np.clip(0.35 * mark + 0.25 * ground, 0.06, 0.5) * rng.uniform(0.6, 1.1)
    for mask in (body, head, antennae):
        picture = picture * (1 - mask[..., None]) + trunk * mask[..., None]
    return _photograph(picture, xs, ys, size, rng)


def _draw_background(xs: np.ndarray, ys: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 (S, S, 3): two or three natural colours mixed."""
    dark, light = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))])
    other = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))][rng.integers(2)])
    mix = shapes.background_mixture(xs, ys, rng)[..., None]
    picture = dark * (1 - mix) + light * mix
    patch = shapes.background_patches(len(xs), rng)[..., None]
    return np.clip((picture * (1 - patch) + other * patch) * rng.uniform(0.85, 1.15, 3), 0, 1).astype(np.float32)


def _choose_colours(species: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    favourites = FAVOURITES[species]
    favourite = rng.random() < FAVOURITE_SHARE
    palette = favourites[rng.integers(2)] if favourite else int(rng.integers(len(PALETTES)))
    ground, mark = np.array(PALETTES[palette])
    return (
        np.clip(ground * rng.uniform(0.85, 1.15) + rng.uniform(-0.06, 0.06, 3), 0.02, 1),
        np.clip(mark * rng.uniform(0.85, 1.15) + rng.uniform(-0.05, 0.05, 3), 0.02, 1),
    )


def _draw_eyespot(colour: np.ndarray, wing: Wing, style: dict[str, float]) -> np.ndarray:
    """An eye on each wing: pale ring, dark ring and disc, white pupil."""
    distance = np.hypot((wing.along - 0.66 - style["shift"]) * 2.6, wing.across * 0.82) / style["width"]
    for radius, tone in ((0.56, (0.93, 0.86, 0.55)), (0.43, (0.08, 0.07, 0.10)), (0.16, (0.95, 0.95, 0.98))):
        mask = step(radius - distance, 0.05)[..., None]
        colour = colour * (1 - mask) + np.array(tone) * mask
    return colour


def _photograph(picture: np.ndarray, xs: np.ndarray, ys: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Light, shadow, focus and noise of one photograph; uint8 (size, size, 3)."""
    lit = picture * shapes.light_field(xs, ys, rng)[..., None] * rng.uniform(0.9, 1.1, 3)
    image = Image.fromarray((255 * np.clip(lit, 0, 1)).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6) * OVERSAMPLING))
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    return np.clip(small + rng.normal(0, rng.uniform(1, 5), small.shape), 0, 255).astype(np.uint8)
