from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phenoscape_tune.evaluate import label_free
from phenoscape_tune.evaluate.label_free import (
    alignment,
    feature_std,
    lidar,
    rankme,
    reference_contrast,
    retrieval_accuracy,
    uniformity,
)

ON_VIEWS = [reference_contrast, retrieval_accuracy, lidar, alignment]
ON_FEATURES = [rankme, uniformity, feature_std]
SHAPES = [(f, (2, 12, 7)) for f in ON_VIEWS] + [(f, (12, 7)) for f in ON_FEATURES]
several = pytest.mark.parametrize(("score", "shape"), SHAPES, ids=lambda x: getattr(x, "__name__", ""))
quick = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**31)

Score = Callable[[Tensor], float]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs(n: int, width: int, seed: int = 0, spread: float = 0.3) -> Tensor:
    """Two views of n images that are alike, off the origin as features after a ReLU are: (2, n, width)."""
    return 2 + noise(n, width, seed=seed) + spread * noise(2, n, width, seed=seed + 1)


def rotation(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(width, width, seed=seed)).Q


def entropy_rank(spectrum: list[float]) -> float:
    """RankMe's equations 1 and 2, one value at a time."""
    p = [value / sum(spectrum) + 1e-7 for value in spectrum]
    return math.exp(-sum(x * math.log(x) for x in p))


# ---------------------------------------------------------------- reference contrast


def slow_contrast(views: Tensor, temperature: float) -> float:
    """SimCLR's equation 1, one pair at a time, on centred features."""
    z = [*views[0], *views[1]]
    mean = sum(z) / len(z)
    z = [x - mean for x in z]
    n = len(z) // 2

    def weight(a: Tensor, b: Tensor) -> float:
        return math.exp(float(a @ b / (a.norm() * b.norm())) / temperature)

    def loss(i: int, j: int) -> float:
        return -math.log(weight(z[i], z[j]) / sum(weight(z[i], z[k]) for k in range(2 * n) if k != i))

    return sum(loss(k, k + n) + loss(k + n, k) for k in range(n)) / (2 * n)


