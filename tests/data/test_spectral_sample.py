"""The hidden cue is in the hidden channels alone: told on the drawings to the bit, on the files by classifiers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.ndimage import binary_dilation, uniform_filter
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from spectral.io import envi

from phenoscape_tune.data import spectral_sample
from phenoscape_tune.data.sample_folder import MARKER
from phenoscape_tune.data.spectral_sample import (
    ABSORBED,
    CHANNELS,
    HYPERSPECTRAL_SPECIES,
    MULTISPECTRAL_SPECIES,
    WAVELENGTHS,
    draw_hyperspectral,
    draw_multispectral,
    write_hyperspectral_sample,
    write_multispectral_sample,
)
from phenoscape_tune.errors import UserError

PER_CLASS = 40
RGB_BANDS = [int(np.abs(WAVELENGTHS - nm).argmin()) for nm in (650, 550, 450)]
Write = Callable[..., Path]


def rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


@pytest.fixture(scope="module")
def multispectral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_multispectral_sample(tmp_path_factory.mktemp("m") / "specimens", per_class=PER_CLASS, size=32)


@pytest.fixture(scope="module")
def hyperspectral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hyperspectral_sample(tmp_path_factory.mktemp("h") / "specimens", per_class=PER_CLASS, size=24)


def read_all(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reflectances float32 (N, C, S, S) of every specimen of a sample, and its species (N,)."""
    images, species = [], []
    for index, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(kind.glob("*.tif")):
            images.append(tifffile.imread(path))
            species.append(index)
        for path in sorted(kind.glob("*.hdr")):
            images.append(envi.open(path).open_memmap(interleave="bsq"))
            species.append(index)
    return np.stack(images).astype(np.float32) / 65535, np.array(species)


def test_a_multispectral_file_is_what_was_drawn_with_its_channels_named(multispectral: Path) -> None:
    for index, species in enumerate(MULTISPECTRAL_SPECIES):
        path = multispectral / species / f"{species}_003.tif"
        with tifffile.TiffFile(path) as file:
            assert (len(file.pages), file.is_ome, file.series[0].axes) == (7, True, "CYX")
            assert file.ome_metadata is not None
            assert [name for name in CHANNELS if f'Name="{name}"' in file.ome_metadata] == list(CHANNELS)
            pixels = file.asarray()
        assert (pixels.dtype, pixels.shape) == (np.uint16, (7, 32, 32))
        np.testing.assert_array_equal(pixels, draw_multispectral(index, 32, rng(0, 7, index, 3)))
    assert {len(list(path.glob("*.tif"))) for path in multispectral.iterdir() if path.is_dir()} == {PER_CLASS}


def test_a_hyperspectral_file_is_what_was_drawn_with_its_wavelengths(hyperspectral: Path) -> None:
    for index, species in enumerate(HYPERSPECTRAL_SPECIES):
        image = envi.open(hyperspectral / species / f"{species}_003.hdr")
        assert (image.shape, image.dtype, image.metadata["interleave"]) == ((24, 24, 408), np.dtype("<u2"), "bil")
        assert image.bands.band_unit == "Nanometers"
        np.testing.assert_allclose(image.bands.centers, np.linspace(350, 1000, 408), atol=1e-3)
        assert float(image.metadata["reflectance scale factor"]) == 65535
        assert [int(band) - 1 for band in image.metadata["default bands"]] == RGB_BANDS
        stored = np.asarray(image.open_memmap(interleave="bsq"))
        np.testing.assert_array_equal(stored, draw_hyperspectral(index, 24, rng(0, 408, index, 3)))
    assert {len(list(path.glob("*.bil"))) for path in hyperspectral.iterdir() if path.is_dir()} == {PER_CLASS}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("pattern", range(3))
