"""Models of other float types in float32: what is trained, and what runs where kernels are missing.

Half precision loses the small steps of training, and the CPU has few kernels for it and for
float64. `to_single` turns a derived copy into float32 throughout; its inputs keep their types, so
that callers feed what the file asks for. `narrowed` takes numbers back to the type of the file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.model import model_input

__all__ = ["OTHERS", "is_single", "narrowed", "read_in_single", "saturates", "to_single", "widened"]

OTHERS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
"""The float types that are trained in float32."""

_SINGLE = ir.DataType.FLOAT
# Attributes that hold an element type, of any standard operator.
_TYPE_ATTRIBUTES = (
    "dtype",
    "output_datatype",
    "output_dtype",
    "softmax_precision",
    "stash_type",
    "to",
)
_ENDS = (("low", -1), ("high", 1))
_LARGEST = float(np.finfo(np.float32).max)


def is_single(model: ir.Model) -> bool:
    """Whether `to_single` would change nothing."""
    for graph in model.graphs():
        if any(_dtype(value) in OTHERS for value in (*graph.inputs, *graph.initializers.values())):
            return False
    return not any(
        _other_type(attribute) or _other_tensor(attribute)
        for node in model.graph.all_nodes()
        for attribute in node.attributes.values()
    )


def to_single(model: ir.Model) -> None:
    """Make every float value of `model` float32, in place, but for its inputs.

    Each input of another float type keeps it and is cast at once; only bfloat16, which numpy has
    not, becomes float32 there too. Numbers beyond the range of float32 become the largest that it
    has: they stand for infinity in masks.
    """
    for graph in model.graphs():
        values = [] if graph is model.graph else list(graph.inputs)
        for value in (*graph.initializers.values(), *values):
            if value.const_value is not None and _dtype(value) in OTHERS:
                value.const_value = _tensor(value.const_value)
            _retype(value)
    for node in model.graph.all_nodes():
        _retype_node(node)
    for value in model_input(model):
        if value.dtype is ir.DataType.BFLOAT16:
            _retype(value)
        elif value.dtype in OTHERS:
            _follow(model.graph, value, "Cast", [value], _SINGLE, "float32", to=int(_SINGLE))


def _dtype(value: ir.Value) -> ir.DataType | None:
    """Of the numbers, where there are some: not every initializer states its type."""
    return value.dtype if value.const_value is None else value.const_value.dtype


def _retype_node(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if _other_type(attribute):
            node.attributes[name] = ir.AttrInt64(name, int(_SINGLE))
        elif _other_tensor(attribute):
            node.attributes[name] = ir.AttrTensor(name, _tensor(attribute.as_tensor()))
    for value in node.outputs:
        _retype(value)


def _retype(value: ir.Value) -> None:
    if value.dtype in OTHERS:
        value.type = copy.deepcopy(value.type)  # clones of a model share it
        value.dtype = _SINGLE


def _other_type(attribute: ir.Attr) -> bool:
    return (
        attribute.name in _TYPE_ATTRIBUTES
        and attribute.type == ir.AttributeType.INT
        and not attribute.is_ref()
        and attribute.as_int() in [int(dtype) for dtype in OTHERS]
    )


def _other_tensor(attribute: ir.Attr) -> bool:
    return (
        attribute.type == ir.AttributeType.TENSOR
        and not attribute.is_ref()
        and attribute.as_tensor().dtype in OTHERS
    )


def _tensor(tensor: Any) -> ir.Tensor[Any]:
    return ir.Tensor(widened(tensor.numpy()), name=tensor.name)


def widened(array: Array) -> Array:
    """`array` in float32; finite numbers stay finite."""
    if array.dtype == np.float64:
        finite = np.isfinite(array)
        array = np.where(finite, np.clip(array, -_LARGEST, _LARGEST), array)
    return np.asarray(array.astype(np.float32))


def narrowed(array: Array, dtype: ir.DataType) -> Array:
    """`array` in a float type of a file; numbers beyond its range become the largest it has."""
    if dtype is ir.DataType.FLOAT16:
        array = np.clip(array, -_limit(), _limit())
    return np.asarray(array.astype(dtype.numpy()))


def saturates(array: Array, dtype: ir.DataType | None) -> bool:
    """Whether `narrowed` would cut a number of `array` off."""
    return dtype is ir.DataType.FLOAT16 and bool(np.any(np.abs(array) > _limit()))


def _limit() -> float:
    return float(np.finfo(np.float16).max)


def read_in_single(graph: ir.Graph, value: ir.Value) -> None:
    """Make the input `value` float32, and cast it as `narrowed` does where it is read.

    The numbers are rounded to bfloat16 before the cast, as that is dropped where the rest runs in
    float32: by Veltkamp's splitting, c - (c - x) with c = (2^16 + 1) x, which keeps 24 - 16 bits.
    """
    dtype = value.dtype
    if dtype not in OTHERS:
        return
    assert dtype is not None
    _retype(value)
    source = value
    if dtype is ir.DataType.FLOAT16:
        ends = [_scalar(graph, value, name, sign * _limit()) for name, sign in _ENDS]
        source = _follow(graph, value, "Clip", [value, *ends], _SINGLE, "clipped")
    elif dtype is ir.DataType.BFLOAT16:
        source = _rounded(graph, value)
    _follow(graph, source, "Cast", [source], dtype, "narrowed", to=int(dtype))


def _rounded(graph: ir.Graph, value: ir.Value) -> ir.Value:
    factor = _scalar(graph, value, "splitter", 2.0**16 + 1)
    nodes = [ir.node("Mul", [value, factor])]
    nodes.append(ir.node("Sub", [nodes[0].outputs[0], value]))
    result = _follow(graph, value, "Sub", [n.outputs[0] for n in nodes], _SINGLE, "rounded")
    for node, name in zip(nodes, ("split", "tail"), strict=True):
        node.outputs[0].name, node.outputs[0].dtype = f"{value.name}/{name}", _SINGLE
        node.outputs[0].shape = value.shape
    last = result.producer()
    assert last is not None
    graph.insert_before(last, nodes)
    for place in (0, 1):  # these two read the number itself
        nodes[place].replace_input_with(place, value)
    return result


def _scalar(graph: ir.Graph, value: ir.Value, name: str, number: float) -> ir.Value:
    name = f"{value.name}/{name}"
    tensor = ir.Tensor(np.array(number, np.float32), name=name)
    made = ir.Value(name=name, const_value=tensor, type=ir.TensorType(_SINGLE), shape=ir.Shape(()))
    graph.register_initializer(made)
    return made


def _follow(
    graph: ir.Graph,
    value: ir.Value,
    op_type: str,
    inputs: Sequence[ir.Value],
    dtype: ir.DataType,
    name: str,
    **attributes: int,
) -> ir.Value:
    """A new node of `inputs` whose output all readers of `value` get instead."""
    readers = list(value.uses())
    node = ir.node(op_type, list(inputs), attributes=attributes)
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{value.name}/{name}", dtype, value.shape
    for use in readers:
        use.node.replace_input_with(use.idx, output)
    for place, result in enumerate(graph.outputs):
        if result is value:
            graph.outputs[place] = output
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return output
