"""Pooling over positions: every channel for itself."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.base import Fact
from onnxprune.ops.registry import View, couples, traces
from onnxprune.ops.trace import Kind, Trace, TraceView

_POOLS = ("MaxPool", "AveragePool", "LpPool")
_GLOBAL = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")


@couples(*_POOLS, *_GLOBAL)
def pool(view: View) -> Iterator[Fact]:
    """Couple batch and channels one to one; positions keep their sizes.

    Forward:  y[n, c, o] = reduce of x[n, c, window(o)]
    Couples:  x.N <-> y.N;  x.C <-> y.C. MaxPool's second output counts positions through all
              channels, so that whoever reads it needs them all
    """
    x = view.input(0)
    if any(output.uses() for output in view.node.outputs[1:]):
        yield from view.fixed(x, 1)
    for output in view.node.outputs:
        if output.name:
            yield from view.equal(view.axis(x, 0), view.axis(output, 0))
            yield from view.equal(view.axis(x, 1), view.axis(output, 1))
            yield from view.fixed(output, *range(2, len(view.shape(output))))
    yield from view.fixed(x, *range(2, len(view.shape(x))))


@traces("AveragePool", "GlobalAveragePool")
def linear(view: View, around: TraceView) -> Trace | None:
    """An average keeps the kind: it is linear, and equal functions stay equal.

    Zero padding that counts makes sigmoid(-z) = 1 - sigmoid(z) fail at the border.
    """
    trace = around.inputs[0]
    padded = any(view.attribute("pads", ())) or view.attribute("auto_pad", "NOTSET") != "NOTSET"
    if trace is not None and trace.kind is Kind.SIGMOID and padded:
        return trace.then(Kind.EQUAL)
    return trace


@traces("MaxPool", "GlobalMaxPool")
def maximum(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """A maximum is positively homogeneous; signs do not pass it."""
    trace = around.inputs[0]
    if trace is None:
        return None
    return trace.then(Kind.HOMOGENEOUS if trace.kind <= Kind.HOMOGENEOUS else Kind.EQUAL)
