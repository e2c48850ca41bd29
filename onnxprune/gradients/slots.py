"""Reading a node: its attributes, inputs and sizes; what all lowerings begin with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from onnxprune.model import shape_of
from onnxprune.scopes import subgraphs

__all__ = [
    "attribute",
    "attributes",
    "beyond",
    "captured",
    "data_input",
    "optional_input",
    "quantized_source",
    "rank_of",
    "rewire",
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
    return [source] if source is not None else captured(*subgraphs(node))


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
                stack += subgraphs(node)
            read.update(dict.fromkeys(body.outputs))
    return [value for value in read if value not in made and value.name]


def rewire(graph: ir.Graph, values: Mapping[ir.Value, ir.Value]) -> None:
    """Let everything inside `graph`, its nodes' bodies included, read other values, in place."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for slot, value in enumerate(node.inputs):
            if value is not None and value in values:
                node.replace_input_with(slot, values[value])
    for inner in (graph, *graph.subgraphs()):
        for slot, value in enumerate(inner.outputs):
            if value in values:
                inner.outputs[slot] = values[value]