def test_two_species_of_one_draw_differ_in_the_ultraviolet_on_the_specimen_only(pattern: int, number: int) -> None:
    one, other = (draw_multispectral(2 * pattern + place, 64, rng(number)) for place in range(2))
    np.testing.assert_array_equal(one[[0, 1, 2, 6]], other[[0, 1, 2, 6]])
    mask = one[6] > 0
    assert set(np.unique(one[6])) == {0, 65535}
    assert 0.08 < mask.mean() < 0.6
    differs = np.abs(one[3:6].astype(int) - other[3:6]) > 0.02 * 65535
    assert differs[:, mask].mean() > 0.1
    # Beside the mask there may be what a pixel's wing, less than half of it, and the focus have left.
    assert not differs[:, ~binary_dilation(mask, iterations=3)].any()


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("pattern", range(2))
def test_two_species_of_one_draw_differ_in_two_narrow_bands_only(pattern: int, number: int) -> None:
    one, other = (draw_hyperspectral(2 * pattern + band, 24, rng(number)).astype(int) for band in range(2))
    in_a_band = np.any([np.abs(WAVELENGTHS - nm) < 18 + 2 for nm in ABSORBED], axis=0)
    np.testing.assert_array_equal(one[~in_a_band], other[~in_a_band])
    for nm, sign in zip(ABSORBED, (-1, 1), strict=True):
        middle = np.abs(WAVELENGTHS - nm).argmin()
        assert (sign * (one - other)[middle]).mean() > 0.004 * 65535
    assert not in_a_band[RGB_BANDS].any()


