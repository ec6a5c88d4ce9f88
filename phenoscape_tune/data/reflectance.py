"""Reflectance spectra of generated specimens and of what they lie on, the light on them, and the camera that sees them.

Wavelengths are nm, 300 to 1000; reflectances 0 to 1. The curves follow the usual shapes of measured spectra: pterins,
carotenoids and ommochromes are steps, melanin rises slowly into the infrared, structural blue and ultraviolet are peaks
(ultraviolet of pierid wings: Ghiradella et al. 1972, Science 178).
"""

from collections.abc import Callable

import numpy as np

Spectrum = Callable[[np.ndarray], np.ndarray]
"""Wavelengths (L,) → reflectance (L,)."""


def rise(wavelengths: np.ndarray, middle: float, width: float) -> np.ndarray:
    """0 at shorter wavelengths, 1 at longer ones: float (L,)."""
    return 1 / (1 + np.exp(-np.clip((wavelengths - middle) / width, -60, 60)))


def peak(wavelengths: np.ndarray, middle: float, width: float) -> np.ndarray:
    """A Gaussian of height 1 and standard deviation ``width``: float (L,)."""
    return np.exp(-0.5 * ((wavelengths - middle) / width) ** 2)


def bounded_peak(wavelengths: np.ndarray, middle: float, width: float) -> np.ndarray:
    """A raised cosine of height 1, ``width`` wide at half its height and exactly 0 beyond ``width`` of its middle."""
    offset = np.clip((wavelengths - middle) / width, -1, 1)
    return np.where(np.abs(offset) < 1, 0.5 + 0.5 * np.cos(np.pi * offset), 0.0)


# Ground and mark of a wing; none reflects ultraviolet by itself.
PALETTES: tuple[tuple[Spectrum, Spectrum], ...] = (
    (  # orange with black
        lambda nm: 0.05 + 0.30 * rise(nm, 570, 16) + 0.38 * rise(nm, 610, 45),
        lambda nm: 0.03 + 0.25 * rise(nm, 860, 70),
    ),
    (  # yellow with brown
        lambda nm: 0.05 + 0.66 * rise(nm, 495, 16),
        lambda nm: 0.04 + 0.16 * rise(nm, 620, 50) + 0.30 * rise(nm, 800, 60),
    ),
    (  # blue with black
        lambda nm: 0.10 + 0.42 * peak(nm, 465, 48) * rise(nm, 408, 7) + 0.35 * rise(nm, 780, 45),
        lambda nm: 0.04 + 0.25 * rise(nm, 860, 70),
    ),
    (  # brown with cream
        lambda nm: 0.06 + 0.24 * rise(nm, 590, 40) + 0.32 * rise(nm, 760, 60),
        lambda nm: 0.06 + 0.52 * rise(nm, 430, 12) + 0.20 * rise(nm, 560, 45),
    ),
    (  # white with grey
        lambda nm: 0.06 + 0.72 * rise(nm, 415, 8),
        lambda nm: 0.05 + 0.16 * rise(nm, 418, 10) + 0.25 * rise(nm, 820, 70),
    ),
    (  # dark brown with red
        lambda nm: 0.07 + 0.10 * rise(nm, 640, 40) + 0.30 * rise(nm, 820, 60),
        lambda nm: 0.05 + 0.62 * rise(nm, 605, 14),
    ),
)

# What all specimens lie on while they are recorded: grey foam, darker and lighter, and the felt that shows in its gaps.
BACKGROUND: tuple[Spectrum, Spectrum, Spectrum] = (
    lambda nm: 0.20 + 0.05 * rise(nm, 600, 120),
    lambda nm: 0.25 + 0.06 * rise(nm, 500, 120),
    lambda nm: 0.13 + 0.05 * rise(nm, 750, 60),
)


def ultraviolet_scales(wavelengths: np.ndarray) -> np.ndarray:
    """What structural scales add to a wing's reflectance: a peak below 405 nm, exactly 0 above."""
    return bounded_peak(wavelengths, 347, 58)


def absorption_band(wavelengths: np.ndarray, middle: float, depth: float) -> np.ndarray:
    """What a pigment's narrow absorption leaves of a reflectance: 1 − depth in the middle, 18 nm wide at half depth."""
    return 1 - depth * bounded_peak(wavelengths, middle, 18)


def light_spectrum(wavelengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One picture's light relative to that of the calibration, about 1: a tilt, a bow and the share of ultraviolet."""
    across = (wavelengths - 650) / 350
    tilt, bow = rng.uniform(-0.08, 0.08), rng.uniform(-0.05, 0.05)
    ultraviolet = rng.uniform(-0.25, 0.25) * rise(-wavelengths, -400, 12)
    return np.exp(tilt * across + bow * (across**2 - 1 / 3) + ultraviolet)


def filter_camera(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Wavelengths (L,) from 300 to 700 nm and the named channels' sensitivities (C, L), each of sum 1.

    Red, green and blue stand behind a filter that lets nothing through below 410 nm, as a camera's does.
    """
    nm = np.arange(300.0, 701.0, 2.0)
    bands = {"red": (610, 35), "green": (540, 35), "blue": (460, 28), "uv1": (380, 9), "uv2": (355, 9), "uv3": (330, 9)}
    sensitivities = np.stack([peak(nm, *bands[name]) for name in names])
    blocked = np.array([not name.startswith("uv") for name in names])[:, None] & (nm < 410)[None]
    sensitivities = np.where(blocked, 0, sensitivities)
    return nm, sensitivities / sensitivities.sum(1, keepdims=True)
