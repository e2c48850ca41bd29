"""Functions of one value, element by element: activations, casts, and what passes values on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxprune.base import Ends, Fact
from onnxprune.emit import Emitter
from onnxprune.ops.registry import View, couples, mimics, traces
from onnxprune.ops.trace import Kind, Trace, TraceView

_HOMOGENEOUS = ("Relu", "Abs", "LeakyRelu")
_PASSING = ("Identity", "Dropout", "Cast")
_SLOPES = {  # the steepest of functions without a symmetry; those with attributes are in `_slope`
    "Atan": 1.0, "Asinh": 1.0, "Celu": 1.0, "Clip": 1.0, "Cos": 1.0, "Erf": 1.129, "Gelu": 1.13,
    "HardSwish": 1.5, "Mish": 1.09, "Sin": 1.0, "Softplus": 1.0, "Softsign": 1.0, "Swish": 1.1,
}  # fmt: skip
_STEEP = ("Elu", "HardSigmoid", "Selu")
_OTHERS = (
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitwiseNot", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "IsInf", "IsNaN", "Log", "Mish", "Neg", "Not", "Reciprocal", "Round", "Selu", "Shrink", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "ThresholdedRelu",
)  # fmt: skip


@couples(*_HOMOGENEOUS, *_PASSING, *_OTHERS, "Sigmoid", "Tanh")
def unary(view: View) -> Iterator[Fact]:
    """Couple every axis one to one.

    Forward:  y[...] = f(x[...]); Dropout's mask has the shape of x too; bounds are scalars
    Couples:  (x, p)[i] <-> (y, p)[i]
    """
    x = view.input(0)
    for position in range(len(view.shape(x))):
        for output in view.node.outputs:
            if output.name:
                yield from view.equal(view.axis(x, position), view.axis(output, position))


@mimics("Dropout", until=9)
def like_identity(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The mask has the sizes of the data, which ONNX's inference says from opset 10 on."""
    return [e.op("Identity", node.inputs[0]) for _ in node.outputs]


@couples("CastLike")
def cast_like(view: View) -> Iterator[Fact]:
    """Couple every axis one to one; of the second input only the type is read.

    Forward:  y[...] = x[...] in the type of the second input
    Couples:  (x, p)[i] <-> (y, p)[i]
    """
    yield from unary(view)
    like = view.input(1)
    for position in range(len(view.shape(like))):
        yield Ends(view.axis(like, position), reads=False)


@traces(*_PASSING, "CastLike")
def same(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """The unit itself."""
    return around.inputs[0]


@traces("Neg")
def negated(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001
    """A linear unit stays linear under a change of sign; the rest is equal or not."""
    trace = around.inputs[0]
    if trace is None or trace.kind is not Kind.LINEAR:
        return None if trace is None else trace.then(Kind.EQUAL)
    return Trace(rows=-trace.rows, kind=Kind.LINEAR, inputs=trace.inputs)


@traces(*_HOMOGENEOUS)
def homogeneous(view: View, around: TraceView) -> Trace | None:
    """f(c z) = c f(z) for c >= 0, and 1-Lipschitz (a leak of more than 1 is not)."""
    trace = around.inputs[0]
    leaky = view.node.op_type == "LeakyRelu" and abs(view.attribute("alpha", 0.01)) > 1
    return None if trace is None else trace.then(Kind.EQUAL if leaky else Kind.HOMOGENEOUS)


@traces("Tanh")
def odd(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001
    """The symmetry of Tanh: f(-z) = -f(z)."""
    trace = around.inputs[0]
    return None if trace is None else trace.then(Kind.ODD)


@traces("Sigmoid")
def sigmoid(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001
    """The symmetry of Sigmoid: f(-z) = 1 - f(z); its slope is at most 1/4."""
    trace = around.inputs[0]
    return None if trace is None else trace.then(Kind.SIGMOID, slope=0.25)


@traces(*_SLOPES, *_STEEP)
def smooth(view: View, around: TraceView) -> Trace | None:
    """The same function for every unit, whose slope is bounded; bounds of Clip are scalars."""
    trace = around.inputs[0]
    return None if trace is None else trace.then(Kind.SMOOTH, slope=_slope(view))


def _slope(view: View) -> float:
    op_type = view.node.op_type
    if op_type == "HardSigmoid":
        return abs(float(view.attribute("alpha", 0.2)))
    if op_type == "Elu":
        return max(abs(float(view.attribute("alpha", 1.0))), 1.0)
    if op_type == "Selu":
        alpha, gamma = view.attribute("alpha", 1.67326), view.attribute("gamma", 1.0507)
        return abs(float(gamma)) * max(abs(float(alpha)), 1.0)
    return _SLOPES[op_type]


@traces(*(op for op in _OTHERS if op not in {"Neg", *_SLOPES, *_STEEP}))
def equal(view: View, around: TraceView) -> Trace | None:
    """The same function for every unit."""
    del view
    trace = around.inputs[0]
    return None if trace is None else trace.then(Kind.EQUAL)
