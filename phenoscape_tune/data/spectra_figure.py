"""A figure of each class's mean spectrum; of a few channels a point each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.data.layout import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_CLASSES = 20
# Okabe and Ito (2008), which colour-blind people tell apart; their yellow is too faint for a line on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1a1a1a")
STYLES = ("-", "--", ":")  # and marks of their own: 21 that differ
MARKS = ("o", "s", "^")
_INK, _FAINT = "#1a1a1a", "#d9dde2"
_BAND_SHADES = {3: 0.18, 8: 0.12}  # up to so many classes; fainter beyond


def draw_spectra(spectra: ClassSpectra) -> Figure:
    """A line a class, with a band of one standard deviation over its images to each side.

    Of more than 20 classes those with the most images are shown. Made without pyplot: nothing has to be closed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    shown = sorted(sorted(range(len(spectra.classes)), key=lambda k: -spectra.counts[k])[:SHOWN_CLASSES])
    places, order = _places(spectra)
    for number, k in enumerate(shown):
        _draw_class(axes, spectra, k, number, places, order, len(shown))
    _label(axes, spectra, places, order)
    hidden = len(spectra.classes) - len(shown)
    title = "Mean reflectance by class ± one standard deviation over images"
    if len(spectra.classes) == 1:
        title = "Mean reflectance ± one standard deviation over images"
    axes.set_title(title, loc="left", fontsize=11)
    legend = {"title": f"{hidden} smaller {'class' if hidden == 1 else 'classes'} not shown"} if hidden else {}
    if shown:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, handlelength=3, title_fontsize=9, **legend)
    return figure


def render_spectra(spectra: ClassSpectra) -> np.ndarray:
    """The figure as a picture, uint8 (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(draw_spectra(spectra))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _places(spectra: ClassSpectra) -> tuple[np.ndarray, np.ndarray]:
    """Where the channels stand along the axis, and their order along it."""
    if spectra.wavelengths is None:
        return np.arange(len(spectra.names), dtype=np.float64), np.arange(len(spectra.names))
    places = np.array(spectra.wavelengths)
    order = np.argsort(places, kind="stable")
    return places[order], order


def _draw_class(
    axes: Axes, spectra: ClassSpectra, k: int, number: int, places: np.ndarray, order: np.ndarray, classes: int
) -> None:
    mean, std = np.array(spectra.mean[k])[order], np.array(spectra.std[k])[order]  # (C,) each
    colour, turn = COLOURS[number % len(COLOURS)], number // len(COLOURS)
    name = _plain(spectra.classes[k])
    label = f"{name if len(name) <= 24 else name[:21] + '...'} ({spectra.counts[k]:,})"
    look: dict[str, Any] = {"color": colour, "label": label, "linestyle": STYLES[turn % len(STYLES)]}
    if spectra.wavelengths is not None and len(places) > 1:
        shade = next((shade for most, shade in _BAND_SHADES.items() if classes <= most), 0.06)
        axes.plot(places, mean, linewidth=1.6, **look)
        axes.fill_between(places, mean - std, mean + std, color=colour, alpha=shade, linewidth=0)
        return
    # Between channels that are no bands of a spectrum a line means nothing but which points belong together.
    shift = 0.6 * ((number + 0.5) / classes - 0.5)
    mark = MARKS[turn % len(MARKS)]
    axes.plot(places + shift, mean, linewidth=0.6, marker=mark, markersize=5, **look)
    axes.errorbar(places + shift, mean, std, fmt="none", ecolor=colour, elinewidth=1, capsize=2, alpha=0.7)


def _label(axes: Axes, spectra: ClassSpectra, places: np.ndarray, order: np.ndarray) -> None:
    axes.set_ylabel("reflectance, 0 to 1", color=_INK)
    if spectra.wavelengths is None:
        names = [_plain(spectra.names[index]) for index in order]
        step = -(-len(names) // 24)  # more names would run into each other
        axes.set_xticks(places[::step], names[::step], rotation=45 if len(names) > 8 else 0)
        axes.set_xlim(-0.6, len(names) - 0.4)
    else:
        axes.set_xlabel("wavelength, nm", color=_INK)
        axes.margins(x=0.01)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(name: str) -> str:
    """A name as it is shown: to matplotlib dollars begin a formula, and a leading underscore hides it."""
    plain = printable(name).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain
