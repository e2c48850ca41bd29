"""Metrics of a model on a split: loss, accuracy, area under the curve, mean squared error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.data import Split, batches
from onnxprune.gradients.lowering import evaluation_copy
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.loss_nodes import measure
from onnxprune.training.losses import LOSS, TEACHER, Objective
from onnxprune.training.metrics import area_under_curve, metric_for

__all__ = ["better", "evaluate", "judged_values", "main_metric", "model_metrics"]

_BATCH = 256  # examples per forward pass, at most
_NUMBERS = 2**20  # in the inputs of a forward pass, about
_MAIN = ("auc", "accuracy", "agreement", "mse", "loss")  # the first there is decides
_SMALLER_IS_BETTER = ("mse", "loss")
Batch = Mapping[str, Array]
Forward = Callable[[Batch], Batch]


def evaluate(
    forward: Forward,
    split: Split,
    objectives: Sequence[Objective],
    *,
    batch_size: int,
    static: bool,
    taught: Callable[[Batch], Batch] | None = None,
) -> dict[str, float]:
    """Metrics over all examples of `split`.

    Args:
        forward: batch -> outputs, among them `judged_values(objectives)`.
        split: with the targets that the objectives need.
        objectives: what is predicted; those on values inside the model are left out.
        batch_size: examples per forward pass; more where examples are small and not `static`.
        static: whether batches must have just that size; a last smaller one is then filled up.
        taught: adds what a teacher says to a batch; None where no objective needs it.
    """
    judged = _judged(objectives)
    gathered: dict[str, list[Array]] = {}
    size = batch_size if static else _pass_size(split, batch_size)
    for batch, count in _padded(split, size, static):
        known = {**(batch if taught is None else taught(batch)), **forward(batch)}
        for key in _keys(judged):
            if key in known:
                gathered.setdefault(key, []).append(known[key][:count])
    arrays = {key: np.concatenate(parts) for key, parts in gathered.items()}
    return metrics(judged, arrays)


def _pass_size(split: Split, batch_size: int) -> int:
    """Examples per forward pass: those of training, which fit into memory, or more small ones."""
    one = split.batch(np.arange(1))
    return max(batch_size, min(_BATCH, _NUMBERS // sum(array.size for array in one.values())))


def _judged(objectives: Sequence[Objective]) -> list[Objective]:
    return [objective for objective in objectives if objective.kind != "distill-hidden"]


def judged_values(objectives: Sequence[Objective]) -> list[str]:
    """The values of the model that an evaluation reads."""
    return list(dict.fromkeys(name for o in _judged(objectives) for name in o.values))


def _keys(objectives: Sequence[Objective]) -> list[str]:
    """What is gathered: predictions, targets, and all else that losses read."""
    keys: dict[str, None] = {}
    for o in objectives:
        keys |= dict.fromkeys((*o.values, o.target, o.labels or o.target, *o.reads.values()))
    return list(keys)


def _padded(split: Split, size: int, static: bool) -> Iterator[tuple[dict[str, Array], int]]:
    """Batches and how many of their examples count."""
    for batch in batches(split, size):
        count = len(next(iter(batch.values())))
        if static and count < size:
            fill = np.arange(size) % count
            batch = {name: array[fill] for name, array in batch.items()}
        yield batch, count


def metrics(objectives: Sequence[Objective], arrays: Mapping[str, Array]) -> dict[str, float]:
    """By name, those of further outputs as name/output, terms of a loss of several as loss/term.

    "auc" only for yes-or-no outputs for which both occur; "agreement" with the original model, the
    share of equal answers, where there are no labels to be accurate about.
    """
    found: dict[str, float] = {}
    seen: set[str] = set()
    for objective in objectives:
        if objective.output in seen or objective.nature is None:
            continue
        suffix = f"/{objective.output}" if seen else ""
        seen.add(objective.output)
        values = _metrics(objective, arrays)
        found |= {f"{name}{suffix}": value for name, value in values.items()}
    losses = measure(objectives, arrays)
    found["loss"] = losses.pop(LOSS)
    return found | {f"loss/{name}": value for name, value in losses.items()}


def _metrics(objective: Objective, arrays: Mapping[str, Array]) -> dict[str, float]:
    metric = metric_for(objective)
    predictions = arrays[objective.prediction]
    if objective.labels is None or objective.labels not in arrays:
        taught = arrays.get(f"{TEACHER}/{objective.prediction}")
        if taught is None:  # of a custom loss that needs no labels
            return {}
        return _agreement(objective, metric.compute, predictions, taught)
    targets = arrays[objective.labels]
    found = {_short(metric.name): metric.compute(predictions, targets)}
    if objective.nature == "binary-cross-entropy" and 0 < np.mean(targets > 0.5) < 1:
        found["auc"] = area_under_curve(predictions.reshape(-1), targets.reshape(-1))
    return found


def _agreement(
    objective: Objective,
    compute: Callable[[Array, Array], float],
    predictions: Array,
    taught: Array,
) -> dict[str, float]:
    """How close the predictions are to those of the original model."""
    if objective.nature == "mse":
        return {"mse": compute(predictions, taught)}
    if objective.nature == "cross-entropy":
        answers = taught.argmax(axis=objective.class_axis)
    else:
        answers = (taught > 0).astype(np.float32)
    return {"agreement": compute(predictions, answers)}


def _short(name: str) -> str:
    return "mse" if name == "mean squared error" else name


def main_metric(found: Mapping[str, float]) -> tuple[str, float]:
    """The metric that decides which of two models is better."""
    name = next(name for name in _MAIN if name in found)
    return name, found[name]


def better(name: str, first: float, second: float) -> float:
    """How much better `first` is than `second`, in the metric's own unit."""
    return second - first if name in _SMALLER_IS_BETTER else first - second


def model_metrics(
    model: ir.Model,
    split: Split,
    objectives: Sequence[Objective],
    *,
    batch_size: int,
    static: bool,
    device: Device | None = None,
    taught: Callable[[Batch], Batch] | None = None,
) -> dict[str, float]:
    """Metrics of a model as its file computes them."""
    runner = Runner(evaluation_copy(model, judged_values(objectives)), device=device)
    return evaluate(
        runner.run, split, objectives, batch_size=batch_size, static=static, taught=taught
    )
