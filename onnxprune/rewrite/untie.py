"""Initializers that exporters merged because they were equal, given back to their readers.

TorchScript keeps one copy of equal initializers: in a freshly made network one vector of ones
scales ten unrelated normalizations. Left shared, all of them would have to lose the same channels.
Vectors of one repeated number are given back to each reader; weights that are really shared stay
shared. Values filled with one number at run time go to each reader too: all layers of a recurrent
network start from parts of the same zeros, and would have to lose the same units.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.model import constant, list_initializers, node_key, tensor_of

__all__ = ["untie"]


def untie(model: ir.Model) -> ir.Model:
    """A copy in which every reader has its own; `model` itself when nothing is shared."""
    tied = any(len(readers) > 1 for _, readers in _shared(model))
    if not tied and not any(len(_reading(node)) > 1 for node in _fills(model)):
        return model
    copy = model.clone()
    for node in reversed(_fills(copy)):
        for number, reader in enumerate(_reading(node)[1:], start=1):
            _give(copy, node, reader, number)
    for value, readers in list(_shared(copy)):
        for node, slot in readers[1:]:
            name = f"{value.name}/{node_key(node)}"
            if name in copy.graph.initializers:  # one node reads it several times
                name = f"{name}/{slot}"
            array = constant(value)
            assert array is not None
            own = ir.Value(
                name=name,
                type=value.type,
                shape=ir.Shape(array.shape),
                const_value=ir.Tensor(array, name=name, dtype=value.dtype),
            )
            copy.graph.register_initializer(own)
            node.replace_input_with(slot, own)
    list_initializers(copy)
    return copy


def _shared(model: ir.Model) -> Iterator[tuple[ir.Value, list[tuple[ir.Node, int]]]]:
    """Vectors of one repeated number, with all who read them, through Identity nodes too."""
    for value in model.graph.initializers.values():
        tensor = tensor_of(value)
        if tensor is None or len(tensor.shape) != 1 or tensor.size < 2:
            continue
        array = tensor.numpy()
        if array.dtype.kind != "f" or value.is_graph_output():
            continue
        if (array == array[0]).all():
            yield value, list(_readers(value))


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for use in value.uses():
        output = use.node.outputs[0]
        if use.node.op_type == "Identity" and not output.is_graph_output():
            yield from _readers(output)
        else:
            yield use.node, use.idx


_PARTS = {"Slice", "Identity", "Transpose", "Squeeze", "Unsqueeze"}


def _fills(model: ir.Model) -> list[ir.Node]:
    """Nodes whose output holds one real number everywhere, in order."""
    found: list[ir.Node] = []
    outputs: set[ir.Value | None] = set()
    for node in model.graph:
        if node.domain not in ("", "ai.onnx") or not node.inputs:
            continue
        data = node.inputs[0]
        array = constant(data) if node.op_type == "Expand" else None
        filled = array is not None and array.size == 1 and array.dtype.kind == "f"
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            filled = given is None or given.as_tensor().dtype.is_floating_point()
        if filled or (node.op_type in _PARTS and data in outputs):
            found.append(node)
            outputs.add(node.outputs[0])
    return found


def _reading(node: ir.Node) -> list[ir.Node]:
    """Who reads what a node puts out, once each; nobody where the graph puts it out too."""
    output = node.outputs[0]
    if output.is_graph_output():
        return []
    return list(dict.fromkeys(use.node for use in output.uses()))


def _give(model: ir.Model, node: ir.Node, reader: ir.Node, number: int) -> None:
    """Let `reader` read a copy of `node`."""
    old = node.outputs[0]
    own = ir.Node("", node.op_type, node.inputs, node.attributes.values(), num_outputs=1)
    own.outputs[0].name = f"{old.name}/{number}"
    own.outputs[0].type, own.outputs[0].shape = old.type, old.shape
    model.graph.insert_after(node, own)
    for slot, value in enumerate(reader.inputs):
        if value is old:
            reader.replace_input_with(slot, own.outputs[0])
