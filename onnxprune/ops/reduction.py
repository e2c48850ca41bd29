"""Reductions, Softmax and selections along axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxprune.base import Fact, Inexact
from onnxprune.ops.normalization import mixed
from onnxprune.ops.registry import View, couples, traces
from onnxprune.ops.trace import Kind, Trace, TraceView

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_ADDITIVE = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSum", "ReduceSumSquare")


def _axes(view: View) -> Sequence[int] | None:
    """The reduced axes, counted from the front; None when computed."""
    rank = len(view.shape(view.input(0)))
    axes = view.attribute("axes")
    if axes is None and view.input(1) is not None:
        array = view.constant(1)
        if array is None:
            return None
        axes = [int(axis) for axis in array]
    if not axes:
        axes = [] if view.attribute("noop_with_empty_axes", 0) else range(rank)
    return [axis % rank for axis in axes]


@couples(*_REDUCTIONS)
def reduce(view: View) -> Iterator[Fact]:
    """Couple the axes that remain; those that are reduced end here.

    Forward:  y[i, ...] = reduce over `axes` of x[i, ...]
    Couples:  the other axes one to one, in order
    Inexact:  along the reduced axes, unless a zero adds nothing to a sum; sums over a constant too,
              which is no data that could become zero
    """
    x, y = view.input(0), view.output()
    axes = _axes(view)
    rank = len(view.shape(x))
    if axes is None:
        yield from view.fixed(x, *range(rank))
        return
    yield from view.ends(x, *axes)
    if view.node.op_type not in _ADDITIVE or view.is_constant(0):
        for axis in axes:
            yield Inexact(view.axis(x, axis), view.key, f"{view.node.op_type} over this axis")
    target = 0
    for position in range(rank):
        if position not in axes:
            yield from view.equal(view.axis(x, position), view.axis(y, target))
        target += position not in axes or bool(view.attribute("keepdims", 1))


@traces("ReduceMean", "ReduceSum")
def linear(view: View, around: TraceView) -> Trace | None:
    """A mean keeps the kind; of a sum, where errors add up, only equality is used."""
    trace = around.inputs[0]
    if trace is None or view.node.op_type == "ReduceMean":
        return trace
    return trace.then(Kind.EQUAL)


@traces("ReduceMax")
def maximum(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """A maximum is positively homogeneous."""
    trace = around.inputs[0]
    if trace is None:
        return None
    return trace.then(Kind.HOMOGENEOUS if trace.kind <= Kind.HOMOGENEOUS else Kind.EQUAL)


@couples("Softmax", "LogSoftmax", "Hardmax")
def softmax(view: View) -> Iterator[Fact]:
    """Couple every axis one to one.

    Forward:  y = exp(x) / sum(exp(x)) over `axis`; before opset 13 over all axes from `axis` on
    Couples:  x[p] <-> y[p]
    Inexact:  along the axes it normalizes over
    """
    rank = len(view.shape(view.input(0)))
    axis = view.attribute("axis", -1 if view.opset >= 13 else 1) % rank
    yield from mixed(view, [axis] if view.opset >= 13 else range(axis, rank))


@couples("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
def loss(view: View) -> Iterator[Fact]:
    """Freeze everything: classes have a meaning.

    Forward:  y = mean of -weight[label] log p[label]
    Couples:  nothing
    """
    for value in (*view.node.inputs, *view.node.outputs):
        if value is not None and value.name:
            yield from view.fixed(value, *range(len(view.shape(value))))


@couples("ArgMax", "ArgMin", "TopK", "CumSum", "CumProd")
def select(view: View) -> Iterator[Fact]:
    """Couple the other axes; along `axis` the position is the answer, so it keeps its size."""
    x = view.input(0)
    rank = len(view.shape(x))
    if view.node.op_type in ("CumSum", "CumProd"):
        array = view.constant(1)
        axes = range(rank) if array is None else [int(array.reshape(-1)[0]) % rank]
    else:
        default = -1 if view.node.op_type == "TopK" else 0
        axes = [view.attribute("axis", default) % rank]
    yield from view.fixed(x, *axes)
    for y in view.node.outputs:
        target = 0
        for position in range(rank):
            if position not in axes:
                yield from view.equal(view.axis(x, position), view.axis(y, target))
            elif len(view.shape(y)) == rank:
                yield from view.fixed(y, target)
            target += position not in axes or len(view.shape(y)) == rank
