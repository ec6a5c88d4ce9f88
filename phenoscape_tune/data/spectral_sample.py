"""Generated specimens for cameras that see more than red, green and blue, with species that those three cannot tell.

Species come in pairs that share pattern, colours, pose, light and background, and differ in one hidden cue: where the
wings reflect ultraviolet (7-channel TIFF), or which narrow band their ground colour absorbs (408-band ENVI cubes). So a
search that sees the hidden part can tell all of them, one that sees red, green and blue at best every second.

A picture is a mixture of materials, each with a reflectance spectrum: how much of each a pixel shows is a matter of
shapes, and what a camera records of it a product of matrices. The visible part and the hidden part are drawn by random
numbers of their own, so that of one seed the two of a pair have equal red, green and blue to the bit.
"""

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from phenoscape_tune.data import reflectance
from phenoscape_tune.data import sample_shapes as shapes
from phenoscape_tune.data.channels import COLOUR_NM
from phenoscape_tune.data.reflectance import Spectrum
from phenoscape_tune.data.sample_folder import Progress, write_sample_folder
from phenoscape_tune.data.sample_shapes import OVERSAMPLING, Wing, step

SPECTRAL_SAMPLE_VERSION = 2
FULL_SCALE = 65535

CHANNELS = ("red", "green", "blue", "uv1", "uv2", "uv3", "mask")
WAVELENGTHS = np.linspace(350.0, 1000.0, 408)
ABSORBED = (500.0, 600.0)  # nm, far from the 450, 550 and 650 nm that stand for colours

# Pattern and the palettes it often has; it shares all of them with the others.
PATTERNS = {"banded": (0, 3), "bordered": (1, 4), "spotted": (2, 5)}
FAVOURITE_SHARE = 0.95

ULTRAVIOLET_PLACES = ("basal", "marginal")
MULTISPECTRAL_SPECIES = tuple(f"{pattern}_{place}" for pattern in PATTERNS for place in ULTRAVIOLET_PLACES)
HYPERSPECTRAL_PATTERNS = ("banded", "spotted")
HYPERSPECTRAL_SPECIES = tuple(f"{pattern}_{nm:.0f}nm" for pattern in HYPERSPECTRAL_PATTERNS for nm in ABSORBED)


@dataclass(frozen=True)
class Scene:
    """One specimen before a camera, S × S pixels."""

    shares: np.ndarray
    """float32 (S, S, M): how much of the light on each pixel comes back by each material, shading included."""
    ultraviolet: np.ndarray
    """float32 (S, S): the same for scales that reflect ultraviolet; they lie on other materials."""
    spectra: tuple[Spectrum, ...]
    """M materials; the ground colour of the wings is the one at `GROUND`."""
    mask: np.ndarray
    """bool (S, S): the specimen."""


# Places among a scene's materials, after the background's three tones.
GROUND, MARK, TRUNK, MATERIALS = 3, 4, 5, 6