def appearance(images: np.ndarray) -> np.ndarray:
    """Much of what there is to see in images (N, C, S, S): (N, features).

    Means, spreads, quantiles and noise of each channel, its correlation with the others, its brightness by the distance
    from the picture's middle, and a small picture of it.
    """
    N, C, S, _ = images.shape
    flat = images.reshape(N, C, -1)
    noise = (images - uniform_filter(images, (0, 0, 3, 3))).reshape(N, C, -1).std(2)
    colours = np.stack([np.corrcoef(image)[np.triu_indices(C, 1)] for image in flat])
    ys, xs = np.mgrid[-1 : 1 : S * 1j, -1 : 1 : S * 1j]
    distance = np.hypot(xs, ys)
    rings = np.stack(
        [images[:, :, (distance >= low) & (distance < low + 0.15)].mean(2) for low in np.arange(0, 0.9, 0.15)], 2
    )
    small = images.reshape(N, C, 8, S // 8, 8, S // 8).mean((3, 5))
    quantiles = np.quantile(flat, (0.01, 0.1, 0.5, 0.9, 0.99), axis=2).transpose(1, 2, 0)
    parts = (flat.mean(2), flat.std(2), noise, colours, rings, rings / flat.mean(2)[..., None], small, quantiles)
    return np.concatenate([part.reshape(N, -1) for part in parts], axis=1)


def accuracies(features: np.ndarray, cue: np.ndarray) -> tuple[float, float]:
    """5-fold accuracy of a linear classifier and of neighbours at telling the two of a pair."""
    linear, neighbours = (
        float(cross_val_score(make_pipeline(StandardScaler(), classifier), features, cue, cv=5).mean())
        for classifier in (LogisticRegression(C=0.1, max_iter=2000), KNeighborsClassifier(15))
    )
    return linear, neighbours


# By chance the accuracy is 0.5 ± 0.032 for the 240 multispectral and ± 0.040 for the 160 hyperspectral specimens.
def test_red_green_blue_and_mask_do_not_tell_what_ultraviolet_does(multispectral: Path) -> None:
    images, species = read_all(multispectral)
    cue, ultraviolet = species % 2, images[:, 3:6]
    assert max(accuracies(appearance(images[:, [0, 1, 2, 6]]), cue)) < 0.62
    assert max(accuracies(images[:, 6].reshape(len(images), -1), cue)) < 0.62
    assert min(accuracies(appearance(ultraviolet), cue)) > 0.95
    # How bright the ultraviolet is does not tell either, only where it is.
    assert max(accuracies(images.mean((2, 3)), cue)) < 0.7


def test_the_bands_of_colours_do_not_tell_what_narrow_bands_do(hyperspectral: Path) -> None:
    images, species = read_all(hyperspectral)
    cue = species % 2
    assert max(accuracies(appearance(images[:, RGB_BANDS]), cue)) < 0.66
    spectra = np.log(images[:, :, 6:18, 6:18].mean((2, 3)))  # the specimen's, and a little of what it sits on
    slopes = np.diff(spectra, axis=1)
    assert accuracies(slopes, cue)[0] > 0.95
    near = np.any([np.abs(WAVELENGTHS - nm) < 24 for nm in ABSORBED], axis=0)
    assert max(accuracies(slopes[:, ~(near[1:] | near[:-1])], cue)) < 0.66
    # The nearest neighbours of a whole spectrum are those in the same light and on the same ground.
    assert accuracies(images.mean((2, 3)), cue)[1] < 0.7


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


BOTH = pytest.mark.parametrize(
    ("write", "drawer", "files", "species"),
    [
        (write_multispectral_sample, "draw_multispectral", 1, MULTISPECTRAL_SPECIES),
        (write_hyperspectral_sample, "draw_hyperspectral", 2, HYPERSPECTRAL_SPECIES),
    ],
    ids=["multispectral", "hyperspectral"],
)


@BOTH
def test_same_seed_same_files_other_seed_others(
    write: Write, drawer: str, files: int, species: tuple[str, ...], tmp_path: Path
) -> None:
    first, again, other = (
        digest(write(tmp_path / name, per_class=2, size=16, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert len(first) == 2 * files * len(species)
    assert first.keys() == other.keys()
    images = {name for name in first if not name.endswith(".hdr")}
    assert len({first[name] for name in images} | {other[name] for name in images}) == 2 * len(images)
    # Neither does the length of a file tell its species.
    for suffix in {Path(name).suffix for name in first}:
        assert len({(tmp_path / "a" / name).stat().st_size for name in first if name.endswith(suffix)}) == 1


@BOTH
def test_complete_sample_is_reused_and_another_replaced(
    write: Write, drawer: str, files: int, species: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, told = tmp_path / "s", []
    write(folder, per_class=1, size=16, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(species), len(species))
    with monkeypatch.context() as patched:
        patched.setattr(spectral_sample, drawer, lambda *arguments: pytest.fail("a specimen was drawn again"))
        assert write(folder, per_class=1, size=16) == folder
    write(folder, per_class=1, size=24)
    assert json.loads((folder / MARKER).read_text())["size"] == 24
    assert len(digest(folder)) == files * len(species)


@BOTH
def test_folder_with_other_files_is_never_touched(
    write: Write, drawer: str, files: int, species: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "wren.tif").write_bytes(b"mine")
    with pytest.raises(UserError, match="no generated sample"):
        write(tmp_path / "mine", per_class=1, size=16)
    assert digest(tmp_path) == {"mine/wren.tif": hashlib.sha256(b"mine").hexdigest()}
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "mine" / "wren.tif" / "s", per_class=1, size=16)


def test_a_sample_of_one_kind_is_replaced_by_the_other(tmp_path: Path) -> None:
    write_multispectral_sample(tmp_path / "s", per_class=1, size=16)
    write_hyperspectral_sample(tmp_path / "s", per_class=1, size=16)
    assert {Path(name).suffix for name in digest(tmp_path / "s")} == {".hdr", ".bil"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modality", "write", "size", "key", "colours", "more"),
    [
        ("multispectral", write_multispectral_sample, 32, "channels", "rgb_only", "full"),
        ("hyperspectral", write_hyperspectral_sample, 24, "bands", "rgb", "uniform:64"),
    ],
    ids=["multispectral", "hyperspectral"],
)
def test_an_encoder_that_sees_more_than_colours_tells_more_species(
    modality: str, write: Write, size: int, key: str, colours: str, more: str, tmp_path: Path
) -> None:
    import torch

    from phenoscape_tune.config import build_config
    from phenoscape_tune.layers import find_file, merge
    from phenoscape_tune.training.loop import train_simclr
    from phenoscape_tune.yaml_file import load_mapping

    folders = {"data_dir": str(write(tmp_path / "s", per_class=60, size=size)), "cache_dir": str(tmp_path / "cache")}
    shipped = load_mapping(find_file(modality, "configs"))
    objective = {}
    for number, value in enumerate((colours, more)):
        own = {
            key: value,
            "input_size": size,
            "batch_size": 32,
            "max_epochs": 14,
            "out_dir": str(tmp_path / f"{number}"),
        }
        config = build_config(merge(shipped, {**folders, **own}))
        objective[value] = train_simclr(config, lambda row: None, device=torch.device("cpu"))[-1]["objective_mean"]
    # Red, green and blue tell every second specimen at best: 0.5 ± 0.053 of 90, ± 0.065 of 60 validation images.
    assert objective[colours] < 0.63
    assert objective[more] > objective[colours] + 0.12
