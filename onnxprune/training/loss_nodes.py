"""The nodes of losses.

`attach` adds the terms to a training copy: what they compare with comes in as graph inputs named
like the keys of a batch, their weighted sum leaves as the first output. `measure` computes the same
nodes on whole arrays, for validation. Every formula is a function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Index
from onnxprune.data import IGNORED
from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.gradients.compositions import softplus
from onnxprune.gradients.lowering import TrainingCopy
from onnxprune.model import opset, shape_of
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.custom_loss import graft, matched
from onnxprune.training.losses import LOSS, Objective

__all__ = ["attach", "measure", "part_names"]

_OPSET, _IR = 17, 8
_TINY = 1e-12  # where nothing counts, the loss is 0 and not 0 / 0

Formula: TypeAlias = Callable[[Emitter, ir.Value, ir.Value, Objective], ir.Value]


def part_names(objectives: Sequence[Objective]) -> dict[str, str]:
    """The outputs that hold the single terms, by the terms' names; none where there is only one."""
    if len(objectives) == 1:
        return {}
    return {f"{LOSS}/{objective.name}": objective.name for objective in objectives}


def attach(
    copy: TrainingCopy,
    objectives: Sequence[Objective],
    origins: Mapping[Axis, Index] | None = None,
) -> TrainingCopy:
    """`copy` with the loss as its first output; a new copy.

    Where there are several terms, each is an output too, before its weight (`part_names`); terms of
    one name are added up.

    Args:
        copy: lowered so that `Objective.values` of all terms are among its outputs.
        objectives: from `losses.resolve`, on the same graph.
        origins: per axis of a value that lost indices, those of the original model that are left:
            what a teacher says of the others is not asked for.

    Raises:
        ConfigError: a value is not an output of the copy, or a custom loss does not fit its opset.
    """
    graphs = [objective.graph for objective in objectives if objective.graph is not None]
    model = matched(copy.model, graphs)
    e = Emitter(LOSS, opset=opset(model))
    writer = _Terms(model, e, origins or {})
    parts: dict[str, list[ir.Value]] = {}
    weighted = []
    for objective in objectives:
        term = writer.term(objective)
        parts.setdefault(f"{LOSS}/{objective.name}", []).append(term)
        factor = objective.loss.weight
        weighted.append(term if factor == 1 else e.op("Mul", term, e.scalar(factor)))
    results = {LOSS: _sum(e, weighted)}
    if len(objectives) > 1:
        results |= {name: _sum(e, terms) for name, terms in parts.items()}
        # a term that is its own part and the whole loss needs two names
        results = {name: e.op("Identity", value) for name, value in results.items()}
    for place, (name, value) in enumerate(results.items()):
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(())
        model.graph.outputs.insert(place, value)
    e.add_to(model.graph)
    model.graph.inputs.extend(writer.inputs.values())
    return TrainingCopy(model=model, state=copy.state)


def measure(
    objectives: Sequence[Objective], arrays: Mapping[str, Array], device: Device | None = None
) -> dict[str, float]:
    """The loss over arrays that hold many batches, and its terms where there are several.

    Args:
        objectives: what to compute.
        arrays: by value name, (n, ...) predictions, and what they are compared with.
        device: where to compute.

    Returns:
        The weighted sum under `LOSS`, the terms under their names.
    """
    objectives = [objective.of_any_batch() for objective in objectives]
    names = dict.fromkeys(name for objective in objectives for name in objective.values)
    values = [_input(name, arrays[name]) for name in names]
    graph = ir.Graph(values, values, nodes=[], opset_imports={"": _OPSET}, name="loss")
    whole = attach(TrainingCopy(model=ir.Model(graph, ir_version=_IR)), objectives).model
    parts = part_names(objectives)
    wanted = [LOSS, *parts]
    kept = [value for value in whole.graph.outputs if value.name in wanted]
    whole.graph.outputs.clear()
    whole.graph.outputs.extend(kept)
    found = Runner(whole, device).run(arrays, wanted)
    return {parts.get(name, name): float(value) for name, value in found.items()}


