from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct

from phenoscape_tune.spectral_stem import build_spectral_stem, spectral_stem_state, stem_shape


@pytest.mark.parametrize(("channels", "width"), [(408, 8), (6, 3), (5, 5), (4, 1)])
def test_it_begins_as_the_first_cosines(channels: int, width: int) -> None:
    weights = build_spectral_stem(channels, width)[0].weight.detach().flatten(1)  # (k, C)
    wanted = dct(np.eye(channels), norm="ortho", axis=0)[:width]
    assert np.allclose(weights, wanted, atol=1e-6)


def test_independent_channels_keep_their_variance() -> None:
    mixture = build_spectral_stem(30, 6)[0]
    mixed = mixture(torch.randn(64, 30, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert mixed.var((0, 2, 3)).tolist() == pytest.approx([1] * 6, rel=0.05)


def test_spectra_of_correlated_bands_come_out_nearly_uncorrelated_and_alike_in_scale() -> None:
    """Where random mixtures are mostly brightness."""
    rng, rho, channels = np.random.default_rng(0), 0.99, 200
    spectra = rng.normal(size=(4000, channels))
    for band in range(1, channels):
        spectra[:, band] = rho * spectra[:, band - 1] + np.sqrt(1 - rho**2) * spectra[:, band]
    spectra += 3 * rng.normal(size=(4000, 1))  # brightness of a pixel
    images = torch.from_numpy(spectra.astype(np.float32))[..., None, None]  # (n, C, 1, 1)

    def correlation(mixtures: torch.Tensor) -> float:
        told = torch.corrcoef(mixtures.flatten(1).T)
        return float(told[~torch.eye(8, dtype=torch.bool)].abs().mean())

    stem = build_spectral_stem(channels, 8)
    mixed = stem(images).detach()
    assert correlation(mixed) < 0.1
    assert mixed.std((0, 2, 3)).tolist() == pytest.approx([1] * 8, rel=0.02)
    torch.nn.init.normal_(stem[0].weight, generator=torch.Generator().manual_seed(0))
    assert correlation(stem(images).detach()) > 0.4


def test_its_state_is_found_among_other_tensors() -> None:
    stem = build_spectral_stem(9, 4)
    state = {f"spectral_stem.{key}": value for key, value in stem.state_dict().items()} | {"mean": torch.zeros(1)}
    own = spectral_stem_state(state)
    assert own is not None
    assert own.keys() == stem.state_dict().keys()
    assert stem_shape(own) == (9, 4)
    assert spectral_stem_state({"mean": torch.zeros(1)}) is None
