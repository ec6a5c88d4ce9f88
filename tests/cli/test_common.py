from functools import partial
from pathlib import Path

import pytest

from phenoscape_tune.cli.common import ensure_data
from phenoscape_tune.config import build_config
from phenoscape_tune.data import sample, spectral_sample


@pytest.mark.parametrize(
    ("modality", "writer", "folder", "files"),
    [
        ("auto", "write_sample", "sample-specimens", 6),
        ("rgb", "write_sample", "sample-specimens", 6),
        ("multispectral", "write_multispectral_sample", "sample-specimens-multispectral", 6),
        ("hyperspectral", "write_hyperspectral_sample", "sample-specimens-hyperspectral", 8),
    ],
)
def test_without_a_data_dir_the_sample_is_that_of_the_modality(
    modality: str,
    writer: str,
    folder: str,
    files: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = sample if writer == "write_sample" else spectral_sample
    whole = getattr(module, writer)
    monkeypatch.setattr(
        module, writer, lambda path, per_class=1, progress=None: whole(path, per_class=1, size=16, progress=progress)
    )
    config = build_config({"modality": modality, "cache_dir": str(tmp_path)})
    found = ensure_data(config, quiet=False)
    assert found.data_dir == str(tmp_path / folder)
    assert found == config.model_copy(update={"data_dir": found.data_dir})
    images = [path for path in (tmp_path / folder).glob("*/*") if path.is_file()]
    assert len(images) == files
    specimens = len({path.stem for path in images})
    assert capsys.readouterr().err == f"drew {specimens} sample specimens\n"
    assert ensure_data(config, quiet=False) == found
    assert capsys.readouterr().err == "", "what is there is not drawn again"


def test_a_data_dir_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_sample, "write_multispectral_sample", partial(pytest.fail, "a sample was drawn"))
    config = build_config({"modality": "multispectral", "data_dir": str(tmp_path)})
    assert ensure_data(config) == config
