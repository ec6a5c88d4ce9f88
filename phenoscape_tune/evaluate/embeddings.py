"""The features h of many images, and the files that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from phenoscape_tune.augment import plain_view
from phenoscape_tune.data.batches import Batches
from phenoscape_tune.model import Encoder

FORMATS = ("csv", "parquet", "safetensors")
_ROWS = 4096  # written at a time: bounds what is held beside the embeddings themselves

Progress = Callable[[int, int], None]


@torch.inference_mode()
def embed_images(
    encoder: Encoder,
    batches: Batches,
    count: int,
    size: int,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Features h (N, D), float32, of the first `count` (N) images, whole and without augmentation.

    Args:
        encoder: on the device of the batches, in evaluation mode.
        size: side of the network's input, in pixels.
        dtype: autocast type; None for float32.
        progress: gets (done, total).
    """
    features = np.empty((count, encoder.feature_dim), dtype=np.float32)
    device, done = batches.device.type, 0
    for images in batches.in_order(np.arange(count)):
        view = plain_view(images, size).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            h = encoder.features(view)  # (B, D)
        features[done : done + len(h)] = h.float().cpu().numpy()
        done += len(h)
        if progress is not None:
            progress(done, count)
    return features


def readable(name: str) -> str:
    r"""A file name as UTF-8 can hold it: bytes that are none are written as \xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_csv(path: Path, names: Sequence[str], features: np.ndarray) -> None:
    """Columns filename, x1 ... xd; a row an image, names as they are on the disk, nine digits tell all of float32."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", *_columns(features)])
        for name, row in zip(names, features, strict=True):
            writer.writerow([name, *map("{:.9g}".format, row.tolist())])


def write_parquet(path: Path, names: Sequence[str], features: np.ndarray) -> None:
    """The same columns, float32. A name that is not UTF-8 stands there as `readable` writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _columns(features)
    schema = pa.schema([("filename", pa.string()), *((column, pa.float32()) for column in columns)])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(names), _ROWS):
            rows = features[start : start + _ROWS]
            told = pa.array([readable(name) for name in names[start : start + _ROWS]], pa.string())
            arrays = [told, *map(pa.array, np.ascontiguousarray(rows.T))]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def write_safetensors(path: Path, names: Sequence[str], features: np.ndarray) -> None:
    """The tensor `embeddings` (N, D), float32; the names as a JSON list in the metadata's `filenames`."""
    from safetensors.numpy import save_file

    save_file({"embeddings": features}, path, metadata={"filenames": json.dumps(list(names))})


WRITERS = {"csv": write_csv, "parquet": write_parquet, "safetensors": write_safetensors}


def _columns(features: np.ndarray) -> list[str]:
    return [f"x{number}" for number in range(1, features.shape[1] + 1)]
