from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.class_spectra import ClassSpectra
from phenoscape_tune.data.spectra_figure import SHOWN_CLASSES, draw_spectra, render_spectra

SENSOR = Channels(("red", "green", "blue", "uv1", "uv2", "uv3"), rgb=(0, 1, 2), uv=(3, 4, 5))


def spectrum(*wavelengths: float) -> Channels:
    uv = tuple(place for place, wave in enumerate(wavelengths) if wave < 400)
    return Channels(tuple(f"{wave:g} nm" for wave in wavelengths), uv=uv, wavelengths=wavelengths)


def spectra(classes: int, channels: Channels, images: int = 4) -> ClassSpectra:
    """Class k has k images more than the first, and they are between 0.1 k and 0.1 k + 0.1 in all channels."""
    labels = np.concatenate([np.full(images + k, k) for k in range(classes)] or [np.zeros(0, np.int64)])
    means = np.random.default_rng(0).uniform(0, 0.1, (len(labels), len(channels))) + 0.1 * labels[:, None]
    return ClassSpectra.of_images(means, labels, [f"species {k}" for k in range(classes)], channels)


def test_bands_are_drawn_by_their_wavelengths_whatever_their_order_in_the_file() -> None:
    own = spectra(2, spectrum(700, 500, 600))
    figure = draw_spectra(own)
    axes = figure.axes[0]
    assert axes.get_xlabel() == "wavelength, nm"
    for line, mean, std, band in zip(axes.lines, own.mean, own.std, axes.collections, strict=True):
        assert line.get_xdata().tolist() == [500, 600, 700]
        assert line.get_ydata().tolist() == [mean[1], mean[2], mean[0]]
        assert isinstance(band, PolyCollection)
        edges = band.get_paths()[0].vertices
        at_600 = edges[edges[:, 0] == 600, 1]
        assert at_600.min() == pytest.approx(mean[2] - std[2])
        assert at_600.max() == pytest.approx(mean[2] + std[2])
    assert [text.get_text() for text in figure.legends[0].texts] == ["species 0 (4)", "species 1 (5)"]


def test_channels_of_a_sensor_stand_by_their_names_and_classes_beside_each_other() -> None:
    figure = draw_spectra(spectra(3, SENSOR))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(SENSOR.names)
    lines = [line for line in axes.lines if line.get_label().startswith("species")]
    places = [line.get_xdata()[4] for line in lines]
    assert places == sorted(set(places))
    assert all(abs(place - 4) < 0.5 for place in places)


def test_no_two_of_twenty_classes_look_alike() -> None:
    for channels in (spectrum(400, 500, 600), SENSOR):
        lines = [line for line in draw_spectra(spectra(20, channels)).axes[0].lines if line.get_label()[0] != "_"]
        looks = {(to_hex(line.get_color()), line.get_linestyle(), line.get_marker()) for line in lines}
        assert len(looks) == len(lines) == 20


def test_of_more_classes_the_largest_are_shown_and_it_is_said() -> None:
    figure = draw_spectra(spectra(SHOWN_CLASSES + 2, spectrum(400, 500, 600)))
    legend = figure.legends[0]
    assert legend.texts[0].get_text() == "species 2 (6)"
    assert len(legend.texts) == SHOWN_CLASSES
    assert legend.get_title().get_text() == "2 smaller classes not shown"


def test_images_without_labels_are_one_line() -> None:
    one = ClassSpectra.of_images(np.full((5, 3), 0.5), np.zeros(5, np.int64), ("all images",), spectrum(400, 500, 600))
    axes = draw_spectra(one).axes[0]
    assert len(axes.lines) == 1
    assert "by class" not in axes.get_title(loc="left")


@pytest.mark.parametrize("channels", [spectrum(550), SENSOR, spectrum(*range(400, 1220, 2))], ids=lambda c: str(len(c)))
@pytest.mark.parametrize("classes", [0, 1, 25])
def test_any_number_of_channels_and_classes_makes_a_picture(channels: Channels, classes: int) -> None:
    picture = render_spectra(spectra(classes, channels))
    assert (picture.shape, picture.dtype) == ((540, 960, 3), np.uint8)
    assert picture.std() > 1


def test_names_that_cannot_be_printed_are_escaped() -> None:
    odd = ClassSpectra.of_images(np.ones((2, 1)), np.arange(2), ("a\udcff$x^$", "_b"), spectrum(500))
    assert [text.get_text() for text in draw_spectra(odd).legends[0].texts] == [r"a\udcff\$x^\$ (1)", " _b (1)"]
    render_spectra(odd)


def test_pyplot_with_its_state_is_not_loaded() -> None:
    code = (
        "import sys, numpy as np\n"
        "from phenoscape_tune.data.channels import RGB\n"
        "from phenoscape_tune.data.class_spectra import ClassSpectra\n"
        "from phenoscape_tune.data.spectra_figure import render_spectra\n"
        "assert 'matplotlib' not in sys.modules\n"
        "render_spectra(ClassSpectra.of_images(np.ones((2, 3)), np.zeros(2, int), ('a',), RGB))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"MPLBACKEND": "tkagg"}, timeout=120)
