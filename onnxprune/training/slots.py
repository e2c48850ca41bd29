"""Reading a node: its attributes, inputs and sizes; what all lowerings begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from onnxprune.model import shape_of

__all__ = [
    "attribute",
    "attributes",
    "beyond",
    "bodies",
    "captured",
    "data_input",
    "optional_input",
    "quantized_source",
    "rank_of",
    "wanted",
]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def attributes(node: ir.Node, *names: str) -> dict[str, Any]:
    """The attributes of `node` that have one of these names."""
    return {name: node.attributes[name].value for name in names if name in node.attributes}


def optional_input(node: ir.Node, slot: int) -> ir.Value | None:
    """An input that may be left out."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    return None if value is None or value.name == "" else value


def data_input(node: ir.Node) -> ir.Value:
    """The first input."""
    value = node.inputs[0]
    assert value is not None
    return value


def rank_of(value: ir.Value) -> int | None:
    """How many axes `value` has; None when unknown."""
    shape = shape_of(value)
    return None if shape is None else len(shape)


def wanted(value: ir.Value) -> bool:
    """Whether anybody reads `value`."""
    return bool(value.uses()) or value.is_graph_output()


def bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    """The graphs that `node` holds, by attribute."""
    for name, value in node.attributes.items():
        if value.type == ir.AttributeType.GRAPH:
            yield name, value.as_graph()


def quantized_source(node: ir.Node) -> ir.Value | None:
    """What a DequantizeLinear behind a QuantizeLinear rounds; None for all other nodes."""
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    before = node.inputs[0].producer()
    if before is None or before.op_type != "QuantizeLinear":
        return None
    return before.inputs[0]


def beyond(node: ir.Node) -> list[ir.Value]:
    """Values that `node` depends on in a differentiable way without reading them itself."""
    source = quantized_source(node)
    return [source] if source is not None else captured(*(body for _, body in bodies(node)))


def captured(*graphs: ir.Graph) -> list[ir.Value]:
    """Values from outside that the graphs read, in the order of the first reading."""
    made: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    for graph in graphs:
        stack = [graph]
        while stack:
            body = stack.pop()
            made.update(body.inputs, body.initializers.values())
            for node in body:
                read.update(dict.fromkeys(value for value in node.inputs if value is not None))
                made.update(node.outputs)
                stack += [inner for _, inner in bodies(node)]
            read.update(dict.fromkeys(body.outputs))
    return [value for value in read if value not in made and value.name]