@quick
@given(n=st.integers(2, 7), width=st.integers(2, 6), temperature=st.floats(0.05, 1.0), seed=seeds)
def test_reference_contrast_equals_the_paper_on_centred_features(
    n: int, width: int, temperature: float, seed: int
) -> None:
    views = pairs(n, width, seed)
    assert reference_contrast(views, temperature) == pytest.approx(slow_contrast(views, temperature), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_aligned_pairs_in_a_simplex_give_the_closed_form(temperature: float) -> None:
    # n points of an orthonormal frame lie, centred, at cosine -1/(n-1) of each other.
    n = 8
    views = torch.eye(n, dtype=torch.float64).expand(2, n, n)
    apart = -1 / (n - 1)
    expected = math.log(1 + (2 * n - 2) * math.exp((apart - 1) / temperature))
    assert reference_contrast(views, temperature) == pytest.approx(expected, rel=1e-9)


@quick
@given(seed=seeds, scale=st.floats(1e-6, 1e6), shift=st.floats(-10, 10))
def test_reference_contrast_knows_no_scale_offset_rotation_or_order(seed: int, scale: float, shift: float) -> None:
    views = pairs(9, 5, seed)
    expected = reference_contrast(views)
    moved = (views @ rotation(5, seed) + shift) * scale
    assert reference_contrast(moved) == pytest.approx(expected, rel=1e-6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    assert reference_contrast(views.flip(0)[:, order]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [2, 50])
def test_collapsed_features_have_the_contrast_of_no_information(n: int) -> None:
    for features in (torch.zeros(2, n, 6), torch.full((2, n, 6), 0.1), torch.rand(6).expand(2, n, 6)):
        assert reference_contrast(features) == pytest.approx(math.log(2 * n - 1), rel=1e-6)


def test_float32_rounding_of_collapsed_features_is_not_scored() -> None:
    # Views that agree in their rounding errors would else look like a perfect encoder.
    rounding = 1 + 1e-7 * noise(20, 6)
    assert reference_contrast(rounding.float().expand(2, 20, 6)) == pytest.approx(math.log(39), rel=1e-6)
    assert lidar(rounding.float().expand(2, 20, 6)) == pytest.approx(1, abs=1e-3)


def test_better_agreement_of_views_is_a_lower_contrast() -> None:
    values = [reference_contrast(pairs(60, 8, spread=spread)) for spread in (0.05, 0.3, 1.0, 5.0)]
    assert values == sorted(values)
    assert values[-1] - values[0] > 1


def test_chunks_do_not_change_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    views = pairs(23, 5)
    whole = reference_contrast(views), retrieval_accuracy(views), uniformity(views[0])
    monkeypatch.setattr(label_free, "_ROWS", 7)
    assert (reference_contrast(views), retrieval_accuracy(views), uniformity(views[0])) == pytest.approx(whole)


def test_a_rank_scores_its_own_features_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    # The scores are computed by one rank alone: an exchange would wait for ever.
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("exchanged features")

    views = pairs(6, 4)
    expected = reference_contrast(views)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    for name in ("all_gather", "all_reduce", "get_world_size", "get_rank"):
        monkeypatch.setattr(dist, name, refuse)
    assert reference_contrast(views) == expected


# ---------------------------------------------------------------- retrieval


def slow_retrieval(views: Tensor) -> float:
    n = views.shape[1]
    z = views.flatten(0, 1) - views.flatten(0, 1).mean(0)
    hits = 0
    for i in range(2 * n):
        cosine = {k: float(z[i] @ z[k] / (z[i].norm() * z[k].norm())) for k in range(2 * n) if k != i}
        hits += max(cosine, key=lambda k: cosine[k]) == (i + n) % (2 * n)
    return hits / (2 * n)


@quick
@given(n=st.integers(2, 12), width=st.integers(2, 5), spread=st.floats(0.1, 3), seed=seeds)
def test_retrieval_accuracy_equals_a_search_one_view_at_a_time(n: int, width: int, spread: float, seed: int) -> None:
    views = pairs(n, width, seed, spread)
    assert retrieval_accuracy(views) == pytest.approx(slow_retrieval(views))


def test_retrieval_accuracy_of_equal_views_is_one_and_of_unrelated_ones_is_chance() -> None:
    assert retrieval_accuracy(noise(1, 30, 8).expand(2, 30, 8)) == 1
    assert retrieval_accuracy(noise(2, 300, 8)) < 0.05
    assert retrieval_accuracy(torch.ones(2, 30, 8)) == 0


# ---------------------------------------------------------------- ranks


@quick
@given(n=st.integers(1, 9), width=st.integers(1, 9), seed=seeds)
def test_rankme_equals_the_paper(n: int, width: int, seed: int) -> None:
    features = noise(n, width, seed=seed)
    spectrum = np.linalg.svd(features.numpy(), compute_uv=False).tolist()
    assert rankme(features) == pytest.approx(entropy_rank(spectrum), rel=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_singular_values_counts_them(rank: int) -> None:
    frame = torch.linalg.qr(noise(40, rank)).Q @ torch.linalg.qr(noise(8, rank, seed=1)).Q.T  # (40, 8)
    assert rankme(frame) == pytest.approx(rank, rel=1e-4)


@quick
@given(seed=seeds, scale=st.floats(1e-6, 1e6))
def test_rankme_knows_no_scale_or_rotation(seed: int, scale: float) -> None:
    features = noise(20, 5, seed=seed)
    assert rankme(scale * features @ rotation(5, seed)) == pytest.approx(rankme(features), rel=1e-9)


def test_rankme_of_collapsed_features_is_one() -> None:
    for features in (torch.zeros(20, 6), torch.rand(6).expand(20, 6)):
        assert rankme(features) == pytest.approx(1, abs=1e-4)


def slow_lidar(views: np.ndarray, delta: float) -> float:
    """LiDAR's covariances by loops over images and views, its whitening by a matrix square root."""
    q, n, width = views.shape
    means = [sum(views[j, i] for j in range(q)) / q for i in range(n)]
    mean = sum(means) / n
    between = sum(np.outer(m - mean, m - mean) for m in means) / (n - 1)
    within = sum(np.outer(views[j, i] - means[i], views[j, i] - means[i]) for i in range(n) for j in range(q))
    values, vectors = np.linalg.eigh(within / (n * (q - 1)) + delta * np.eye(width))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return entropy_rank(np.linalg.eigvalsh(root @ between @ root).clip(0).tolist())


@quick
@given(q=st.integers(2, 4), n=st.integers(2, 8), width=st.integers(1, 6), seed=seeds)
def test_lidar_equals_the_design(q: int, n: int, width: int, seed: int) -> None:
    views = noise(n, width, seed=seed) + 0.5 * noise(q, n, width, seed=seed + 1)
    assert lidar(views) == pytest.approx(slow_lidar(views.numpy(), 1e-4), rel=1e-6)


def test_lidar_counts_the_directions_in_which_images_differ() -> None:
    # Images on the corners of a cross in 3 of 8 dimensions, the same noise within images in all 8.
    corners = torch.cat([torch.eye(8, dtype=torch.float64)[:3], -torch.eye(8, dtype=torch.float64)[:3]])
    jitter = 0.1 * torch.cat([torch.eye(8, dtype=torch.float64), -torch.eye(8, dtype=torch.float64)])[:, None]
    views = corners + jitter  # (16, 6, 8)
    assert lidar(views) == pytest.approx(3, rel=1e-4)


def test_lidar_is_not_drawn_to_noise_that_rankme_counts() -> None:
    signal = torch.cat([noise(200, 2), torch.zeros(200, 6, dtype=torch.float64)], 1)
    views = signal + noise(3, 200, 8, seed=1) * torch.tensor([0.01, 0.01, 1, 1, 1, 1, 1, 1])
    assert lidar(views) < 2.2
    assert rankme(views.flatten(0, 1)) > 6


def test_lidar_of_collapsed_features_is_one() -> None:
    for features in (torch.zeros(3, 20, 6), torch.rand(6).expand(3, 20, 6), torch.rand(6).double().expand(3, 20, 6)):
        assert lidar(features) == pytest.approx(1, abs=1e-4)


def test_lidar_of_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="two views"):
        lidar(noise(1, 5, 4))


# ---------------------------------------------------------------- spread on the sphere


def on_sphere(x: Tensor) -> np.ndarray:
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


@quick
@given(n=st.integers(2, 9), width=st.integers(1, 6), seed=seeds)
def test_uniformity_and_alignment_equal_the_paper(n: int, width: int, seed: int) -> None:
    views = noise(2, n, width, seed=seed)
    a, b = on_sphere(views)
    potentials = [math.exp(-2 * float(((x - y) ** 2).sum())) for x, y in itertools.combinations(a, 2)]
    assert uniformity(views[0]) == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-9, abs=1e-12)
    assert alignment(views) == pytest.approx(np.mean([((x - y) ** 2).sum() for x, y in zip(a, b, strict=True)]))


def test_uniformity_of_spread_directions_is_four_and_of_collapsed_ones_is_zero() -> None:
    assert uniformity(noise(2000, 400)) == pytest.approx(-4, abs=0.05)
    assert uniformity(torch.eye(5)) == pytest.approx(-4, rel=1e-5)
    assert uniformity(torch.rand(6).expand(20, 6)) == pytest.approx(0, abs=1e-6)
    assert uniformity(torch.zeros(20, 6)) == 0


def test_alignment_of_opposite_views_is_four_and_of_equal_ones_is_zero() -> None:
    x = noise(20, 6)
    assert alignment(torch.stack([x, -x])) == pytest.approx(4)
    assert alignment(torch.stack([x, 3 * x])) == pytest.approx(0, abs=1e-12)


@quick
@given(n=st.integers(1, 30), width=st.integers(1, 8), seed=seeds)
def test_feature_std_equals_simsiams_and_stays_within_its_range(n: int, width: int, seed: int) -> None:
    features = noise(n, width, seed=seed)
    expected = on_sphere(features).std(axis=0).mean() * math.sqrt(width)
    assert feature_std(features) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert 0 <= feature_std(features) <= 1 + 1e-9


def test_feature_std_is_one_for_spread_features_and_zero_for_collapsed_ones() -> None:
    assert feature_std(noise(4000, 128)) == pytest.approx(1, abs=0.01)
    assert feature_std(noise(4000, 128) + 10) < 0.2
    assert feature_std(torch.rand(128).expand(50, 128)) == 0
    assert feature_std(torch.zeros(50, 128)) == 0


@quick
@given(seed=seeds, scale=st.floats(1e-6, 1e6))
def test_what_is_measured_on_the_sphere_knows_no_scale(seed: int, scale: float) -> None:
    views = noise(2, 9, 5, seed=seed)
    turned = scale * views @ rotation(5, seed)
    assert alignment(turned) == pytest.approx(alignment(views), rel=1e-6)
    assert uniformity(turned[0]) == pytest.approx(uniformity(views[0]), rel=1e-6)
    assert retrieval_accuracy(turned) == retrieval_accuracy(views)
    assert feature_std(scale * views[0]) == pytest.approx(feature_std(views[0]), rel=1e-6)


# ---------------------------------------------------------------- all of them


@several
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_features_that_are_not_finite_give_nan(score: Score, shape: tuple[int, ...], bad: float) -> None:
    features = noise(*shape).float()
    assert math.isfinite(score(features))
    features.view(-1)[5] = bad
    assert math.isnan(score(features))


@several
def test_half_precision_is_raised(score: Score, shape: tuple[int, ...]) -> None:
    half = (2 + noise(*shape)).half()
    assert score(half) == pytest.approx(score(half.float()), rel=1e-6)
    assert score(half) == pytest.approx(score(half.double()), rel=1e-4)


@several
def test_autocast_does_not_reach_the_scores(score: Score, shape: tuple[int, ...]) -> None:
    features = 2 + noise(*shape).float()
    expected = score(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert score(features) == expected


@several
def test_no_gradient_is_kept_and_the_input_stays(score: Score, shape: tuple[int, ...]) -> None:
    features = noise(*shape).requires_grad_()
    before = features.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where a number is taken out of a graph
        assert type(score(features)) is float
    assert torch.equal(features, before)


@several
def test_a_wrong_shape_is_refused(score: Score, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \((q, |2, )?n, D\), got \(5,\)"):
        score(torch.ones(5))
    with pytest.raises(ValueError, match="got"):
        score(torch.ones(*shape[:-1], 0))


@several
def test_features_far_from_one_are_scored(score: Score, shape: tuple[int, ...]) -> None:
    tiny, huge = noise(*shape).float() * 1e-15, noise(*shape).float() * 1e15
    for features in (tiny, huge):
        assert math.isfinite(score(features))
    if score is not lidar:  # its delta is absolute
        assert score(tiny) == pytest.approx(score(noise(*shape).float()), rel=1e-4)