def _input(name: str, array: Array) -> ir.Value:
    sizes: list[str | int] = [f"{name}_{axis}" for axis in range(array.ndim)]
    kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    return ir.Value(name=name, type=kind, shape=ir.Shape(sizes))


class _Terms:
    """Writes terms; `inputs` are the graph inputs they need, by batch key."""

    def __init__(self, model: ir.Model, e: Emitter, origins: Mapping[Axis, Index]) -> None:
        self.model, self.e, self.origins = model, e, origins
        self.inputs: dict[str, ir.Value] = {}
        self.known = {value.name or "": value for value in model.graph.inputs}
        self.known |= {value.name or "": value for value in model.graph.outputs}

    def term(self, objective: Objective) -> ir.Value:
        if objective.graph is not None:
            reads = {
                name: self._read(source, objective) for name, source in objective.reads.items()
            }
            result = graft(self.model, objective.graph, reads, f"{LOSS}/{objective.name}")
            return result if shape_of(result) == () else _total(self.e, result)  # of (1,) too
        prediction = self._value(objective.prediction)
        if objective.kind == "cross-entropy":
            target = self._input(objective.target, ir.DataType.INT64, _positions(objective))
        elif objective.is_labelled:
            target = self._input(objective.target, ir.DataType.FLOAT, prediction.shape)
        else:
            target = self._taught(objective, prediction)
        return _FORMULAS[objective.kind](self.e, self._float(prediction), target, objective)

    def _value(self, name: str) -> ir.Value:
        if name not in self.known:
            raise ConfigError(
                f"prediction {name!r}: not an output of the training copy, which has "
                f"{', '.join(self.known)}",
                prediction=name,
            )
        return self.known[name]

    def _input(self, key: str, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        if key not in self.inputs:
            self.inputs[key] = ir.Value(name=key, type=ir.TensorType(dtype), shape=shape)
        return self.inputs[key]

    def _read(self, source: str, objective: Objective) -> ir.Value:
        """What a custom loss reads: a value of the model, or something from the batch."""
        if source in self.known:
            return self.known[source]
        assert objective.graph is not None
        like = next(
            v for v in objective.graph.graph.inputs if objective.reads[v.name or ""] == source
        )
        shape = ir.Shape([f"{source}_0", *like.shape[1:]]) if like.shape else None
        return self._input(source, like.dtype or ir.DataType.FLOAT, shape)

    def _taught(self, objective: Objective, prediction: ir.Value) -> ir.Value:
        """What the teacher says, of the indices that the model still has."""
        gone = {
            axis.position: index
            for axis, index in self.origins.items()
            if axis.value == objective.prediction
        }
        shape = None
        if prediction.shape is not None:
            sizes = [f"teacher_{i}" if i in gone else s for i, s in enumerate(prediction.shape)]
            shape = ir.Shape(sizes)
        taught = self._input(objective.target, prediction.dtype or ir.DataType.FLOAT, shape)
        for position, index in gone.items():
            taught = self.e.op("Gather", taught, self.e.integers(*index), axis=position)
        return self._float(taught)

    def _float(self, value: ir.Value) -> ir.Value:
        """As float32: the engine starts every gradient from a float32 1."""
        if value.dtype in (None, ir.DataType.FLOAT):
            return value
        return self.e.op("Cast", value, to=ir.DataType.FLOAT)


def _positions(objective: Objective) -> ir.Shape | None:
    """The shape of class labels: that of the prediction without its class axis."""
    shape = objective.shape
    if shape is None:
        return None
    if len(shape) > 2 and all(size == 1 for size in shape[2:]):
        shape = shape[:2]
    sizes = [size for axis, size in enumerate(shape) if axis != objective.class_axis]
    return ir.Shape([f"target_{axis}" if size is None else size for axis, size in enumerate(sizes)])


def _sum(e: Emitter, values: Sequence[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = e.op("Add", total, value)
    return total


# --- formulas -------------------------------------------------------------------------------------


def _mean(e: Emitter, x: ir.Value) -> ir.Value:
    """Over all elements."""
    return e.op("ReduceMean", x, keepdims=0)


def _total(e: Emitter, x: ir.Value) -> ir.Value:
    """Of all elements."""
    return e.op("ReduceSum", x, keepdims=0)


def _classes_second(e: Emitter, z: ir.Value, objective: Objective) -> ir.Value:
    """`z` with its classes at axis 1, as (N, classes) where all other axes have size 1."""
    shape = objective.shape
    if shape is None or len(shape) == 2:
        return z
    if all(size == 1 for size in shape[2:]):
        return e.op("Flatten", z)
    rank = len(shape)
    if objective.class_axis == 1:
        return z
    return e.op("Transpose", z, perm=[0, rank - 1, *range(1, rank - 1)])


def _cross_entropy(e: Emitter, z: ir.Value, labels: ir.Value, objective: Objective) -> ir.Value:
    """The mean of -log softmax(z)[label] over all labels but the ignored ones.

    With weights w and smoothing s over C classes, as in PyTorch's cross_entropy:
    sum_n sum_c w_c ((1 - s) [c = label_n] + s / C) (-log softmax(z_n)_c) / sum_n w[label_n].
    """
    logits = _classes_second(e, z, objective)
    if objective.loss.smoothing or objective.weights:
        return _weighted_cross_entropy(e, logits, labels, objective)
    # The second output is what the engine's gradient reads.
    return e.ops(
        "SoftmaxCrossEntropyLoss",
        logits,
        labels,
        outputs=(f"{objective.target}/cross_entropy", f"{objective.target}/log_probability"),
        reduction="mean",
        ignore_index=IGNORED,
    )[0]


def _weighted_cross_entropy(
    e: Emitter, logits: ir.Value, labels: ir.Value, objective: Objective
) -> ir.Value:
    count, smoothing = objective.classes, objective.loss.smoothing
    shape = objective.shape
    if count is None or shape is None:
        raise ConfigError(
            f"--loss {objective.loss}: needs a model that declares how many classes "
            f"{objective.output} has; give --input-shape"
        )
    rank = 2 if all(size == 1 for size in shape[2:]) else len(shape)
    ignored = e.op("Equal", labels, e.constant(np.array(IGNORED)))
    counted = e.op("Unsqueeze", e.op("Not", ignored), e.integers(1))
    safe = e.op("Where", ignored, e.constant(np.array(0)), labels)
    levels = e.constant(np.array([0.0, 1.0], np.float32))
    hot = e.op("OneHot", safe, e.constant(np.array(count)), levels, axis=1)
    hot = e.op("Mul", hot, e.op("Cast", counted, to=ir.DataType.FLOAT))
    weights = np.array(objective.weights or (1.0,) * count, np.float32)
    weight = e.constant(weights.reshape(1, count, *[1] * (rank - 2)))
    chosen = e.op("Mul", hot, weight)
    wanted = chosen
    if smoothing:
        rest = e.op("Mul", e.op("Cast", counted, to=ir.DataType.FLOAT), e.scalar(smoothing / count))
        soft = e.op("Add", e.op("Mul", hot, e.scalar(1 - smoothing)), rest)
        wanted = e.op("Mul", soft, weight)
    log_probability = e.op("LogSoftmax", logits, axis=1)
    lost = e.op("Neg", _total(e, e.op("Mul", wanted, log_probability)))
    return e.op("Div", lost, e.op("Max", _total(e, chosen), e.scalar(_TINY)))


def _binary_cross_entropy(e: Emitter, z: ir.Value, y: ir.Value, objective: Objective) -> ir.Value:
    """The mean of (1 + (w - 1) y) log(1 + exp(z)) - w y z, w the weight of a one.

    That is -w y log(sigmoid(z)) - (1 - y) log(1 - sigmoid(z)) without overflow.
    """
    losses = softplus(e, z)
    if objective.weights:
        w = np.array(objective.weights, np.float32)
        factor = e.op("Add", e.op("Mul", y, e.constant(w - 1)), e.scalar(1.0))
        losses = e.op("Mul", losses, factor)
        y = e.op("Mul", y, e.constant(w))
    return _mean(e, e.op("Sub", losses, e.op("Mul", z, y)))


def _mse(e: Emitter, z: ir.Value, y: ir.Value, _: Objective) -> ir.Value:
    """The mean of (z - y)^2."""
    difference = e.op("Sub", z, y)
    return _mean(e, e.op("Mul", difference, difference))


def _l1(e: Emitter, z: ir.Value, y: ir.Value, _: Objective) -> ir.Value:
    """The mean of |z - y|."""
    return _mean(e, e.op("Abs", e.op("Sub", z, y)))


def _huber(e: Emitter, z: ir.Value, y: ir.Value, objective: Objective) -> ir.Value:
    """The mean of d^2 / 2 where d = |z - y| <= delta, else delta (d - delta / 2) (Huber 1964).

    With m = min(d, delta) both are m (d - m / 2).
    """
    d = e.op("Abs", e.op("Sub", z, y))
    delta = e.scalar(objective.loss.delta)
    m = e.op("Where", e.op("Less", d, delta), d, delta)
    return _mean(e, e.op("Mul", m, e.op("Sub", d, e.op("Mul", m, e.scalar(0.5)))))


def _distill(e: Emitter, z: ir.Value, t: ir.Value, objective: Objective) -> ir.Value:
    """T^2 KL(teacher || model) at temperature T (Hinton et al. 2015, arXiv 1503.02531, section 2).

    For classes the mean over examples (and positions) of sum_c p_c (log p_c - log q_c), where
    p = softmax(t / T) and q = softmax(z / T); for yes-or-no outputs the mean over all of them of
    the same with sigmoids; for values the squared error. T^2 keeps the size of the gradients.
    """
    temperature = objective.temperature
    if temperature is None:
        return _mse(e, z, t, objective)
    scale = e.scalar(1 / temperature)
    z, t = e.op("Mul", z, scale), e.op("Mul", t, scale)
    if objective.nature == "binary-cross-entropy":
        p = e.op("Sigmoid", t)
        lost = e.op("Sub", softplus(e, z), e.op("Mul", p, z))
        least = e.op("Sub", softplus(e, t), e.op("Mul", p, t))
        divergence = _mean(e, e.op("Sub", lost, least))
    else:
        z, t = _classes_second(e, z, objective), _classes_second(e, t, objective)
        log_p, log_q = e.op("LogSoftmax", t, axis=1), e.op("LogSoftmax", z, axis=1)
        products = e.op("Mul", e.op("Exp", log_p), e.op("Sub", log_p, log_q))
        divergence = _mean(e, e.reduce("ReduceSum", products, [1], keepdims=False))
    return e.op("Mul", divergence, e.scalar(temperature**2))


def _distill_hidden(e: Emitter, z: ir.Value, t: ir.Value, _: Objective) -> ir.Value:
    """Sum (z - t)^2 / sum t^2: relative, so that one weight suits values of any size.

    The hints of Romero et al. 2015 (arXiv 1412.6550, equation 3) without their regressor: the units
    of the model are those of its teacher.
    """
    difference = e.op("Sub", z, t)
    error = _total(e, e.op("Mul", difference, difference))
    return e.op("Div", error, e.op("Add", _total(e, e.op("Mul", t, t)), e.scalar(_TINY)))


_FORMULAS: Mapping[str, Formula] = {
    "cross-entropy": _cross_entropy,
    "binary-cross-entropy": _binary_cross_entropy,
    "mse": _mse,
    "l1": _l1,
    "huber": _huber,
    "distill": _distill,
    "distill-hidden": _distill_hidden,
}
