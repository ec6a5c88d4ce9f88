"""Draw docs/pictures/spectral_specimens.png: pairs of generated species as a camera sees them, and what it does not.

python docs/draw_specimens.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from phenoscape_tune.data.spectral_sample import (
    ABSORBED,
    HYPERSPECTRAL_SPECIES,
    MULTISPECTRAL_SPECIES,
    WAVELENGTHS,
    draw_hyperspectral,
    draw_multispectral,
)

PICTURE = Path(__file__).parent / "pictures" / "spectral_specimens.png"
SIZE, SEED = 64, 5


def as_seen(reflectance: np.ndarray) -> np.ndarray:
    """Reflectances (3, S, S) as a picture (S, S, 3) for a screen."""
    return np.clip(reflectance, 0, 1).transpose(1, 2, 0) ** (1 / 2.2)


def nearest(nm: float) -> int:
    return int(np.abs(WAVELENGTHS - nm).argmin())


def main() -> None:
    figure = plt.figure(figsize=(11, 4), dpi=100, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    axes = left.subplots(2, 6)
    for index, name in enumerate(MULTISPECTRAL_SPECIES):
        # The two of a pair have the same random numbers here, to show that they look alike; in the sample they do not.
        image = draw_multispectral(index, SIZE, np.random.default_rng([SEED, index // 2])) / 65535
        for row, (channels, what) in enumerate(((image[:3], "red, green, blue"), (1.5 * image[3:6], "uv1, uv2, uv3"))):
            axes[row, index].imshow(as_seen(channels), interpolation="nearest")
            axes[row, index].set(xticks=[], yticks=[])
            if index == 0:
                axes[row, index].set_ylabel(what)
        axes[0, index].set_title(name.replace("_", "\n"), fontsize=9)
    left.suptitle("seven channels")

    top, bottom = right.subfigures(2, 1)
    spectra = bottom.subplots()
    for place, (axis, name) in enumerate(zip(top.subplots(1, 4), HYPERSPECTRAL_SPECIES, strict=True)):
        cube = draw_hyperspectral(place, SIZE, np.random.default_rng([SEED, place // 2])) / 65535
        axis.imshow(as_seen(cube[[nearest(nm) for nm in (650, 550, 450)]]), interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.set_title(name.replace("_", "\n"), fontsize=9)
        if place >= 2:
            other = draw_hyperspectral(5 - place, SIZE, np.random.default_rng([SEED, 1])) / 65535
            # Where one of the two absorbs and the other does not there is ground colour.
            ground = np.abs(cube - other)[[nearest(nm) for nm in ABSORBED]].sum(0) > 0.1
            spectra.plot(WAVELENGTHS, cube[:, ground].mean(1), lw=1, label=name)
    spectra.set(xlabel="wavelength, nm", ylabel="reflectance", ylim=(0, None))
    for nm in (650, 550, 450):
        spectra.axvline(nm, color="grey", lw=0.6, ls=":")
    spectra.legend(fontsize=8)
    top.suptitle("408 bands, seen at 650, 550 and 450 nm")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
