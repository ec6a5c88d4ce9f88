"""Every configuration and search space that ships is parsed, planned and found from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from phenoscape_tune.cli import train, tune
from phenoscape_tune.config import find_file, load_config, shipped_folder, unsupported_keys
from phenoscape_tune.search.space import load_space

SPACES = sorted(path.stem for path in shipped_folder("search_spaces").glob("*.yaml"))
CONFIGS = sorted(path.stem for path in shipped_folder("configs").glob("*.yaml"))


def test_the_documented_spaces_ship() -> None:
    assert {"lr", "lr_temp", "full", "demo"} <= set(SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_found_by_name_anywhere_and_planned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for spelling in (name, f"{name}.yaml"):
        load_space(spelling)
        assert tune.main(["--space", spelling, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "stage 0 defaults:" in printed
    assert "stage 1 lr: lr" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_found_by_name_and_supported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(f"configs/{name}.yaml")
    assert unsupported_keys(config) == []
    assert train.main(["--config", name, "--dry-run"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert load_config("again.yaml") == config


def test_a_misspelt_name_names_the_nearest() -> None:
    with pytest.raises(Exception, match="lr_tmp.*did you mean 'lr_temp'"):
        find_file("lr_tmp", "search_spaces")
