"""Embeddings for TensorBoard's projector: points, what they are called, and their pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from phenoscape_tune.data.channels import Channels
from phenoscape_tune.data.false_colour import false_colour
from phenoscape_tune.data.images import Pixels

POINTS = 5000  # evenly taken from more: the projector runs in a browser
_THUMBNAIL, _LARGEST_SPRITE = 64, 8192  # px
_LOOKED_AT = 32  # images by which the brightness of all is chosen


def write_projector(
    folder: Path,
    images: Pixels,
    features: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str] | None,
    channels: Channels,
) -> int:
    """Write what `tensorboard --logdir` shows in its PROJECTOR tab; returns the number of points.

    Args:
        folder: exists; the log folder.
        images: (N, C, S, S), shown in false colour where they are not red, green and blue; features: (N, D) float32.
        names: N file names that UTF-8 can hold; classes: N class names, "" for an unlabelled image.
        channels: the C channels.
    """
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    chosen = np.unique(np.linspace(0, len(names) - 1, min(POINTS, len(names))).round().astype(np.int64))
    with (folder / "tensors.tsv").open("w", encoding="utf-8") as file:
        for row in features[chosen]:
            file.write("\t".join(map("{:.6g}".format, row.tolist())) + "\n")
    with (folder / "metadata.tsv").open("w", encoding="utf-8") as file:
        # A single column must have no header there.
        if classes is not None:
            file.write("filename\tclass\n")
        for index in chosen:
            cells = [names[index]] if classes is None else [names[index], classes[index] or "(no label)"]
            file.write("\t".join(" ".join(cell.split()) or "-" for cell in cells) + "\n")
    side = _write_sprite(folder / "sprite.png", images, chosen, channels)
    (folder / "projector_config.pbtxt").write_text(
        "embeddings {\n"
        f"  tensor_name: {json.dumps('embeddings h')}\n"
        '  tensor_path: "tensors.tsv"\n'
        '  metadata_path: "metadata.tsv"\n'
        f'  sprite {{\n    image_path: "sprite.png"\n    single_image_dim: {side}\n    single_image_dim: {side}\n  }}\n'
        "}\n",
        encoding="utf-8",
    )
    EventFileWriter(str(folder)).close()  # makes the folder a run, which is found from a folder above it too
    return len(chosen)


def _write_sprite(path: Path, images: Pixels, chosen: np.ndarray, channels: Channels) -> int:
    """Small pictures in rows of a square; returns the side of one, in pixels."""
    across = int(np.ceil(len(chosen) ** 0.5))
    side = min(_THUMBNAIL, _LARGEST_SPRITE // across)
    sprite = Image.new("RGB", (across * side, across * side), "white")
    picture = false_colour(channels, (images[index] for index in chosen[:: -(-len(chosen) // _LOOKED_AT)]))
    for number, index in enumerate(chosen):
        thumbnail = Image.fromarray(picture(images[index])).resize((side, side))
        sprite.paste(thumbnail, (number % across * side, number // across * side))
    sprite.save(path)
    return side
