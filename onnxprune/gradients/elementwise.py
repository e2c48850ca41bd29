"""Slopes of functions that work element by element and that the engine does not differentiate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.hidden import Call
from onnxprune.gradients.slots import attribute, data_input, optional_input, wanted
from onnxprune.model import constant
from onnxprune.ops.registry import gradient, lowers

__all__ = ["gelu", "tanh_gelu", "unbroadcast"]

_ENGINE = "com.microsoft"

# (emitter, x, y) -> dy/dx
Slope: TypeAlias = Callable[[Emitter, ir.Value, ir.Value], ir.Value]


def unbroadcast(
    e: Emitter, slope: ir.Value, target: ir.Value, whole: ir.Value | None = None
) -> ir.Value:
    """`slope` summed over the axes along which `target` was repeated.

    Args:
        e: where to write.
        slope: of what `target` was repeated to.
        target: whose sizes the result has.
        whole: a value with the sizes of `slope`; where they are those of `target`, nothing is done.
    """
    if whole is not None and _same_sizes(target, whole):
        return slope
    shape, full = e.op("Shape", target), e.op("Shape", slope)
    names = [f"{full.name}/{side}_axes" for side in ("own", "other")]
    axes, unused = e.ops("BroadcastGradientArgs", shape, full, outputs=names, domain=_ENGINE)
    unused.name = ""
    total = e.op(
        "ReduceSumTraining", slope, axes, domain=_ENGINE, keepdims=1, noop_with_empty_axes=1
    )
    return e.op("Reshape", total, shape)


def _same_sizes(value: ir.Value, other: ir.Value) -> bool:
    """Whether both are known to have the same sizes, open ones included."""
    if value.shape is None or other.shape is None or len(value.shape) != len(other.shape):
        return False
    pairs = zip(value.shape, other.shape, strict=True)
    return all(a == b and (isinstance(a, int) or a.value is not None) for a, b in pairs)


def _unary(op_type: str, derivative: Slope) -> None:
    def rule(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
        slope = call.slopes[0]
        assert slope is not None
        factor = derivative(e, call.input(0), call.node.outputs[0])
        return [e.op("Mul", slope, factor)]

    gradient(op_type)(rule)


def _one_and_square(e: Emitter, sign: str, x: ir.Value) -> ir.Value:
    return e.op(sign, e.scalar(1.0), e.op("Mul", x, x))


def _inverse_root(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Reciprocal", e.op("Sqrt", x))


_unary("Sinh", lambda e, x, _: e.op("Cosh", x))
_unary("Cosh", lambda e, x, _: e.op("Sinh", x))
_unary("Tan", lambda e, _, y: _one_and_square(e, "Add", y))
_unary("Atan", lambda e, x, _: e.op("Reciprocal", _one_and_square(e, "Add", x)))
_unary("Atanh", lambda e, x, _: e.op("Reciprocal", _one_and_square(e, "Sub", x)))
_unary("Asin", lambda e, x, _: _inverse_root(e, _one_and_square(e, "Sub", x)))
_unary("Acos", lambda e, x, _: e.op("Neg", _inverse_root(e, _one_and_square(e, "Sub", x))))
_unary("Asinh", lambda e, x, _: _inverse_root(e, _one_and_square(e, "Add", x)))
_unary(
    "Acosh",
    lambda e, x, _: _inverse_root(e, e.op("Sub", e.op("Mul", x, x), e.scalar(1.0))),
)


@gradient("Pow")
def power(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """Dx = a x^(a - 1), 0 where a is 0; da = y log x, 0 where x is not above 0."""
    x, a, y, slope = call.input(0), call.input(1), call.node.outputs[0], call.slopes[0]
    assert slope is not None
    dx = da = None
    if a.dtype is not e.dtype:
        a = e.op("Cast", a, to=e.dtype)
    if call.wanted[0]:
        nothing = e.op("Equal", a, e.scalar(0.0))
        lower = e.op("Where", nothing, e.scalar(0.0), e.op("Sub", a, e.scalar(1.0)))
        dx = unbroadcast(e, e.op("Mul", slope, e.op("Mul", a, e.op("Pow", x, lower))), x, y)
    if call.wanted[1]:
        real = e.op("Greater", x, e.scalar(0.0))
        log = e.op("Log", e.op("Where", real, x, e.scalar(1.0)))
        da = unbroadcast(e, e.op("Mul", slope, e.op("Mul", y, log)), a, y)
    return [dx, da]


@gradient("Where")
def choice(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """The slope where the value was chosen; the engine does not sum it where it was repeated."""
    slope, zero = call.slopes[0], e.scalar(0.0)
    assert slope is not None
    slopes: list[ir.Value | None] = [None, None, None]
    for slot, pair in ((1, (slope, zero)), (2, (zero, slope))):
        if call.wanted[slot]:
            part = e.op("Where", call.input(0), *pair)
            slopes[slot] = unbroadcast(e, part, call.input(slot), call.node.outputs[0])
    return slopes


@gradient("Mod")
def remainder(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """X - b trunc(x / b) has the slopes 1 and -trunc(x / b); fmod only, as floats have no other."""
    x, b, y, slope = call.input(0), call.input(1), call.node.outputs[0], call.slopes[0]
    assert slope is not None
    dx = unbroadcast(e, slope, x, y) if call.wanted[0] else None
    if not call.wanted[1]:
        return [dx, None]
    ratio = e.op("Div", e.op("Sub", x, y), b)
    return [dx, unbroadcast(e, e.op("Neg", e.op("Mul", slope, ratio)), b, y)]


@lowers("Shrink")
def shrink(e: Emitter, node: ir.Node) -> ir.Value:
    """X + bias below -lambd, x - bias above lambd, else 0."""
    x, bias = data_input(node), attribute(node, "bias", 0.0)
    bound = attribute(node, "lambd", 0.5)
    above = e.op("Greater", x, e.scalar(bound))
    below = e.op("Less", x, e.scalar(-bound))
    inner = e.op("Where", below, e.op("Add", x, e.scalar(bias)), e.scalar(0.0))
    return e.op("Where", above, e.op("Sub", x, e.scalar(bias)), inner)


@lowers("Swish")
def swish(e: Emitter, node: ir.Node) -> ir.Value:
    """X * sigmoid(alpha x)."""
    x, alpha = data_input(node), attribute(node, "alpha", 1.0)
    inner = x if alpha == 1 else e.op("Mul", x, e.scalar(alpha))
    return e.op("Mul", x, e.op("Sigmoid", inner))


def tanh_gelu(e: Emitter, x: ir.Value) -> ir.Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    cube = e.op("Mul", e.op("Mul", x, x), x)
    inner = e.op("Add", x, e.op("Mul", cube, e.scalar(0.044715)))
    tanh = e.op("Tanh", e.op("Mul", inner, e.scalar(math.sqrt(2 / math.pi))))
    return e.op("Mul", e.op("Mul", x, e.scalar(0.5)), e.op("Add", tanh, e.scalar(1.0)))


def gelu(e: Emitter, x: ir.Value) -> ir.Value:
    """0.5 x (1 + erf(x / sqrt(2)))."""
    erf = e.op("Erf", e.op("Mul", x, e.scalar(math.sqrt(0.5))))
    return e.op("Mul", e.op("Mul", x, e.scalar(0.5)), e.op("Add", erf, e.scalar(1.0)))


@lowers("Gelu")
def _approximate_gelu(e: Emitter, node: ir.Node) -> ir.Value | None:
    """The engine gives the approximation by tanh the slope of the exact function."""
    x = data_input(node)
    return tanh_gelu(e, x) if attribute(node, "approximate", "none") == "tanh" else None


@lowers("Dropout")
def _kept(e: Emitter, node: ir.Node) -> ir.Value | None:
    """The identity where it is not told to drop."""
    told = optional_input(node, 2)
    flag = constant(told)
    drops = told is not None and (flag is None or bool(flag))
    if drops or any(wanted(value) for value in node.outputs[1:]):
        return None
    return e.op("Identity", data_input(node))


@lowers("CastLike")
def cast_like(e: Emitter, node: ir.Node) -> ir.Value | None:
    """A Cast to the type of the second input."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return None
    return e.op("Cast", data_input(node), to=like.dtype)


@gradient("Round", "Floor", "Ceil", "Sign", "Hardmax", "Bernoulli")
def steps(e: Emitter, call: Call) -> Sequence[ir.Value | None]:  # noqa: ARG001
    """Flat nearly everywhere."""
    return [None] * len(call.wanted)


@lowers("MatMul")
def matrix_product(e: Emitter, node: ir.Node) -> ir.Value | None:
    """A vector as a matrix of one row or column, which alone the engine differentiates."""
    ranks = [None if v is None or v.shape is None else len(v.shape) for v in node.inputs]
    if 1 not in ranks or None in ranks:
        return None
    a, b = node.inputs
    left, right = (rank == 1 for rank in ranks)
    rows = e.op("Unsqueeze", a, e.integers(0)) if left else a
    columns = e.op("Unsqueeze", b, e.integers(1)) if right else b
    product = e.op("MatMul", rows, columns)
    gone = [axis for axis, single in ((-2, left), (-1, right)) if single]
    return e.op("Squeeze", product, e.constant(np.array(gone, dtype=np.int64)))
