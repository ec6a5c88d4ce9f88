from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from phenoscape_tune.cli import contact_sheet
from phenoscape_tune.cli.contact_sheet import (
    PAIRS,
    ROWS,
    choose_rows,
    describe_steps,
    draw_contact_sheet,
    printable,
)
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.parts import make_request
from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.survey import answer
from phenoscape_tune.transforms import TransformsConfig


def draw(specimens: Specimens, config: TrainConfig) -> Image.Image:
    return draw_contact_sheet(specimens, config, answer(specimens, make_request(config, specimens), 1))


@settings(deadline=None)
@given(st.lists(st.integers(-1, 14), min_size=1, max_size=60), st.booleans())
def test_rows_are_spread_over_the_classes(labels: list[int], labelled: bool) -> None:
    names = tuple(str(i) for i in range(len(labels)))
    known = np.array(labels) if labelled else None
    rows = choose_rows(Specimens(Path("/x"), names, known, (), names, ""))
    assert len(set(rows)) == len(rows) <= ROWS
    assert set(rows) <= set(range(len(labels)))
    assert len({labels[i] for i in rows}) == min(ROWS, len(set(labels))) or not labelled
    assert len(rows) == min(ROWS, len(labels)) or labelled


def test_the_sheet_shows_the_images_and_differing_views(birds: Path) -> None:
    specimens = find_specimens(birds)
    config = build_config({"data_dir": str(birds), "input_size": 32, "seed": 3})
    sheet = np.asarray(draw(specimens, config))
    again = np.asarray(draw(specimens, config))
    assert (sheet == again).all()
    assert sheet.shape[1] > (1 + 2 * PAIRS) * 128
    plain = build_config(
        {
            "data_dir": str(birds),
            "input_size": 32,
            "seed": 3,
            "transforms": {"cj_prob": 0, "random_gray_scale": 0, "gaussian_blur": 0, "hf_prob": 0, "min_scale": 1},
        }
    )
    assert (np.asarray(draw(specimens, plain)) != sheet).any()


def test_one_image_of_any_kind_makes_a_sheet(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 7).save(tmp_path / "dot.png")
    config = build_config({"data_dir": str(tmp_path), "input_size": 224})
    assert draw(find_specimens(tmp_path), config).height > 128


def test_ultraviolet_channels_have_a_row_of_their_own(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture alone: what is read are RGB files, whose blue stands here for an ultraviolet channel."""
    channels = Channels(("red", "green", "uv"), rgb=(0, 1, 1), uv=(2,))
    told: list[tuple[str, str]] = []
    own = contact_sheet.lay_out

    def lay_out(cells: Any, captions: Any, config: Any) -> Image.Image:
        told.extend(captions)
        assert all(np.ptp(np.asarray(cell), axis=2).max() == 0 for cell in cells[1])  # one channel, three times
        return own(cells, captions, config)

    monkeypatch.setattr(contact_sheet, "lay_out", lay_out)
    config = build_config({"data_dir": str(birds), "input_size": 32, "seed": 3})
    specimens = find_specimens(birds)
    recipe = answer(specimens, make_request(config, specimens), 1)
    sheet = draw_contact_sheet(specimens, config, replace(recipe, channels=channels))
    assert [label for _, label in told[:2]] == ["crow\nred, green, green", "crow\nuv, uv, uv"]
    assert len(told) == ROWS
    assert sheet.height > ROWS * 128


def test_the_line_above_tells_the_steps_that_happen() -> None:
    plain = describe_steps(TransformsConfig())
    assert plain.startswith("cj_prob 0.8, cj_strength 0.5, min_scale 0.08, random_gray_scale 0.2, gaussian_blur 0.5")
    assert plain.endswith("hf_prob 0.5")
    spectral = describe_steps(TransformsConfig(cj_prob=0, gain_prob=0.4, augmentation_strength=0.5))
    assert "cj_" not in spectral
    assert spectral.endswith("hf_prob 0.5, gain_prob 0.4, gain_strength 0.1, augmentation_strength 0.5")


def test_names_are_shown_whatever_their_characters() -> None:
    assert printable("Käfer 1.jpg") == "Käfer 1.jpg"
    assert printable("a\udcff\x1b[31m\n.jpg") == "a\\udcff\\x1b[31m\\n.jpg"
