from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from phenoscape_tune.data.channels import RGB, Channels
from phenoscape_tune.evaluate import projector
from phenoscape_tune.evaluate.projector import write_projector


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (7, 7), (30, 10)])
def test_points_names_and_pictures_belong_together(
    count: int, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector, "POINTS", 10)
    images = np.repeat(np.arange(count, dtype=np.uint8) * 8, 3 * 4 * 4).reshape(count, 3, 4, 4)
    features = np.arange(count, dtype=np.float32)[:, None].repeat(2, axis=1)
    names, classes = [f"{n}\t.jpg" for n in range(count)], ["" if n % 2 else "crow" for n in range(count)]
    assert write_projector(tmp_path, images, features, names, classes, RGB) == shown
    config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig()).embeddings[0]
    points = np.loadtxt(tmp_path / config.tensor_path, ndmin=2)[:, 0].astype(int)
    header, *rows = (tmp_path / config.metadata_path).read_text().splitlines()
    assert header == "filename\tclass"
    assert rows == [f"{n} .jpg\t{classes[n] or '(no label)'}" for n in points]
    sprite = np.asarray(Image.open(tmp_path / config.sprite.image_path))
    side, across = config.sprite.single_image_dim[0], sprite.shape[1] // config.sprite.single_image_dim[0]
    for place, n in enumerate(points):
        assert sprite[place // across * side + side // 2, place % across * side + side // 2, 0] == 8 * n
    assert list(tmp_path.glob("events.*"))  # else a folder above it does not show it


def test_one_column_has_no_header(tmp_path: Path) -> None:
    write_projector(
        tmp_path, np.zeros((2, 1, 4, 4), np.uint8), np.eye(2, dtype=np.float32), ["a", "b"], None, Channels(("grey",))
    )
    assert (tmp_path / "metadata.tsv").read_text() == "a\nb\n"


def test_the_pictures_of_other_channels_are_in_false_colour(tmp_path: Path) -> None:
    channels = Channels(("uv1", "uv2", "uv3"), uv=(0, 1, 2))
    images = np.zeros((2, 3, 4, 4), np.uint16)
    images[:, 2] = 6553  # a tenth: dark, and shown bright
    write_projector(tmp_path, images, np.eye(2, dtype=np.float32), ["a", "b"], None, channels)
    assert np.asarray(Image.open(tmp_path / "sprite.png"))[0, 0].tolist() == [255, 0, 0]
