"""Which share of channels leaves a given share of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

_FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
)


def parameters(model: onnx.ModelProto) -> int:
    """Elements of all constants of rank >= 1 that can be weights."""
    constants = list(model.graph.initializer)
    constants += [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return sum(math.prod(t.dims) for t in constants if t.dims and t.data_type in _FLOATS)


def search(left: Callable[[float], float], target: float, attempts: int) -> None:
    """Call `left(ratio)`, which gives the share that remains, for ratios that come closer.

    The first guess is that parameters go with the square of the channels.
    """
    low, high = 0.0, 1.0
    ratio = 1 - math.sqrt(target)
    for _ in range(attempts):
        found = left(ratio)
        if abs(found - target) < 0.01:
            return
        low, high = (ratio, high) if found > target else (low, ratio)
        ratio = (low + high) / 2
