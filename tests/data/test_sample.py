import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phenoscape_tune.data import sample
from phenoscape_tune.data.pictures import read_image
from phenoscape_tune.data.sample import SPECIES, write_sample
from phenoscape_tune.data.sample_folder import MARKER
from phenoscape_tune.data.specimens import find_specimens
from phenoscape_tune.data.split import split_specimens
from phenoscape_tune.errors import UserError


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*.png"))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def specimens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("sample") / "specimens", per_class=30, size=48)


def test_sample_is_a_folder_of_labelled_pictures(specimens_folder: Path) -> None:
    found = find_specimens(specimens_folder)
    assert found.classes == SPECIES
    assert found.labels is not None
    assert np.bincount(found.labels).tolist() == [30] * len(SPECIES)
    assert {Image.open(specimens_folder / name).size for name in found.names} == {(48, 48)}
    assert len(set(digest(specimens_folder).values())) == len(found.names)
    assert [path.name for path in specimens_folder.parent.iterdir()] == [specimens_folder.name]


def test_same_seed_same_pictures_other_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        digest(write_sample(tmp_path / name, per_class=2, size=24, seed=seed))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_complete_sample_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sample(tmp_path / "s", per_class=2, size=24)

    def refuse(*arguments: object) -> None:
        raise AssertionError("a picture was drawn again")

    monkeypatch.setattr(sample, "draw_specimen", refuse)
    assert write_sample(tmp_path / "s", per_class=2, size=24) == folder
    with pytest.raises(AssertionError, match="drawn again"):
        write_sample(tmp_path / "s", per_class=3, size=24)
    assert len(digest(folder)) == 2 * len(SPECIES), "an interrupted rewrite must leave the earlier sample whole"


def test_incomplete_or_different_sample_is_written_anew(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "s", per_class=2, size=24)
    whole = digest(folder)
    (folder / SPECIES[0] / f"{SPECIES[0]}_000.png").unlink()
    assert digest(write_sample(folder, per_class=2, size=24)) == whole
    assert len(digest(write_sample(folder, per_class=1, size=24))) == len(SPECIES)
    assert json.loads((folder / MARKER).read_text())["per_class"] == 1


def test_folder_with_other_files_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    write_sample(tmp_path / "s", per_class=1, size=24)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "wren.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="no generated sample"):
        write_sample(tmp_path / "mine", per_class=1, size=24)
    assert (tmp_path / "mine" / "wren.png").read_bytes() == b"mine"
    with pytest.raises(UserError, match="cannot be written"):
        write_sample(tmp_path / "mine" / "wren.png" / "s", per_class=1, size=24)


def knn_balanced_accuracy(features: np.ndarray, labels: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    features = features - features[train].mean(0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features[held_out] @ features[train].T
    nearest = np.argsort(-similarity, axis=1)[:, :15]
    weight = np.exp(np.take_along_axis(similarity, nearest, 1) / 0.07)
    votes = np.stack([(weight * (labels[train][nearest] == c)).sum(1) for c in range(len(SPECIES))], axis=1)
    correct = votes.argmax(1) == labels[held_out]
    return float(np.mean([correct[labels[held_out] == c].mean() for c in range(len(SPECIES))]))


def test_neither_raw_pixels_nor_mean_colour_nor_the_border_give_the_species_away(specimens_folder: Path) -> None:
    found = find_specimens(specimens_folder)
    assert found.labels is not None
    images = np.stack([read_image(found.root / name, (0, 0, 0)) for name in found.names]).astype(np.float32)
    split = split_specimens(found, 0.4, 0.0, 0)
    for features in (images, images.mean((2, 3)), images[:, :, :, :3]):
        flat = features.reshape(len(images), -1)
        assert knn_balanced_accuracy(flat, found.labels, split.train, split.val) < 0.5


def test_pictures_are_those_that_earlier_versions_drew() -> None:
    """Searches and benchmarks were run on them; sample_specimens.png: two of each species at 24 px, seed 0."""
    rows = [
        np.concatenate([sample.draw_specimen(i, 24, np.random.default_rng([0, i, n])) for i in range(len(SPECIES))], 1)
        for n in range(2)
    ]
    with Image.open(Path(__file__).parent / "sample_specimens.png") as image:
        drawn_then = np.asarray(image).astype(int)
    # Equal to the bit here; another processor's sine may differ in its last digit, and a value be cut one level lower.
    differs = np.abs(np.concatenate(rows) - drawn_then)
    assert differs.max() <= 2
    assert (differs > 0).mean() < 0.01