def write_multispectral_sample(
    folder: Path, *, per_class: int = 100, size: int = 64, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write ``per_class`` 7-channel pictures of each species as ``<folder>/<species>/<species>_<nnn>.tif``; the folder.

    Pictures are uint16 (7, ``size``, ``size``), an uncompressed page a channel: red, green, blue, uv1, uv2, uv3 as
    reflectance (65535: 1), and the mask, 65535 on the specimen and 0 beside it; OME metadata names them. They are the
    same for the same seed; ``progress`` gets (done, total). A complete sample with the same settings is left as it is;
    one with other settings is replaced. Raises UserError where the folder holds anything else, or cannot be written.
    """
    import tifffile

    settings = _settings("multispectral", per_class, size, seed)

    def write_specimen(path: Path, species: int, number: int) -> None:
        pixels = draw_multispectral(species, size, np.random.default_rng([seed, 7, species, number]))
        names = {"axes": "CYX", "Channel": {"Name": list(CHANNELS)}, "UUID": _name_file(path, seed)}
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", ome=True, metadata=names)

    return write_sample_folder(folder, settings, MULTISPECTRAL_SPECIES, (".tif",), write_specimen, progress)


def write_hyperspectral_sample(
    folder: Path, *, per_class: int = 80, size: int = 32, seed: int = 0, progress: Progress | None = None
) -> Path:
    """Write ``per_class`` ENVI cubes of each species as ``<folder>/<species>/<species>_<nnn>.hdr`` and ``.bil``.

    Cubes are uint16, 408 bands from 350 to 1000 nm, ``size`` × ``size`` pixels, reflectance (65535: 1), interleaved by
    line: 0.8 MB each at 32 px. Otherwise as `write_multispectral_sample`.
    """
    from spectral.io import envi

    settings = _settings("hyperspectral", per_class, size, seed)
    colours = [int(np.abs(WAVELENGTHS - nm).argmin()) + 1 for nm in COLOUR_NM]
    header = {
        "description": "generated sample specimen, reflectance",
        "reflectance scale factor": FULL_SCALE,
        "wavelength units": "Nanometers",
        "wavelength": [f"{nm:.4f}" for nm in WAVELENGTHS],
        "default bands": colours,
    }

    def write_specimen(path: Path, species: int, number: int) -> None:
        cube = draw_hyperspectral(species, size, np.random.default_rng([seed, 408, species, number]))
        envi.save_image(
            os.fspath(path.with_suffix(".hdr")), cube.transpose(1, 2, 0), interleave="bil", ext=".bil", metadata=header
        )

    return write_sample_folder(folder, settings, HYPERSPECTRAL_SPECIES, (".hdr", ".bil"), write_specimen, progress)


def draw_multispectral(species: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One picture of the species with this index in `MULTISPECTRAL_SPECIES`: uint16 (7, size, size)."""
    visible, hidden = rng.spawn(2)
    pattern, place = divmod(species, len(ULTRAVIOLET_PLACES))
    scene = _draw_scene(tuple(PATTERNS)[pattern], size, visible, _place_scales(ULTRAVIOLET_PLACES[place], hidden))
    nm, sensitivities = reflectance.filter_camera(CHANNELS[:-1])
    light = sensitivities * reflectance.light_spectrum(nm, visible)  # (C, L)
    materials = np.stack([spectrum(nm) for spectrum in scene.spectra]) @ light.T  # (M, C)
    scales = light @ reflectance.ultraviolet_scales(nm)  # (C,), 0 for red, green, blue
    seen = scene.shares @ materials + scene.ultraviolet[..., None] * scales  # (S, S, C)
    colours, ultraviolet = seen[..., :3], seen[..., 3:]
    pixels = [_record(colours, 0.006, visible), _record(ultraviolet, 0.012, hidden), FULL_SCALE * scene.mask[..., None]]
    return np.concatenate(pixels, axis=2, dtype=np.uint16, casting="unsafe").transpose(2, 0, 1)


def draw_hyperspectral(species: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One cube of the species with this index in `HYPERSPECTRAL_SPECIES`: uint16 (408, size, size)."""
    visible, hidden = rng.spawn(2)
    pattern, band = divmod(species, len(ABSORBED))
    scene = _draw_scene(HYPERSPECTRAL_PATTERNS[pattern], size, visible)
    nm = WAVELENGTHS
    materials = np.stack([spectrum(nm) for spectrum in scene.spectra])  # (M, 408)
    middle, depth = ABSORBED[band] + hidden.uniform(-2, 2), hidden.uniform(0.55, 0.85)
    materials[GROUND] *= reflectance.absorption_band(nm, middle, depth)
    seen = scene.shares @ (materials * reflectance.light_spectrum(nm, visible)).astype(np.float32)
    # A sensor of silicon is less sure at both ends.
    noise = 0.008 * (1 + 2 * np.exp(-(nm - 350) / 30) + 1.5 * np.exp(-(1000 - nm) / 40))
    return _record(seen, noise.astype(np.float32), visible).transpose(2, 0, 1)


def _draw_scene(
    pattern: str, size: int, rng: np.random.Generator, scales: Callable[[Wing], np.ndarray] | None = None
) -> Scene:
    """A specimen with this pattern; ``scales`` says how much of a wing's pixels reflects ultraviolet, (S, S), 0..1."""
    side = OVERSAMPLING * size
    xs, ys = shapes.picture_plane(side)
    mix, patch = shapes.background_mixture(xs, ys, rng), shapes.background_patches(side, rng)
    shares = np.zeros((MATERIALS, side, side), np.float32)
    shares[:GROUND] = np.stack(((1 - mix) * (1 - patch), mix * (1 - patch), patch))
    shares[:GROUND] *= rng.uniform(0.95, 1.05)

    across, ahead = shapes.to_body_frame(xs, ys, rng)
    wings = shapes.spread_wings(across, ahead, rng)
    ground, mark = _choose_pigments(pattern, rng)
    body, head, antennae = shapes.body_parts(across, ahead, rng)
    covers = [step(wing.inside, shapes.edge_width(side)) for wing in wings]
    shares *= 1 - shapes.cast_shadow(np.maximum.reduce([*covers, body, head]), rng)

    ultraviolet = np.zeros((side, side), np.float32)
    style = shapes.individual_style(rng)
    for wing, cover in reversed(list(zip(wings, covers, strict=True))):  # the fore wing lies on the hind wing
        marked = shapes.wing_pattern(pattern, wing, style)
        bright = cover * shapes.wing_shade(wing) * shapes.wing_rim(wing)
        shares *= 1 - cover
        shares[GROUND] += bright * (1 - marked)
        shares[MARK] += bright * marked
        if scales is not None:
            # Melanin lies over and under the scales, and swallows most of what they reflect.
            ultraviolet = ultraviolet * (1 - cover) + bright * scales(wing) * (1 - 0.7 * marked)
    for part in (body, head, antennae):
        shares *= 1 - part
        shares[TRUNK] += part
        ultraviolet = ultraviolet * (1 - part)
    shares[TRUNK] *= rng.uniform(0.6, 1.1)

    # The white reference has taken most of the light's unevenness out of a reflectance.
    layers = np.concatenate((shares, ultraviolet[None])) * shapes.light_field(xs, ys, rng) ** 0.4
    blur = OVERSAMPLING * rng.uniform(0, 0.6)
    layers = _shrink(gaussian_filter(layers, (0, blur, blur), mode="nearest"))
    spectra = (*reflectance.BACKGROUND, ground, mark, lambda nm: 0.35 * mark(nm) + 0.25 * ground(nm))
    mask = _shrink(np.maximum.reduce([*covers, body, head, antennae])) >= 0.5
    return Scene(layers[:-1].transpose(1, 2, 0).astype(np.float32), layers[-1].astype(np.float32), spectra, mask)


def _choose_pigments(pattern: str, rng: np.random.Generator) -> tuple[Spectrum, Spectrum]:
    """Spectra of ground and mark, a little different for each specimen."""
    favourite = rng.random() < FAVOURITE_SHARE
    choices = PATTERNS[pattern] if favourite else range(len(reflectance.PALETTES))
    palette = reflectance.PALETTES[choices[rng.integers(len(choices))]]
    ground, mark = (_vary(spectrum, rng.uniform(0.85, 1.15), rng.uniform(-8, 8)) for spectrum in palette)
    return ground, mark


def _vary(spectrum: Spectrum, brightness: float, shift: float) -> Spectrum:
    return lambda nm: brightness * spectrum(nm + shift)


def _place_scales(place: str, rng: np.random.Generator) -> Callable[[Wing], np.ndarray]:
    """Where one specimen's wings reflect ultraviolet, and how much."""
    border, strength = rng.uniform(0.52, 0.62), rng.uniform(0.35, 0.75)
    sign = 1 if place == "basal" else -1
    return lambda wing: strength * step(sign * (border - wing.along), 0.07)


def _shrink(fields: np.ndarray) -> np.ndarray:
    """Means over the pixels that were drawn for one of the picture's: (..., kS, kS) → (..., S, S)."""
    *rest, height, width = fields.shape
    k = OVERSAMPLING
    return fields.reshape(*rest, height // k, k, width // k, k).mean((-3, -1))


def _record(seen: np.ndarray, noise: float | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reflectances (S, S, C) as a sensor gives them, with noise in the dark (C,) and of photons: uint16 (S, S, C)."""
    spread = np.sqrt(np.square(noise) + 0.0002 * np.clip(seen, 0, None))
    noisy = seen + spread * rng.standard_normal(seen.shape, dtype=np.float32)
    return np.rint(FULL_SCALE * np.clip(noisy, 0, 1)).astype(np.uint16)


def _name_file(path: Path, seed: int) -> str:
    """OME's identifier of a file, by its content and not at random: the same seed gives the same file."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'phenoscape_tune/{seed}/{path.name}')}"


def _settings(kind: str, per_class: int, size: int, seed: int) -> dict[str, int | str]:
    return {"version": SPECTRAL_SAMPLE_VERSION, "kind": kind, "per_class": per_class, "size": size, "seed": seed}
