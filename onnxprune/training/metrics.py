"""How good predictions are, over predictions gathered from all batches.

A metric takes predictions and targets and returns one number. Logits and probabilities give the
same accuracy and area under the curve where the loss says which threshold or order applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from onnxprune.base import Array
from onnxprune.data import IGNORED
from onnxprune.errors import DataError
from onnxprune.training.losses import Objective

__all__ = ["Metric", "accuracy", "area_under_curve", "mean_squared_error", "metric_for"]


class Metric(NamedTuple):
    """A number that says how good predictions are.

    Attributes:
        name: as reports call it.
        compute: (predictions (n, ...), targets (n, ...)) -> number.
    """

    name: str
    compute: Callable[[Array, Array], float]


def accuracy(predictions: Array, targets: Array, *, class_axis: int = 1) -> float:
    """Share of targets that have the largest score.

    Args:
        predictions: (n, classes), (n, classes, ...) or (n, ..., classes): logits or probabilities.
        targets: (n, ...) class numbers; `IGNORED` ones do not count.
        class_axis: axis of the classes.
    """
    classes = predictions.argmax(axis=class_axis).reshape(targets.shape)
    counted = targets != IGNORED
    return float(np.mean(classes[counted] == targets[counted])) if counted.any() else float("nan")


def binary_accuracy(predictions: Array, targets: Array) -> float:
    """Share of targets whose logit has the right sign."""
    above = predictions.reshape(targets.shape) > 0
    return float(np.mean(above == (targets > 0.5)))


def area_under_curve(scores: Array, targets: Array) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2.

    Mann-Whitney: (sum of the positives' ranks - p (p + 1) / 2) / (p n), ties with their mean rank.

    Args:
        scores: (n,) or (n, 1): logits or probabilities, any increasing function of them.
        targets: as many zeros and ones.

    Raises:
        DataError: only one class occurs.
    """
    positive = np.asarray(targets).reshape(-1) > 0.5
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        raise DataError("targets: the area under the curve needs both classes, got one")
    ranks = rankdata(np.asarray(scores, dtype=np.float64).reshape(-1))
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


def mean_squared_error(predictions: Array, targets: Array) -> float:
    """Mean of (prediction - target)^2.

    Args:
        predictions: (n, ...) values.
        targets: (n, ...) as many values.
    """
    difference = predictions.astype(np.float64).reshape(targets.shape) - targets
    return float(np.mean(difference**2))


def metric_for(objective: Objective) -> Metric:
    """The metric a run reports: accuracy for classes and yes or no, else the mean squared error.

    Args:
        objective: from `losses.resolve`; predictions are values of `objective.prediction`.
    """
    if objective.nature == "cross-entropy":
        axis = objective.class_axis
        return Metric("accuracy", lambda p, t: accuracy(p, t, class_axis=axis))
    if objective.nature == "binary-cross-entropy":
        return Metric("accuracy", binary_accuracy)
    return Metric("mean squared error", mean_squared_error)
