from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phenoscape_tune.cli.contact_sheet import PAIRS, ROWS, choose_rows, draw_contact_sheet, printable
from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.parts import make_request
from phenoscape_tune.data.specimens import Specimens, find_specimens
from phenoscape_tune.data.survey import answer


def draw(specimens: Specimens, config: TrainConfig) -> Image.Image:
    return draw_contact_sheet(specimens, config, answer(specimens, make_request(config, specimens), 1))


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


def test_names_are_shown_whatever_their_characters() -> None:
    assert printable("Käfer 1.jpg") == "Käfer 1.jpg"
    assert printable("a\udcff\x1b[31m\n.jpg") == "a\\udcff\\x1b[31m\\n.jpg"
