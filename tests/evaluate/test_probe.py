from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from phenoscape_tune.evaluate import probe


def clouds(seed: int, each: int, classes: int = 3, width: int = 4, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Features of `each` images of every class around its own centre, in very different units a dimension."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(classes).repeat_interleave(each)
    features = centres[labels] + spread * torch.randn(len(labels), width, generator=generator)
    return features * torch.tensor([1e-3, 1.0, 50.0, 1e3])[:width] + 7, labels


def slow_probe(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Penalised multinomial logistic regression on standardised features, by a general minimiser."""
    mean, deviation = bank.mean(0), bank.std(0)
    x, classes = (bank - mean) / deviation, int(labels.max()) + 1

    def outputs(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
        w = weights.reshape(classes, -1)
        return features @ w[:, 1:].T + w[:, 0]

    def loss(weights: np.ndarray) -> float:
        logits = outputs(weights, x)
        picked = logits[np.arange(len(x)), labels]
        penalty = 0.5 * np.square(weights.reshape(classes, -1)[:, 1:]).sum()
        return float(probe.STRENGTH * (np.logaddexp.reduce(logits, axis=1) - picked).sum() + penalty)

    best = minimize(loss, np.zeros(classes * (x.shape[1] + 1)), method="BFGS", options={"gtol": 1e-6}).x
    return outputs(best, (queries - mean) / deviation).argmax(1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_penalised_logistic_regression_on_standardised_features(seed: int) -> None:
    (bank, labels), (queries, truth) = clouds(seed, 20), clouds(seed + 10, 30)
    predicted = probe.predict(bank, labels, queries)
    slow = slow_probe(bank.double().numpy(), labels.numpy(), queries.double().numpy())
    assert (predicted.numpy() == slow).mean() >= 0.98  # ties at a border may fall either way
    assert 0.5 < (predicted == truth).double().mean() < 1  # neither trivial nor chance


def test_separated_classes_are_all_right() -> None:
    (bank, labels), (queries, truth) = clouds(0, 20, spread=0.05), clouds(1, 20, spread=0.05)
    assert torch.equal(probe.predict(bank, labels, queries), truth)


def test_the_units_of_a_dimension_do_not_matter() -> None:
    (bank, labels), (queries, _) = clouds(0, 20), clouds(1, 50)
    scale, shift = torch.tensor([1e-2, 3.0, 1e3, 1.0]), torch.tensor([5.0, -2.0, 0.0, 1.0])
    moved = probe.predict(bank.double() * scale + shift, labels, queries.double() * scale + shift)
    assert (moved == probe.predict(bank, labels, queries)).double().mean() >= 0.98


def test_gives_what_knn_gives_and_the_same_again() -> None:
    (bank, labels), (queries, _) = clouds(0, 20), clouds(1, 20)
    first = probe.predict(bank.half(), labels, queries.half())
    assert first.dtype == torch.int64 and first.shape == (60,)
    assert torch.equal(first, probe.predict(bank.half(), labels, queries.half()))


def test_classes_that_the_bank_lacks_are_never_predicted() -> None:
    (bank, labels), (queries, _) = clouds(0, 20), clouds(1, 20)
    assert set(probe.predict(bank, labels * 3 + 1, queries).tolist()) == {1, 4, 7}


def test_a_bank_of_one_class_predicts_it() -> None:
    assert probe.predict(torch.randn(5, 3), torch.full((5,), 2), torch.randn(4, 3)).tolist() == [2, 2, 2, 2]


def test_constant_dimensions_are_no_trouble() -> None:
    (bank, labels), (queries, _) = clouds(0, 20), clouds(1, 20)
    constant = [torch.cat([x, torch.full((len(x), 2), 3.0)], 1) for x in (bank, queries)]
    assert torch.equal(probe.predict(constant[0], labels, constant[1]), probe.predict(bank, labels, queries))
    collapsed = probe.predict(torch.ones(60, 4), labels, torch.ones(5, 4))
    assert len(set(collapsed.tolist())) == 1


def test_a_solver_at_its_bound_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (bank, labels), (queries, _) = clouds(0, 20), clouds(1, 20)
    converged = probe.predict(bank, labels, queries)
    monkeypatch.setattr(probe, "ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.equal(probe.predict(bank, labels, queries), converged)  # so the bound was reached


def test_importing_the_module_does_not_import_scikit_learn() -> None:
    code = "import sys, phenoscape_tune.evaluate.probe; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
