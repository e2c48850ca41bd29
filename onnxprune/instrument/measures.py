"""Anything else a method wants to know of its sample: nodes that it writes itself.

What `attach` (statistics) offers is one number per index of one axis. A method that needs maps, or
products of units with each other, writes the nodes that compute them; their results are summed over
the batches of the sample, so that what comes out should be a sum over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.model import opset

__all__ = ["Measurement", "attach_measurement"]

Measurement: TypeAlias = Callable[[Emitter, Mapping[str, ir.Value]], Mapping[str, ir.Value]]
"""(emitter, the graph's values by name) -> float32 results by a key of the method's own."""


def attach_measurement(
    model: ir.Model, measurement: Measurement
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of `model` whose outputs are the results of `measurement`.

    Args:
        model: a derived graph; not changed.
        measurement: writes nodes behind values of the graph, of any float type.

    Returns:
        The copy, and per key of the measurement the output that holds it.
    """
    copy = model.clone()
    values = {value.name or "": value for value in copy.graph.inputs}
    values |= {value.name or "": value for node in copy.graph for value in node.outputs}
    e = Emitter("measured", opset=opset(copy))
    results = {key: e.op("Identity", value) for key, value in measurement(e, values).items()}
    e.add_to(copy.graph)
    for value in results.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
    copy.graph.outputs[:] = list(results.values())
    return copy, {key: value.name or "" for key, value in results.items()}
