"""Gradients of Concat, Split and Scatter in the forms that the engine gets wrong.

It leaves an output of Split without slope out of the slope of the input, which then is too short;
it gives the slope of a constant that two Concats read one name twice; and it takes every Scatter
for one that overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.hidden import Call, zeros
from onnxprune.gradients.slots import attribute
from onnxprune.ops.registry import gradient

__all__: list[str] = []


@gradient("Split")
def split(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """The slopes one behind the other, zeros for those that are missing."""
    parts: list[ir.Value] = []
    for value, slope in zip(call.node.outputs, call.slopes, strict=True):
        if not value.name:
            value.name = f"{e.prefix}/part_{len(parts)}"
        parts.append(slope if slope is not None else zeros(e, value))
    axis = attribute(call.node, "axis", 0)
    return [e.op("Concat", *parts, axis=axis), *[None] * (len(call.wanted) - 1)]


@gradient("Concat")
def concat(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """The slope, split where the inputs meet."""
    axis = attribute(call.node, "axis", 0)
    place = e.integers(axis)
    sizes = [e.op("Gather", e.op("Shape", value), place) for value in call.node.inputs]
    names = [f"{e.prefix}/part_{number}" for number in range(len(sizes))]
    whole = e.op("Concat", *sizes, axis=0)
    return e.ops("Split", call.slopes[0], whole, outputs=names, axis=axis)


@gradient("ScatterElements", "ScatterND")
def scatter(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """With reduction "add": the slope itself for the data, what is found there for the updates."""
    slope, places = call.slopes[0], call.input(1)
    if call.node.op_type == "ScatterND":
        return [slope, None, e.op("GatherND", slope, places)]
    axis = attribute(call.node, "axis", 0)
    return [slope, None, e.op("GatherElements", slope, places, axis=axis)]
