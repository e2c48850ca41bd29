"""ONNX's own shape inference on a model without its weights.

Entry: `Skeleton`. Inference needs weights only where they are sizes, paddings or indices, which are
small; all others enter as inputs of known type and size. So nothing large is read or copied, and
the same skeleton serves any number of questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.model import tensor_of

__all__ = ["Inferred", "Skeleton"]

_SMALL = 8192  # bytes; constants up to this size keep their numbers
_PINNED = "\0computed"  # what the name of a computed value is extended by, once its array is known


class Inferred(NamedTuple):
    """What is known of a value: element type and sizes (None: not a number), None if unknown."""

    dtype: ir.DataType | None
    sizes: tuple[int | None, ...] | None


class Skeleton:
    """A model without weights and without what its file claims about the sizes inside.

    Args:
        model: not changed, and not kept.
    """

    def __init__(self, model: ir.Model) -> None:
        proto = onnx.ModelProto(ir_version=model.ir_version)
        for domain, version in model.graph.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.functions.extend(map(ir.serde.serialize_function, model.functions.values()))
        self._outputs = {value.name for value in model.graph.outputs}
        for value in model.graph.inputs:
            if not value.is_initializer():
                proto.graph.input.append(ir.serde.serialize_value(value))
        for value in model.graph.initializers.values():
            _add_constant(proto.graph, value)
        for node in model.graph:
            _add_node(proto.graph, node)
        for value in model.graph.outputs:
            _add_type(proto.graph.output.add(name=value.name), value)
        self._bytes: bytes = proto.SerializeToString()

    def infer(
        self,
        sizes: Mapping[str, tuple[int | None, ...]] | None = None,
        known: Mapping[str, Array] | None = None,
        *,
        data_prop: bool = True,
    ) -> dict[str, Inferred]:
        """What inference says about every value of the main graph.

        Args:
            sizes: numbers for the sizes of inputs, by name; None leaves a size as it is.
            known: arrays of computed values, by name; their readers see constants.
            data_prop: whether sizes computed in the graph are followed.
        """
        proto = onnx.ModelProto.FromString(self._bytes)
        for value in proto.graph.input if sizes else ():
            _resize(value, (sizes or {}).get(value.name, ()))
        self._pin(proto.graph, known or {})
        try:
            found = onnx.shape_inference.infer_shapes(
                proto, check_type=False, strict_mode=False, data_prop=data_prop
            ).graph
        except (RuntimeError, ValueError):  # nothing is known then but what was given
            found = proto.graph
        # Inputs come last: the file may claim less about a value that has become one here.
        values = (*found.value_info, *found.output, *found.input)
        return {
            value.name: _read(value.type) for value in values if not value.name.endswith(_PINNED)
        }

    def _pin(self, graph: onnx.GraphProto, known: Mapping[str, Array]) -> None:
        """Let initializers stand in for computed values, which go on under other names."""
        for node in graph.node if known else ():
            for position, name in enumerate(node.output):
                if name in known and name not in self._outputs:
                    node.output[position] = f"{name}{_PINNED}"
                    _add_array(graph, name, ir.Tensor(known[name], name=name))


def _add_node(graph: onnx.GraphProto, node: ir.Node) -> None:
    """The node, or a constant in its place."""
    outputs = node.outputs
    if node.op_type == "Constant" and outputs[0].name:
        tensor = tensor_of(outputs[0])
        if tensor is not None and tensor.nbytes > _SMALL:
            _add_constant(graph, outputs[0])
            return
    ir.serde.serialize_node_into(graph.node.add(), node)
    for value in outputs:
        if value.type is not None and value.name and not value.is_graph_output():
            _add_type(graph.value_info.add(name=value.name), value)


def _add_constant(graph: onnx.GraphProto, value: ir.Value) -> None:
    """An input of the type and sizes of a constant, with its numbers where they are few."""
    tensor = tensor_of(value)
    if tensor is None:
        graph.input.append(ir.serde.serialize_value(value))
    elif tensor.nbytes <= _SMALL:
        _add_array(graph, value.name or "", tensor)
    else:
        _declare(graph, value.name or "", tensor)


def _add_array(graph: onnx.GraphProto, name: str, tensor: Any) -> None:
    proto = graph.initializer.add()
    ir.serde.serialize_tensor_into(proto, tensor)
    proto.name = name
    _declare(graph, name, tensor)


def _declare(graph: onnx.GraphProto, name: str, tensor: Any) -> None:
    kind = graph.input.add(name=name).type.tensor_type
    kind.elem_type = tensor.dtype.value
    kind.shape.SetInParent()
    for size in tensor.shape.numpy():
        kind.shape.dim.add(dim_value=size)


def _add_type(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    """The element type that the file claims; operators unknown to ONNX have no other."""
    if isinstance(value.type, ir.TensorType):
        proto.type.tensor_type.elem_type = value.type.dtype.value
    elif value.type is not None:
        ir.serde.serialize_type_into(proto.type, value.type)


def _resize(value: onnx.ValueInfoProto, sizes: tuple[int | None, ...]) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, sizes, strict=False):
        if size is not None:
            dimension.dim_value = size


def _read(kind: onnx.TypeProto) -> Inferred:
    if not kind.HasField("tensor_type"):
        return Inferred(None, None)
    tensor = kind.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Inferred(dtype, None)
    return Inferred(
        dtype,
        tuple(
            size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else None
            for size in tensor.shape.dim
        ),
    )
