"""Initializers that exporters merged because they were equal, given back to their readers.

TorchScript keeps one copy of equal initializers: in a freshly made network one vector of ones
scales ten unrelated normalizations. Left shared, all of them would have to lose the same channels.
Vectors of one repeated number are given back to each reader; weights that are really shared stay
shared.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.model import constant, node_key

__all__ = ["untie"]


def untie(model: ir.Model) -> ir.Model:
    """A copy with one initializer per reader of such vectors; `model` itself when it has none."""
    if not any(len(readers) > 1 for _, readers in _shared(model)):
        return model
    copy = model.clone()
    for value, readers in list(_shared(copy)):
        for node, slot in readers[1:]:
            name = f"{value.name}/{node_key(node)}"
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
    return copy


def _shared(model: ir.Model) -> Iterator[tuple[ir.Value, list[tuple[ir.Node, int]]]]:
    """Vectors of one repeated number, with all who read them, through Identity nodes too."""
    for value in model.graph.initializers.values():
        array = constant(value)
        if array is None or array.dtype.kind != "f" or array.ndim != 1 or array.size < 2:
            continue
        if (array == array[0]).all() and not value.is_graph_output():
            yield value, list(_readers(value))


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    for use in value.uses():
        output = use.node.outputs[0]
        if use.node.op_type == "Identity" and not output.is_graph_output():
            yield from _readers(output)
        else:
            yield use.node, use.idx
