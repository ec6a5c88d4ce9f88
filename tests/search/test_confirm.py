import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phenoscape_tune.search import confirm
from phenoscape_tune.search.confirm import Gain, bootstrap_gain, paired_gain, read_scores, seed_gain

LABELS = np.repeat(["crow", "finch", "robin"], 30)


def flips(rate_up: float, rate_down: float, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Differences of correctness: +1 where only the winner is right, -1 where only the baseline is."""
    return rng.choice([1.0, -1.0, 0.0], (seeds, len(LABELS)), p=[rate_up, rate_down, 1 - rate_up - rate_down])


def test_no_difference_at_all_has_an_interval_of_nothing_but_zero() -> None:
    assert bootstrap_gain(np.zeros((3, 90)), LABELS, 0) == Gain(0.0, 0.0, 0.0, 3)


@pytest.mark.parametrize("seed", range(3))
def test_equally_good_ones_are_no_clear_gain(seed: int) -> None:
    gain = bootstrap_gain(flips(0.2, 0.2, 3, np.random.default_rng(seed)), LABELS, 0)
    assert gain.low < 0 < gain.high
    assert not gain.clear


@pytest.mark.parametrize("sign", [1, -1])
def test_a_large_difference_is_clear_in_its_direction(sign: int) -> None:
    gain = bootstrap_gain(sign * flips(0.4, 0.02, 3, np.random.default_rng(0)), LABELS, 0)
    assert gain.clear
    assert (gain.low > 0) == (sign > 0)
    assert gain.low < gain.value < gain.high
    assert abs(gain.value) == pytest.approx(0.38, abs=0.08)


def test_a_certain_difference_has_its_value_as_interval() -> None:
    assert bootstrap_gain(np.ones((2, 90)), LABELS, 0) == Gain(1.0, 1.0, 1.0, 2)


def test_the_gain_is_balanced_over_classes() -> None:
    # 90 crows unchanged, 10 finches all gained: half of the balanced accuracy, a tenth of the plain one.
    labels = np.array(["crow"] * 90 + ["finch"] * 10)
    gain = bootstrap_gain(np.array([[0.0] * 90 + [1.0] * 10] * 2), labels, 0)
    assert (gain.value, gain.low, gain.high) == (0.5, 0.5, 0.5)


def test_the_interval_narrows_with_more_specimens_and_widens_with_noisier_seeds() -> None:
    rng = np.random.default_rng(1)
    few = bootstrap_gain(flips(0.3, 0.1, 3, rng)[:, ::3], LABELS[::3], 0)
    many = bootstrap_gain(np.tile(flips(0.3, 0.1, 3, rng), 4), np.tile(LABELS, 4), 0)
    assert many.high - many.low < few.high - few.low
    steady = np.tile(flips(0.3, 0.1, 1, rng), (3, 1))
    shaken = np.clip(steady + np.array([[-1.0], [0.0], [1.0]]), -1, 1)
    assert bootstrap_gain(shaken, LABELS, 0).high > bootstrap_gain(steady, LABELS, 0).high + 0.1


def test_the_interval_follows_from_the_seed() -> None:
    differences = flips(0.3, 0.1, 3, np.random.default_rng(0))
    assert bootstrap_gain(differences, LABELS, 1) == bootstrap_gain(differences, LABELS, 1)
    assert bootstrap_gain(differences, LABELS, 1) != bootstrap_gain(differences, LABELS, 2)


def trained(gain: float, seeds: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Differences of `seeds` pairs of trainings: specimens that differ in difficulty, trainings that differ by luck."""
    difficulty = rng.beta(4, 2, len(LABELS))
    winner = difficulty + gain + rng.normal(0, noise, (seeds, 1))
    baseline = difficulty + rng.normal(0, noise, (seeds, 1))
    draws = rng.random((2, seeds, len(LABELS)))
    return (draws[0] < winner).astype(float) - (draws[1] < baseline).astype(float)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_the_interval_covers_the_true_gain_in_about_95_of_100_searches(
    seeds: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirm, "DRAWS", 150)
    # What the mean over many trainings comes to; probabilities above 1 are cut off.
    truth = float(np.mean([trained(0.05, 50, noise, np.random.default_rng(10**6 + i)).mean() for i in range(60)]))
    gains = [bootstrap_gain(trained(0.05, seeds, noise, np.random.default_rng(i)), LABELS, i) for i in range(80)]
    covered = float(np.mean([gain.low <= truth <= gain.high for gain in gains]))
    assert 0.85 <= covered <= 1.0
    # Nor by being of no use; two seeds tell little of the noise of training, and the interval says so.
    assert float(np.mean([gain.high - gain.low for gain in gains])) < (0.4 if seeds > 2 else 1.0)


# Files of scores


def write_scores(path: Path, labels: Sequence[str], scores: Sequence[float]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "group", "label", "predicted", "score"])
        writer.writerows(
            (f"{i}.jpg", f"g{i}", label, "", score) for i, (label, score) in enumerate(zip(labels, scores, strict=True))
        )
    return path


def test_scores_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.csv", ["a,b", "Möwe"], [0.25, 1])
    assert read_scores(path) == (["a,b", "Möwe"], [0.25, 1.0], ["g0", "g1"])


