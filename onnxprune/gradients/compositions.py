"""Operators the gradient engine cannot differentiate, expressed by ones it can.

Activations, sums and extremes. The training copy alone is rewritten; the user's graph never is.
Which operators need it was found by building the gradient of each alone with
onnxruntime-training 1.19.2.

A kink is written with Where, not Max or Abs: at exactly 0, where untrained and dead units sit, the
engine's gradients of Relu and Abs are 0, while softplus or Elu have a slope there.
"""

from __future__ import annotations

import functools

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.slots import attribute, data_input, optional_input, rank_of
from onnxprune.model import constant, shape_of
from onnxprune.ops.registry import Lowering, lowers

__all__ = ["root", "softplus"]

_MANY = 257  # slices of which no product is written
_NORMS = ("ReduceL2", "ReduceLogSumExp")


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes of a reduction, >= 0; None when computed or relative to an unknown rank."""
    rank = rank_of(data_input(node))
    given = attribute(node, "axes", None)
    if given is None and optional_input(node, 1) is not None:
        given = constant(optional_input(node, 1))
        if given is None:
            return None
    if given is None or len(given) == 0:
        if attribute(node, "noop_with_empty_axes", 0) or rank is None:
            return None
        return tuple(range(rank))
    if rank is None and min(given) < 0:
        return None
    return tuple(sorted(int(axis) % rank if rank is not None else int(axis) for axis in given))


# --- activations ---------------------------------------------------------------------------------


def _positive(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Greater", x, e.scalar(0.0))


def _exp_of_negative_part(e: Emitter, x: ir.Value, positive: ir.Value) -> ir.Value:
    """exp(min(x, 0)) - 1, with slope 1 at 0."""
    return e.op("Sub", e.op("Exp", e.op("Where", positive, e.scalar(0.0), x)), e.scalar(1.0))


def softplus(e: Emitter, x: ir.Value) -> ir.Value:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which never overflows."""
    positive = _positive(e, x)
    minus_abs = e.op("Where", positive, e.op("Neg", x), x)
    tail = e.op("Log", e.op("Add", e.op("Exp", minus_abs), e.scalar(1.0)))
    return e.op("Add", e.op("Where", positive, x, e.scalar(0.0)), tail)


@lowers("Softplus")
def _softplus(e: Emitter, node: ir.Node) -> ir.Value:
    return softplus(e, data_input(node))


@lowers("Elu")
def _elu(e: Emitter, node: ir.Node) -> ir.Value:
    x, alpha = data_input(node), attribute(node, "alpha", 1.0)
    positive = _positive(e, x)
    below = e.op("Mul", _exp_of_negative_part(e, x, positive), e.scalar(alpha))
    return e.op("Where", positive, x, below)


@lowers("Selu")
def _selu(e: Emitter, node: ir.Node) -> ir.Value:
    alpha = attribute(node, "alpha", 1.67326319217681884765625)
    gamma = attribute(node, "gamma", 1.05070102214813232421875)
    x = data_input(node)
    positive = _positive(e, x)
    below = e.op("Mul", _exp_of_negative_part(e, x, positive), e.scalar(alpha))
    return e.op("Mul", e.op("Where", positive, x, below), e.scalar(gamma))


@lowers("Celu")
def _celu(e: Emitter, node: ir.Node) -> ir.Value:
    x, alpha = data_input(node), attribute(node, "alpha", 1.0)
    positive = _positive(e, x)
    scaled = e.op("Div", x, e.scalar(alpha))
    below = e.op("Mul", _exp_of_negative_part(e, scaled, positive), e.scalar(alpha))
    return e.op("Where", positive, x, below)


