"""Metrics of a model on a split: loss, accuracy, area under the curve, mean squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.data import TARGET, Split, batches
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.losses import Objective
from onnxprune.training.lowering import evaluation_copy
from onnxprune.training.metrics import area_under_curve, loss, metric_for

__all__ = ["better", "evaluate", "main_metric", "model_metrics"]

_BATCH = 256  # examples per forward pass
Forward = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def evaluate(
    forward: Forward, split: Split, objective: Objective, *, batch_size: int, static: bool
) -> dict[str, float]:
    """Metrics over all examples of `split`.

    Args:
        forward: batch -> outputs, among them `objective.prediction`.
        split: with targets.
        objective: what is predicted.
        batch_size: examples per batch when `static`.
        static: whether batches must have just that size; a last smaller one is then filled up.
    """
    predictions, targets = [], []
    for batch, count in _padded(split, batch_size if static else max(_BATCH, batch_size), static):
        target = batch.pop(TARGET)
        predictions.append(forward(batch)[objective.prediction][:count])
        targets.append(target[:count])
    return metrics(objective, np.concatenate(predictions), np.concatenate(targets))


def _padded(split: Split, size: int, static: bool) -> Iterator[tuple[dict[str, Array], int]]:
    """Batches and how many of their examples count."""
    for batch in batches(split, size):
        count = len(batch[TARGET])
        if static and count < size:
            fill = np.arange(size) % count
            batch = {name: array[fill] for name, array in batch.items()}
        yield batch, count


def metrics(objective: Objective, predictions: Array, targets: Array) -> dict[str, float]:
    """By name; "auc" only for two classes that both occur."""
    metric = metric_for(objective)
    found = {_short(metric.name): metric.compute(predictions, targets)}
    if objective.kind == "binary-cross-entropy" and 0 < np.mean(targets > 0.5) < 1:
        found["auc"] = area_under_curve(predictions.reshape(-1), targets.reshape(-1))
    return {**found, "loss": loss(objective, predictions, targets)}


def _short(name: str) -> str:
    return "mse" if name == "mean squared error" else name


def main_metric(found: Mapping[str, float]) -> tuple[str, float]:
    """The metric that decides which of two models is better, first of auc, accuracy, mse."""
    name = next(name for name in ("auc", "accuracy", "mse") if name in found)
    return name, found[name]


def better(name: str, first: float, second: float) -> float:
    """How much better `first` is than `second`, in the metric's own unit."""
    return second - first if name == "mse" else first - second


def model_metrics(
    model: ir.Model,
    split: Split,
    objective: Objective,
    *,
    batch_size: int,
    static: bool,
    device: Device | None = None,
) -> dict[str, float]:
    """Metrics of a model as its file computes them."""
    runner = Runner(evaluation_copy(model, [objective.prediction]), device=device)
    return evaluate(runner.run, split, objective, batch_size=batch_size, static=static)
