from __future__ import annotations

import numpy as np
import pytest
import torch

from phenoscape_tune.errors import UserError
from phenoscape_tune.evaluate.objective import KNN_ACCURACY, choose_metric, knn_score, trial_objective


def test_auto_is_knn_accuracy_where_there_are_labels() -> None:
    assert choose_metric("auto", labelled=True) == KNN_ACCURACY
    assert choose_metric("knn_accuracy", labelled=True) == KNN_ACCURACY


def test_without_labels_the_message_says_how_to_give_them() -> None:
    with pytest.raises(UserError, match=r"sub-folder.*labels=FILE\.csv"):
        choose_metric("auto", labelled=False)


def test_a_misspelt_metric_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="knn_acuracy.*did you mean 'knn_accuracy'"):
        choose_metric("knn_acuracy", labelled=True)


def test_a_trials_objective_is_the_mean_of_its_last_three_evaluations() -> None:
    assert trial_objective([0.1, 0.2, 0.3, 0.4]) == pytest.approx(0.3)
    assert trial_objective([0.5]) == 0.5


def test_knn_score_of_separated_features_is_one_without_error() -> None:
    labels = np.repeat([0, 1], 10)
    features = torch.eye(2).repeat_interleave(10, dim=0)
    score = knn_score(features, labels, features, labels)
    assert (score.value, score.error) == (1.0, 0.0)
    assert score.predicted.tolist() == labels.tolist()
