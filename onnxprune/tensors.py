"""Arrays behind values: constants of a graph, whether initializers or Constant nodes.

What is asked about a constant without its numbers (is it one, which type, which sizes) is answered
without reading it: `tensor_of` for that, `constant` for the numbers. Where these lie in a file they
are mapped anew each time, and so leave memory with the array; what is kept of them (`Stored`) is
read when it is written or looked at, not before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Index
from onnxprune.errors import ModelError
from onnxprune.scopes import nodes, subgraphs

__all__ = [
    "Stored",
    "all_nodes",
    "constant",
    "constant_tensor",
    "constants",
    "detach",
    "is_constant",
    "keep",
    "numbers",
    "set_constant",
    "tensor_of",
]

_STANDARD = ("", "ai.onnx")


def tensor_of(value: ir.Value) -> Any:
    """The tensor (an `ir.TensorProtocol`) of an initializer or Constant node; None of others."""
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain not in _STANDARD:
        return None
    given = producer.attributes.get("value")
    if given is not None and given.type == ir.AttributeType.TENSOR:
        return given.value
    return ir.convenience.get_const_tensor(value)


def constant_tensor(value: ir.Value | None) -> Any:
    """As `tensor_of`, through Identity nodes: what `constant` reads."""
    while value is not None:
        tensor, producer = tensor_of(value), value.producer()
        if tensor is not None or producer is None or producer.op_type != "Identity":
            return tensor
        value = producer.inputs[0]
    return None


def is_constant(value: ir.Value | None) -> bool:
    """Whether `constant` knows an array; nothing is read."""
    return constant_tensor(value) is not None


def constant(value: ir.Value | None) -> Array | None:
    """The array behind an initializer, a Constant node or an Identity of them; else None.

    An initializer that is also a graph input is a default the caller may override since IR 4, but
    exporters mean a weight by it, and so do we.
    """
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    return numbers(tensor)


def numbers(tensor: Any) -> Array:
    """The array of a tensor; where it lies in a file, a mapping that goes with the array."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name or "",
            base_dir=tensor.base_dir,
        )
    array: Array = tensor.numpy()
    return array


class Stored(ir.LazyTensor):
    """The indices that are kept of a tensor in a file; read whenever the numbers are asked for.

    Attributes:
        source: the tensor in the file.
        kept: ascending indices per axis that loses some.
    """

    def __init__(self, source: ir.ExternalTensor, kept: Mapping[int, Index], name: str) -> None:
        sizes = [len(kept[p]) if p in kept else n for p, n in enumerate(source.shape.numpy())]
        super().__init__(self._read, dtype=source.dtype, shape=ir.Shape(sizes), name=name)
        self.source, self.kept = source, kept

    def __repr__(self) -> str:  # that of a LazyTensor repeats itself without end
        return f"Stored(axes {sorted(self.kept)} of {self.source!r})"

    def _read(self) -> ir.Tensor[Any]:
        array = _taken(numbers(self.source), self.kept)
        return ir.Tensor(np.ascontiguousarray(array), dtype=self.dtype, name=self.name)


def _taken(array: Array, kept: Mapping[int, Index]) -> Array:
    for position, index in kept.items():
        array = np.take(array, index, axis=position)
    return array


def keep(value: ir.Value, kept: Mapping[int, Index]) -> None:
    """Keep some indices of an initializer or Constant node; what lies in a file stays unread.

    Args:
        value: changed in place.
        kept: indices per axis that loses some.
    """
    tensor = tensor_of(value)
    if isinstance(tensor, Stored):
        before = tensor.kept
        kept = {**before, **{p: before[p][i] if p in before else i for p, i in kept.items()}}
        tensor = tensor.source
    if not isinstance(tensor, ir.ExternalTensor) or value.producer() is not None:
        set_constant(value, _taken(numbers(tensor), kept))
        return
    value.const_value = Stored(tensor, kept, value.name or "")
    value.shape, value.dtype = ir.Shape(value.const_value.shape), tensor.dtype


def constants(model: ir.Model) -> dict[str, ir.Value]:
    """Initializers and Constant nodes by name, those of bodies included; nothing is read."""
    found = dict(model.graph.initializers)
    for node in nodes(model):
        for body in subgraphs(node):
            found.update(body.initializers)
        if node.op_type == "Constant" and node.domain in _STANDARD:
            value = node.outputs[0]
            tensor = tensor_of(value)
            if value.name and tensor is not None:
                found[value.name] = value
                if value.dtype is None:
                    value.dtype = tensor.dtype
    return found


def set_constant(value: ir.Value, array: Array) -> None:
    """Replace the array behind an initializer or Constant node, keeping name and node.

    Raises:
        ModelError: the value is computed.
    """
    array = np.ascontiguousarray(array) if array.ndim else array
    tensor = ir.Tensor(array, name=value.name, dtype=_stored_dtype(value.dtype, array))
    producer = value.producer()
    if producer is not None:
        if producer.op_type != "Constant" or producer.domain not in _STANDARD:
            raise ModelError(f"{value.name}: computed by {producer.op_type}, not a constant")
        for name in list(producer.attributes):
            del producer.attributes[name]
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
        value.const_value = None
    else:
        value.const_value = tensor
    value.shape = ir.Shape(array.shape)
    value.dtype = tensor.dtype


def _stored_dtype(dtype: ir.DataType | None, array: Array) -> ir.DataType | None:
    return dtype if dtype is not None and dtype.numpy() == array.dtype else None


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Of all graphs and functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def detach(model: ir.Model) -> None:
    """Keep what the model file holds as arrays, in place, and let go of the message it was read as.

    The message would hand out another copy of a weight every time that somebody looks at it.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            if _is_message(value.const_value):
                value.const_value = _as_array(value.const_value)
    for node in all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            if not attribute.is_ref() and _is_message(attribute.value):
                node.attributes[name] = ir.AttrTensor(
                    name, _as_array(attribute.value), attribute.doc_string
                )


def _is_message(tensor: Any) -> bool:
    """Of numbers of whole bytes; text and smaller numbers are stored in forms of their own."""
    return (
        isinstance(tensor, ir.serde.TensorProtoTensor)
        and tensor.dtype not in (ir.DataType.STRING, ir.DataType.UNDEFINED)
        and tensor.dtype.bitwidth >= 8
    )


def _as_array(tensor: Any) -> ir.Tensor[Any]:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