def test_repeats_are_paired_by_their_place(tmp_path: Path) -> None:
    # Seed 0 went well for both, seed 1 badly for both. Paired they never differ; crossed, the seeds seem to.
    labels = ["a", "b"] * 20
    luck = [[1.0] * 40, [0.0] * 40]
    winner = [write_scores(tmp_path / f"w{i}.csv", labels, scores) for i, scores in enumerate(luck)]
    baseline = [write_scores(tmp_path / f"b{i}.csv", labels, scores) for i, scores in enumerate(luck)]
    assert paired_gain(winner, baseline, 0) == Gain(0.0, 0.0, 0.0, 2)
    crossed = paired_gain(winner, baseline[::-1], 0)
    assert crossed.value == 0.0
    assert crossed.low < -0.5 < 0.5 < crossed.high


def test_the_gain_is_winner_minus_baseline_where_higher_is_better(tmp_path: Path) -> None:
    labels = ["a"] * 10 + ["b"] * 10
    right = write_scores(tmp_path / "right.csv", labels, [1.0] * 20)
    half = write_scores(tmp_path / "half.csv", labels, [1.0] * 10 + [0.0] * 10)
    assert paired_gain([right], [half], 0).value == 0.5
    assert paired_gain([half], [right], 0).value == -0.5


def test_the_gain_is_positive_for_a_lower_score_where_lower_is_better(tmp_path: Path) -> None:
    # Without labels: all specimens are one class, and count the same.
    rng = np.random.default_rng(0)
    losses = rng.uniform(3, 5, 30)
    paths = []
    for i in range(3):
        low = write_scores(tmp_path / f"low{i}.csv", [""] * 30, list(losses - 0.5 + rng.normal(0, 0.05, 30)))
        paths.append((low, write_scores(tmp_path / f"high{i}.csv", [""] * 30, list(losses))))
    gain = paired_gain([low for low, _ in paths], [high for _, high in paths], 0, sign=-1)
    assert gain.value == pytest.approx(0.5, abs=0.05)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.clear
    turned = paired_gain([high for _, high in paths], [low for low, _ in paths], 0, sign=-1)
    assert turned.value == pytest.approx(-gain.value)
    assert (turned.low, turned.high) == pytest.approx((-gain.high, -gain.low), abs=0.02)


@pytest.mark.parametrize("what", ["labels", "groups"])
def test_other_specimens_are_not_compared(what: str, tmp_path: Path) -> None:
    one = write_scores(tmp_path / "one.csv", ["a", "b"], [1, 1])
    other = write_scores(tmp_path / "other.csv", ["b", "a"] if what == "labels" else ["a", "b"], [1, 1])
    if what == "groups":
        other.write_text(other.read_text(encoding="utf-8").replace("g1", "g7"), encoding="utf-8")
    with pytest.raises(ValueError, match="other specimens"):
        paired_gain([one], [other], 0)


def test_repeats_without_a_partner_are_not_compared(tmp_path: Path) -> None:
    path = write_scores(tmp_path / "s.csv", ["a", "b"], [1, 1])
    with pytest.raises(ValueError, match="argument"):
        paired_gain([path, path], [path], 0)


# Scores without parts


def test_the_gain_of_seeds_alone_is_students_interval() -> None:
    gain = seed_gain([1.0, 2.0, 3.0])
    # By hand: mean 2, standard deviation 1, of three: t(0.975; 2) = 4.3027, half = 4.3027 / sqrt(3).
    assert (gain.value, gain.low, gain.high) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-4)
    assert gain.seeds == 3
    assert not gain.clear
    assert seed_gain([1.9, 2.0, 2.1]).clear


def test_the_gain_of_one_seed_has_no_interval_and_is_never_clear() -> None:
    gain = seed_gain([5.0])
    assert (gain.value, gain.low, gain.high, gain.seeds) == (5.0, -np.inf, np.inf, 1)
    assert not gain.clear


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(-10, 10))
def test_the_interval_of_seeds_turns_and_moves_with_the_differences(values: list[float], shift: float) -> None:
    gain = seed_gain(values)
    assert gain.low <= gain.value <= gain.high
    turned, moved = seed_gain([-value for value in values]), seed_gain([value + shift for value in values])
    assert (turned.low, turned.high) == pytest.approx((-gain.high, -gain.low), abs=1e-9)
    assert (moved.low, moved.high) == pytest.approx((gain.low + shift, gain.high + shift), abs=1e-6)


def test_one_seed_is_never_a_clear_gain() -> None:
    gain = bootstrap_gain(np.ones((1, 90)), LABELS, 0)
    assert gain.low > 0
    assert not gain.clear


def test_images_of_one_specimen_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(0)
    by_specimen = rng.choice([-1.0, 0.0, 1.0], size=(2, 18), p=[0.2, 0.4, 0.4])
    groups = np.repeat(np.arange(18), 5)
    labels = np.repeat(["a", "b", "c"], 30)
    differences = by_specimen[:, groups]
    alone = bootstrap_gain(differences, labels, 0)
    together = bootstrap_gain(differences, labels, 0, groups)
    assert together.value == alone.value
    assert together.high - together.low > alone.high - alone.low
