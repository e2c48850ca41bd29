"""Metrics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError
from onnxprune.training.losses import Objective
from onnxprune.training.metrics import (
    accuracy,
    area_under_curve,
    mean_squared_error,
    metric_for,
)


def by_pairs(scores, targets):
    positive, negative = scores[targets == 1], scores[targets == 0]
    pairs = positive[:, None] - negative[None, :]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=40))
def test_area_under_curve_counts_pairs_and_halves_ties(rows):
    scores, targets = (np.array(column) for column in zip(*rows, strict=True))
    if targets.min() == targets.max():
        with pytest.raises(DataError, match="both classes"):
            area_under_curve(scores, targets)
    else:
        actual = area_under_curve(scores.astype(np.float32), targets)
        assert actual == pytest.approx(by_pairs(scores, targets), abs=1e-12)


def test_accuracy_is_the_same_for_logits_and_probabilities():
    logits = np.random.default_rng(0).normal(size=(50, 4))
    targets = np.random.default_rng(1).integers(0, 4, 50)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert accuracy(logits, targets) == accuracy(probabilities, targets)


def test_accuracy_over_tokens_leaves_out_ignored_ones():
    scores = np.array([[[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]])
    assert accuracy(scores, np.array([[0, 0, -100]]), class_axis=2) == 0.5


def test_mean_squared_error_does_not_broadcast():
    assert mean_squared_error(np.array([[1.0], [2.0]]), np.array([1.0, 4.0])) == 2.0


@pytest.mark.parametrize(
    ("kind", "predictions", "targets", "expected"),
    [
        ("cross-entropy", [[0.1, 0.9], [0.8, 0.2]], [1, 1], 0.5),
        ("binary-cross-entropy", [[-0.2], [0.3]], [[0.0], [1.0]], 1.0),
        ("mse", [[1.0], [3.0]], [[1.0], [1.0]], 2.0),
    ],
)
def test_metric_for_an_objective(kind, predictions, targets, expected):
    metric = metric_for(Objective(kind=kind, nature=kind, prediction="y", output="y"))
    assert metric.compute(np.array(predictions), np.array(targets)) == expected
