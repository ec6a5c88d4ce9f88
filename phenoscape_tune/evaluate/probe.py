"""Linear probe: how well a linear classifier separates the classes of frozen features."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

STRENGTH = 0.1  # inverse weight of the penalty; standardised features make one value serve all trials
ITERATIONS = 300


def predict(bank: Tensor, bank_labels: Tensor, queries: Tensor) -> Tensor:
    """Class of each query by multinomial logistic regression on the bank's features (SimCLR's linear evaluation).

    The features are standardised by the bank's mean and deviation. Regularisation and iterations are fixed and the
    solver has no randomness, so two trials differ by their features alone.

    Args:
        bank: (M, D) features, finite; bank_labels: (M,) int64 classes 0 ... C-1.
        queries: (Q, D) features, finite.

    Returns:
        (Q,) int64 predicted classes, on the device of the queries. One class in the bank: that class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, labels = bank_labels.unique(), bank_labels.cpu().numpy()
    if len(known) == 1:
        return known.to(queries.device).expand(len(queries)).clone()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bounded solver is what is compared
        probe.fit(bank.detach().cpu().double().numpy(), labels)
    predicted = probe.predict(queries.detach().cpu().double().numpy())
    return torch.as_tensor(predicted, dtype=torch.int64, device=queries.device)
