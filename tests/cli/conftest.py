from __future__ import annotations

from pathlib import Path

import pytest
from tune_command import SPACE


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path