@lowers("Softsign")
def _softsign(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    return e.op("Div", x, e.op("Add", e.op("Abs", x), e.scalar(1.0)))


def _hard_sigmoid_of(e: Emitter, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    line = e.op("Add", e.op("Mul", x, e.scalar(alpha)), e.scalar(beta))
    return e.op("Clip", line, e.scalar(0.0), e.scalar(1.0))


@lowers("HardSigmoid")
def _hard_sigmoid(e: Emitter, node: ir.Node) -> ir.Value:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return _hard_sigmoid_of(e, data_input(node), alpha, beta)


@lowers("HardSwish")
def _hard_swish(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    return e.op("Mul", x, _hard_sigmoid_of(e, x, 1 / 6, 0.5))


@lowers("Mish")
def _mish(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    return e.op("Mul", x, e.op("Tanh", softplus(e, x)))


@lowers("ThresholdedRelu")
def _thresholded_relu(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    above = e.op("Greater", x, e.scalar(attribute(node, "alpha", 1.0)))
    return e.op("Where", above, x, e.scalar(0.0))


@lowers("PRelu")
def _prelu(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    below = e.op("Less", x, e.scalar(0.0))
    return e.op("Where", below, e.op("Mul", x, optional_input(node, 1)), x)


def root(e: Emitter, x: ir.Value, p: float = 2) -> ir.Value:
    """x^(1 / p) of what is not below 0; its slope at 0 is 0, as norms have it, not infinite."""
    some = e.op("Greater", x, e.scalar(0.0))
    safe = e.op("Where", some, x, e.scalar(1.0))
    power = e.op("Sqrt", safe) if p == 2 else e.op("Pow", safe, e.scalar(1 / p))
    return e.op("Where", some, power, e.scalar(0.0))


# --- sums and extremes ---------------------------------------------------------------------------


def _chain(op_type: str) -> Lowering:
    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        if op_type == node.op_type and len(node.inputs) <= 2:
            return None
        total = data_input(node)
        for value in node.inputs[1:]:
            total = e.op(op_type, total, value)
        return total

    return lower


@lowers("Mean")
def _mean(e: Emitter, node: ir.Node) -> ir.Value:
    total = data_input(node)
    for value in node.inputs[1:]:
        total = e.op("Add", total, value)
    return e.op("Mul", total, e.scalar(1 / len(node.inputs)))


def _extreme(*, largest: bool) -> Lowering:
    """ReduceMax and ReduceMin as one TopK per axis, whose gradient goes to one position."""

    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        axes = _axes(node)
        if axes is None:
            return None
        value = data_input(node)
        for axis in axes:
            name = f"{e.prefix}/top_{axis}"
            value, _ = e.ops(
                "TopK",
                value,
                e.integers(1),
                outputs=(name, f"{name}_index"),
                axis=axis,
                largest=int(largest),
            )
        if attribute(node, "keepdims", 1):
            return value
        return e.op("Squeeze", value, e.integers(*axes))

    return lower


def _reduction(inner: str) -> Lowering:
    """ReduceSum of |x| or x * x."""

    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        axes, x = _axes(node), data_input(node)
        if axes is None:
            return None
        terms = e.op("Abs", x) if inner == "Abs" else e.op("Mul", x, x)
        return e.reduce("ReduceSum", terms, axes, keepdims=bool(attribute(node, "keepdims", 1)))

    return lower


@lowers("ReduceLogSum")
def _log_sum(e: Emitter, node: ir.Node) -> ir.Value | None:
    axes = _axes(node)
    if axes is None:
        return None
    keeps = bool(attribute(node, "keepdims", 1))
    return e.op("Log", e.reduce("ReduceSum", data_input(node), axes, keepdims=keeps))


@lowers("ReduceProd")
def _product(e: Emitter, node: ir.Node) -> ir.Value | None:
    """A product of slices, which stays right where some are 0; for axes of few elements."""
    axes, x = _axes(node), data_input(node)
    shape = shape_of(x)
    if axes is None or shape is None or any((shape[axis] or _MANY) >= _MANY for axis in axes):
        return None
    for axis in axes:
        size = int(shape[axis] or 1)
        names = [f"{e.prefix}/{axis}_{number}" for number in range(size)]
        parts = e.ops("Split", x, e.integers(*[1] * size), outputs=names, axis=axis)
        x = functools.reduce(lambda a, b: e.op("Mul", a, b), parts)
    return x if attribute(node, "keepdims", 1) else e.op("Squeeze", x, e.integers(*axes))


@lowers("ReduceSum", "ReduceMean", "ReduceLogSumExp", "ReduceL2")
def _reduced(e: Emitter, node: ir.Node) -> ir.Value | None:
    """What the engine gets wrong: no axes where that means none, and norms that drop their axes."""
    given = optional_input(node, 1)
    empty = given is None or (constant(given) is not None and constant(given).size == 0)  # type: ignore[union-attr]
    if empty and attribute(node, "noop_with_empty_axes", 0):
        return data_input(node)
    axes = _axes(node)
    drops = node.op_type in _NORMS and not attribute(node, "keepdims", 1)
    if not drops or axes is None:
        return None
    kept = e.reduce(node.op_type, data_input(node), axes)
    return e.op("Squeeze", kept, e.integers(*axes))


lowers("Max")(_chain("Max"))
lowers("Min")(_chain("Min"))
lowers("Sum")(_chain("Add"))
lowers("ReduceMax")(_extreme(largest=True))
lowers("ReduceMin")(_extreme(largest=False))
lowers("ReduceL1")(_reduction("Abs"))
lowers("ReduceSumSquare")(_reduction("Mul"))
