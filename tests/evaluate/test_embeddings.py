from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from phenoscape_tune.evaluate import embeddings
from phenoscape_tune.evaluate.embeddings import WRITERS, readable

NAMES = ["a/1.jpg", "b,with\ncomma.jpg", "caf\udce9.jpg"]  # the last is Latin-1 on the disk
FEATURES = np.array([[0.1, 1e-30], [-2.5, 3e30], [1 / 3, 0.0]], dtype=np.float32)


@pytest.mark.parametrize("kind", WRITERS)
def test_every_file_holds_the_names_and_all_digits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_ROWS", 2)
    path = tmp_path / f"e.{kind}"
    WRITERS[kind](path, NAMES, FEATURES)
    names = NAMES
    if kind == "csv":
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = csv.reader(file)
        assert header == ["filename", "x1", "x2"]
        names, read = [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float32)
    elif kind == "parquet":
        table = pq.read_table(path)
        assert table.column_names == ["filename", "x1", "x2"]
        assert table["filename"].to_pylist() == [*NAMES[:2], "caf\\xe9.jpg"]
        read = np.stack([table[f"x{n}"].to_numpy() for n in (1, 2)], axis=1)
    else:
        with safe_open(path, "numpy") as file:
            read, names = file.get_tensor("embeddings"), json.loads(file.metadata()["filenames"])
    assert list(names) == NAMES
    assert read.dtype == np.float32
    assert np.array_equal(read, FEATURES)


def test_a_name_that_is_utf8_stays() -> None:
    assert readable("Müller/ß.png") == "Müller/ß.png"
