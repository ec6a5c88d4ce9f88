"""A search that varies what is read of the images looks at every choice before its first trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phenoscape_tune.config import TrainConfig, build_config
from phenoscape_tune.data.parts import open_parts, settle
from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import METRICS
from phenoscape_tune.search.choices import open_choices
from phenoscape_tune.search.space import build_space
from phenoscape_tune.search.trial import _images
from phenoscape_tune.settling import vary
from tests.data.test_cubes import write_cube, write_tiff

Tiny = Callable[..., TrainConfig]
RNG = np.random.default_rng(0)


def write_labelled(folder: Path, write: Callable[[Path, np.ndarray], Any], suffix: str, channels: int) -> Path:
    """2 x 10 images in class sub-folders."""
    for name in ("crow", "finch"):
        (folder / name).mkdir(parents=True)
        for index in range(10):
            pixels = RNG.integers(1000, 60000, (channels, 12, 12)).astype(np.uint16)
            write(folder / name / f"{index}{suffix}", pixels)
    return folder


def look(base: TrainConfig, metric: str = "knn_accuracy", **parameters: list[Any]) -> int:
    """Open the choices of a search over some keys."""
    space = build_space({"parameters": {key: {"type": "choice", "values": v} for key, v in parameters.items()}})
    parts = open_parts(base)
    return open_choices(space, settle(base, parts.images.recipe), parts, METRICS[metric])


@pytest.fixture
def tiffs(tmp_path: Path, tiny: Tiny) -> TrainConfig:
    folder = write_labelled(tmp_path / "tiffs", write_tiff, ".tif", 7)
    return tiny(data_dir=str(folder), input_size=12, batch_size=4, channels="full")


@pytest.fixture
def cubes(tmp_path: Path, tiny: Tiny) -> TrainConfig:
    """Of 40 bands, some of them in the ultraviolet."""

    def write(path: Path, pixels: np.ndarray) -> None:
        write_cube(path, pixels, wavelength=np.linspace(350, 1000, 40).tolist())

    folder = write_labelled(tmp_path / "cubes", write, ".hdr", 40)
    return tiny(data_dir=str(folder), input_size=12, batch_size=4, bands="rgb")


def test_every_choice_is_packed_and_the_most_channels_are_told(tiffs: TrainConfig, cubes: TrainConfig) -> None:
    assert look(tiffs, channels=["full", "rgb_only", "uv_only"]) == 6
    assert look(cubes, bands=["rgb", "uniform:32", "all"]) == 40
    assert look(tiffs, use_segmentation_mask=[False, True]) == 6


def test_a_trial_of_each_choice_has_what_is_its_own_by_default(tiffs: TrainConfig, cubes: TrainConfig) -> None:
    for base, key, values in ((tiffs, "channels", ["rgb_only", "uv_only"]), (cubes, "bands", ["all", "rgb"])):
        settled = settle(base, open_parts(base).images.recipe)
        for value in values:
            task = vary(settled, {key: value}, "a trial").to_unsettled_mapping()  # as it is sent to a trial's process
            config = build_config(task)
            settled_there = settle(config, _images(config).images.recipe)
            alone = base.model_copy(update={key: value})
            assert settled_there.transforms == settle(alone, open_parts(alone).images.recipe).transforms
            assert build_config(settled_there.to_mapping()) == settled_there


@pytest.mark.parametrize("bands", [["0", 1], [[0, 5], [1, 2]]])
def test_a_list_is_no_choice_of_a_search_space(bands: list[Any]) -> None:
    with pytest.raises(UserError, match="parameters.bands"):
        build_space({"parameters": {"bands": {"type": "choice", "values": bands}}})


def test_a_trial_opens_images_whose_channels_are_a_list(tiffs: TrainConfig) -> None:
    names = ["red", "green", "blue", "uv1", "uv2", "uv3", "mask"]
    config = tiffs.model_copy(update={"channels": ["red", "uv1"], "channel_names": names})
    assert _images(config).images.channels.names == ("red", "uv1")
    assert _images(config) is _images(config)


def test_without_labels_choices_of_other_images_are_not_compared(cubes: TrainConfig) -> None:
    with pytest.raises(UserError, match="parameters.bands: is searched, and trials are compared by reference contrast"):
        look(cubes, "reference_contrast", bands=["all", "rgb"])


def test_a_choice_that_the_files_do_not_have_is_told(tmp_path: Path, tiny: Tiny) -> None:
    folder = write_labelled(tmp_path / "tiffs", write_tiff, ".tif", 5)
    with pytest.raises(UserError, match="parameters.channels: rgb_only: channels: rgb_only: the files' channels are"):
        look(tiny(data_dir=str(folder), input_size=12, batch_size=4), channels=["full", "rgb_only"])


def test_a_step_that_has_no_meaning_for_a_choice_is_told(tiffs: TrainConfig) -> None:
    written = build_config({**tiffs.given(), "modality": "multispectral", "transforms": {"cj_prob": 0.4}})
    with pytest.raises(UserError, match="channels: uv_only: transforms.cj_prob: 0.4: colour jitter acts on red"):
        look(written, channels=["full", "uv_only"])
    gamma = {"type": "uniform", "low": 0.0, "high": 1.0}
    channels = {"type": "choice", "values": ["full", "rgb_only"]}
    space = build_space({"parameters": {"channels": channels, "transforms.gamma_prob": gamma}})
    parts = open_parts(tiffs)
    with pytest.raises(UserError, match="channels: rgb_only: transforms.gamma_prob: is searched too: the gamma curve"):
        open_choices(space, settle(tiffs, parts.images.recipe), parts, METRICS["knn_accuracy"])


def test_choices_that_can_read_different_images_are_refused(cubes: TrainConfig, tmp_path: Path) -> None:
    pixels = RNG.random((40, 12, 12)).astype(np.float32)
    pixels[0, 3] = np.nan  # in the ultraviolet
    folder = Path(str(cubes.data_dir)) / "crow"
    for file in folder.glob("0.*"):
        file.unlink()
    write_cube(folder / "0.hdr", pixels, wavelength=np.linspace(350, 1000, 40).tolist())
    base = cubes.model_copy(update={"max_unreadable": 0.2})
    with pytest.raises(UserError, match="bands: all: 19 images can be read, and 20 as the configuration is"):
        look(base, bands=["rgb", "all"])
