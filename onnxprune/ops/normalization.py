"""Normalizations: BatchNormalization, which works on each channel alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.base import Axis, Fact
from onnxprune.ops.registry import Role, View, couples, parameters, traces
from onnxprune.ops.trace import Trace, TraceView

parameters("BatchNormalization", slots={1: Role.AFFINE, 2: Role.AFFINE})


@couples("BatchNormalization")
def batch_normalization(view: View) -> Iterator[Fact]:
    """Couple channels with scale, shift and running statistics.

    Forward:  y = scale * (x - mean) / sqrt(var + epsilon) + shift, per channel (axis 1)
    Couples:  x.C <-> y.C <-> scale <-> shift <-> mean <-> var (and the statistics it puts out);
              every other axis one to one
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    for position in range(rank):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    channel = Axis(y.name or "", 1 if rank > 1 else 0)
    statistics = [view.input(slot) for slot in range(1, 5)]
    statistics += [output for output in view.node.outputs[1:] if output.name]
    for value in statistics:
        if value is not None and len(view.shape(value)) == 1:
            yield from view.equal(view.axis(value, 0), channel)


@traces("BatchNormalization")
def batch_normalization_trace(view: View, around: TraceView) -> Trace | None:
    """Folded: rows times scale / sqrt(var + epsilon), plus shift - mean * that."""
    arrays = [view.constant(slot) for slot in range(1, 5)]
    index = around.index(view.axis(view.output(), 1))
    trace = around.inputs[0]
    if trace is None or index is None or any(array is None for array in arrays):
        return None
    scale, shift, mean, var = (np.asarray(array, np.float64)[index] for array in arrays)
    factor = scale / np.sqrt(var + view.attribute("epsilon", 1e-5))
    return trace.times(factor).plus(shift - mean * factor)
