"""Losses: which one, what it reads, and its nodes.

`resolve` looks at the user's graph and chooses; `attach` adds the loss to a training copy. The
target enters as a graph input named `TARGET`; the loss leaves as the first output, named `LOSS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.base import Array
from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.model import constant, opset, shape_of, trainable_dtype
from onnxprune.training.compositions import softplus
from onnxprune.training.lowering import TrainingCopy

__all__ = ["LOSS", "TARGET", "Kind", "Objective", "attach", "resolve"]

LOSS = "onnxprune.loss"
TARGET = "onnxprune.target"
IGNORED = -100  # class number of examples that a cross-entropy leaves out

Sizes: TypeAlias = Sequence[int | None]
Kind: TypeAlias = Literal["cross-entropy", "binary-cross-entropy", "mse"]
KINDS: tuple[Kind, ...] = ("cross-entropy", "binary-cross-entropy", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is minimized.

    Attributes:
        kind: "cross-entropy", "binary-cross-entropy" or "mse".
        prediction: name of the value the loss reads: logits for both cross-entropies.
        output: name of the value users see; the same where nothing stands between.
        classes: size of the class axis; None unless the kind is "cross-entropy" and it is known.
        class_axis: axis of the classes in the prediction; 1 or the last.
        shape: of the prediction, None where dynamic; None when the rank is unknown.
    """

    kind: Kind
    prediction: str
    output: str
    classes: int | None = None
    class_axis: int = 1
    shape: tuple[int | None, ...] | None = None


# --- choosing ------------------------------------------------------------------------------------


def resolve(
    model: ir.Model,
    output: str | None = None,
    kind: str = "auto",
    target: Array | None = None,
) -> Objective:
    """Choose loss and prediction.

    The output: `output`, else the only float tensor among the graph's outputs. So a scikit-learn
    export with the outputs (label: int64, probabilities: float) is trained on its probabilities.

    The kind, unless given: "cross-entropy" when the output comes from a Softmax or LogSoftmax, or
    when it has more than one class and targets are integers; "binary-cross-entropy" when it comes
    from a Sigmoid, or has width 1 and targets are all 0 or 1; "mse" for other float targets.

    Both cross-entropies read the logits, which is what enters a final Softmax, LogSoftmax or
    Sigmoid, Identity nodes skipped. Two columns Concat(1 - p, p), as scikit-learn's binary
    classifiers have them, count as the Sigmoid p.

    Args:
        model: the user's graph, with shapes where they are known.
        output: name of a graph output; None to choose.
        kind: a `Kind`, or "auto".
        target: (n, ...) some targets, for their dtype, shape and values; None when there are none.

    Raises:
        ConfigError: no or several outputs to choose from, an unknown kind, or no way to tell.
    """
    if kind not in (*KINDS, "auto"):
        raise ConfigError(f"loss {kind!r}: unknown; choose auto, {', '.join(KINDS)}", kind=kind)
    value = _output(model, output)
    final = _one_of_two(_through_identity(value))
    if shape_of(final) is None:
        inferred = model.clone()
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
        value = _output(inferred, output)
        final = _one_of_two(_through_identity(value))
    same = final is _through_identity(value)
    shape = shape_of(final) or (shape_of(value) if same else None)
    chosen = _kind(final, shape, target) if kind == "auto" else next(k for k in KINDS if k == kind)
    prediction = _logits(final, chosen)
    axis = _class_axis(final, shape, target) if chosen == "cross-entropy" else 1
    known = shape is not None and chosen == "cross-entropy" and axis < len(shape)
    return Objective(
        kind=chosen,
        prediction=prediction.name or "",
        output=value.name or "",
        classes=shape[axis] if known and shape is not None else None,
        class_axis=axis,
        shape=None if shape is None else tuple(shape),
    )


def _output(model: ir.Model, name: str | None) -> ir.Value:
    candidates = {value.name or "": value for value in model.graph.outputs}
    floats = {name: value for name, value in candidates.items() if trainable_dtype(value.dtype)}
    if name is not None:
        if name not in candidates:
            raise ConfigError(
                f"output {name!r}: the model has no such output, only {', '.join(candidates)}",
                output=name,
            )
        return candidates[name]
    if len(floats) != 1:
        raise ConfigError(
            f"expected one float output to train on, got {len(floats)} of "
            f"{', '.join(candidates)}: choose with --output-name NAME",
            outputs=tuple(floats),
        )
    return next(iter(floats.values()))


def _through_identity(value: ir.Value) -> ir.Value:
    producer = value.producer()
    while producer is not None and producer.op_type == "Identity":
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _one_of_two(value: ir.Value) -> ir.Value:
    """The Sigmoid p behind Concat(1 - p, p), or `value` itself."""
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return value
    rest, p = concat.inputs
    sub = None if rest is None else rest.producer()
    if sub is None or sub.op_type != "Sub" or p is None or sub.inputs[1] is not p:
        return value
    one, final = constant(sub.inputs[0]), _through_identity(p)
    whole = one is not None and bool(np.all(one == 1))
    return final if whole and _final_op(final) == "Sigmoid" else value


def _final_op(value: ir.Value) -> str:
    producer = value.producer()
    return "" if producer is None else producer.op_type


