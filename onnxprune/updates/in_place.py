"""Graphs whose outputs are bound to the very buffers of their inputs.

A runtime knows nothing of that, so the graph itself must make it sound: `check_aliasing`. `Writer`
collects inputs and outputs, and remembers what overwrites what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import InvariantError

__all__ = ["OPSET", "Writer", "check_aliasing"]

OPSET = 17
"""Of the standard operators in these graphs."""

_IR = 8

# Operators that write an element after reading that same element, and no other, of each input.
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "Identity"})
# Operators whose output may be their input's memory.
_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


class Writer:
    """The inputs and outputs of a graph in the making.

    Args:
        dtype: of all values for which nothing else is said.

    Attributes:
        inputs, outputs: so far.
        overwrites: per output, the input whose buffer it is to be bound to.
    """

    def __init__(self, dtype: ir.DataType) -> None:
        self.dtype = dtype
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.overwrites: dict[str, str] = {}

    def input(self, name: str, shape: Sequence[int], dtype: ir.DataType | None = None) -> ir.Value:
        """A new input."""
        kind = ir.TensorType(dtype or self.dtype)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(list(shape)))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[int]) -> None:
        """Make `value` an output called `name`."""
        value.name, value.dtype, value.shape = name, self.dtype, ir.Shape(list(shape))
        self.outputs.append(value)

    def overwrite(self, old: ir.Value, new: ir.Value) -> None:
        """Make `new` the output that overwrites the input `old`."""
        name = f"{old.name}/next"
        shape = old.shape.numpy() if old.shape is not None else ()
        self.output(new, name, [int(size) for size in shape])
        self.overwrites[name] = old.name or ""

    def carry(self, e: Emitter, name: str, shape: Sequence[int]) -> tuple[str, str]:
        """A new input, and the output that repeats it: both names."""
        source = self.input(f"{name}/computed", shape)
        self.output(e.op("Identity", source), f"{name}/carried", shape)
        return f"{name}/computed", f"{name}/carried"

    def model(self, e: Emitter) -> ir.Model:
        """The graph, with the nodes of `e`."""
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=e.nodes,
            initializers=e.initializers,
            opset_imports={"": OPSET},
            name="update",
        )
        return ir.Model(graph, ir_version=_IR)


def check_aliasing(model: ir.Model, overwrites: Mapping[str, str]) -> None:
    """Make sure that each input is read last by the node that overwrites it.

    Sound means: the writing node works element by element, every other reader of the input is its
    ancestor (so it has run), and no reader hands the input's memory on as a view.

    Args:
        model: the graph; run it with graph optimizations off, so that it stays as checked.
        overwrites: per output, the input whose buffer it is bound to.

    Raises:
        InvariantError: the graph would read a value after it is overwritten.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    if len(set(overwrites.values())) < len(overwrites):
        raise InvariantError("two outputs of the update graph overwrite one input; report this")
    for target, source in overwrites.items():
        old, writer = inputs[source], outputs[target].producer()
        if writer is None or writer.op_type not in _ELEMENTWISE:
            raise InvariantError(
                f"{target}: overwrites {source} from {writer and writer.op_type}, which does not "
                "work element by element; report this"
            )
        if outputs[target].shape != old.shape:
            raise InvariantError(
                f"{target}: shape {outputs[target].shape} overwrites {source} of {old.shape}; "
                "report this"
            )
        before = _ancestors(writer)
        for reader, _ in old.uses():
            if reader is not writer and (reader not in before or reader.op_type in _VIEWS):
                raise InvariantError(
                    f"{source}: read by {reader.op_type} ({reader.outputs[0].name}) after "
                    f"{target} has overwritten it; report this"
                )


def _ancestors(node: ir.Node) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        for value in waiting.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found
