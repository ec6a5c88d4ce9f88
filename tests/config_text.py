"""Configurations as text in a file, for tests of more than one room."""

from __future__ import annotations

from pathlib import Path

from phenoscape_tune.config import TrainConfig
from phenoscape_tune.layers import load_config, parse_overrides


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def load_text(folder: Path, text: str, *overrides: str) -> TrainConfig:
    return load_config(str(write(folder, text)), parse_overrides(overrides))