def _kind(final: ir.Value, shape: Sizes | None, target: Array | None) -> Kind:
    op_type = _final_op(final)
    if op_type in ("Softmax", "LogSoftmax"):
        return "cross-entropy"
    if op_type == "Sigmoid":
        return "binary-cross-entropy"
    if target is None:
        raise ConfigError(
            f"output {final.name!r}: cannot tell the loss from {op_type or 'a graph input'} "
            f"alone; choose --loss {', '.join(KINDS)}",
            output=final.name,
        )
    width = None if shape is None or len(shape) < 2 else shape[1]
    integral = np.issubdtype(target.dtype, np.integer) or target.dtype == np.bool_
    if width == 1 and bool(np.isin(target, (0, 1)).all()):
        return "binary-cross-entropy"
    return "cross-entropy" if integral and width != 1 else "mse"


def _logits(final: ir.Value, kind: Kind) -> ir.Value:
    """What enters the final activation that the loss includes."""
    included = {
        "cross-entropy": ("Softmax", "LogSoftmax"),
        "binary-cross-entropy": ("Sigmoid",),
        "mse": (),
    }
    producer = final.producer()
    if producer is not None and producer.op_type in included[kind]:
        assert producer.inputs[0] is not None
        return _through_identity(producer.inputs[0])
    return final


def _class_axis(final: ir.Value, shape: Sizes | None, target: Array | None) -> int:
    """1, or the last axis for predictions like (N, T, classes)."""
    if shape is None or len(shape) <= 2:
        return 1
    last = len(shape) - 1
    producer = final.producer()
    if producer is not None and producer.op_type in ("Softmax", "LogSoftmax"):
        axis = producer.attributes.get("axis")
        return 1 if axis is not None and axis.value % len(shape) == 1 else last
    if target is not None and target.ndim == last and target.shape[1:] == tuple(shape[1:last]):
        return last
    return 1


# --- nodes ---------------------------------------------------------------------------------------


def attach(copy: TrainingCopy, objective: Objective) -> TrainingCopy:
    """`copy` with the loss as its first output and the target as its last input; a new copy.

    Args:
        copy: lowered so that `objective.prediction` is one of its outputs.
        objective: from `resolve`, on the same graph.

    Raises:
        ConfigError: the prediction is not an output of the copy.
    """
    model = copy.model.clone()
    graph = model.graph
    outputs = {value.name: value for value in graph.outputs}
    prediction = outputs.get(objective.prediction)
    if prediction is None:
        raise ConfigError(
            f"prediction {objective.prediction!r}: not an output of the training copy, which has "
            f"{', '.join(map(str, outputs))}",
            prediction=objective.prediction,
        )
    e = Emitter(LOSS, opset=opset(model))
    value = prediction
    if prediction.dtype not in (None, ir.DataType.FLOAT):
        # The engine starts every gradient from a float32 1.
        value = e.op("Cast", prediction, to=ir.DataType.FLOAT)
    if objective.kind == "cross-entropy":
        target = _target(ir.DataType.INT64, None)
        loss = _cross_entropy(e, value, target, objective)
    else:
        target = _target(ir.DataType.FLOAT, prediction)
        emit = _binary_cross_entropy if objective.kind == "binary-cross-entropy" else _mse
        loss = emit(e, value, target)
    loss.name, loss.dtype, loss.shape = LOSS, ir.DataType.FLOAT, ir.Shape(())
    e.add_to(graph)
    graph.inputs.append(target)
    graph.outputs.insert(0, loss)
    return TrainingCopy(model=model, state=copy.state)


def _target(dtype: ir.DataType, like: ir.Value | None) -> ir.Value:
    shape = None if like is None else like.shape
    return ir.Value(name=TARGET, type=ir.TensorType(dtype), shape=shape)


def _cross_entropy(
    e: Emitter, prediction: ir.Value, target: ir.Value, objective: Objective
) -> ir.Value:
    """Mean of -log softmax(prediction)[target]; ONNX SoftmaxCrossEntropyLoss, classes at axis 1."""
    shape = objective.shape
    logits = prediction
    if shape is not None and len(shape) > 2:
        rank = len(shape)
        if all(size == 1 for size in shape[2:]):
            logits = e.op("Flatten", prediction)
            shape = shape[:2]
        elif objective.class_axis == rank - 1:
            perm = [0, rank - 1, *range(1, rank - 1)]
            logits = e.op("Transpose", prediction, perm=perm)
            shape = tuple(shape[axis] for axis in perm)
    if shape is not None:
        sizes = [shape[0], *shape[2:]]
        names = [f"target_{axis}" if size is None else size for axis, size in enumerate(sizes)]
        target.shape = ir.Shape(names)
    # The second output is what the engine's gradient reads.
    return e.ops(
        "SoftmaxCrossEntropyLoss",
        logits,
        target,
        outputs=(LOSS, f"{LOSS}/log_probability"),
        reduction="mean",
        ignore_index=IGNORED,
    )[0]


def _mean(e: Emitter, x: ir.Value) -> ir.Value:
    """Over all elements."""
    return e.op("ReduceMean", x, keepdims=0)


def _binary_cross_entropy(e: Emitter, prediction: ir.Value, target: ir.Value) -> ir.Value:
    """Mean of log(1 + exp(z)) - z * y, which is max(z, 0) - z * y + log(1 + exp(-|z|))."""
    loss = e.op("Sub", softplus(e, prediction), e.op("Mul", prediction, target))
    return _mean(e, loss)


def _mse(e: Emitter, prediction: ir.Value, target: ir.Value) -> ir.Value:
    """Mean of (prediction - target)^2."""
    difference = e.op("Sub", prediction, target)
    return _mean(e, e.op("Mul", difference, difference))
