"""Reductions of a value over all axes but one, as further outputs of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis
from onnxprune.model import opset

__all__ = ["Reductions"]

_OPERATORS = {
    "total": "ReduceSum",
    "square": "ReduceSumSquare",
    "absolute": "ReduceL1",
    "active": "ReduceSum",
    "low": "ReduceMin",
    "high": "ReduceMax",
    "gate": "ReduceSum",
    "saliency": "ReduceL1",
    "saliency_square": "ReduceSumSquare",
}
_ALONE = {  # where nothing is reduced; else Identity
    "square": ("Mul", 2),
    "saliency_square": ("Mul", 2),
    "absolute": ("Abs", 1),
    "saliency": ("Abs", 1),
}


class Reductions:
    """Appends reductions to one graph, and makes their results its outputs."""

    def __init__(self, model: ir.Model) -> None:
        self.graph, self.opset = model.graph, opset(model)
        self._published = {value.name for value in model.graph.outputs}
        self._indicators: dict[str, ir.Value] = {}

    def append(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: object
    ) -> ir.Value:
        """The output, called `name`, of a new node."""
        node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
        node.outputs[0].name = name
        self.graph.append(node)
        return node.outputs[0]

    def _constant(self, name: str, array: Array) -> ir.Value:
        if name not in self.graph.initializers:
            value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def _publish(self, value: ir.Value, dtype: ir.DataType, shape: list[int | None]) -> str:
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(value)
        self._published.add(value.name)
        return value.name or ""

    def count(self, value: ir.Value) -> str:
        """Output with the number of elements of `value`."""
        name = f"{value.name}/count"
        if name not in self._published:
            size = self.append("Size", [value], name)
            self._publish(size, ir.DataType.INT64, [])
        return name

    def reduce(self, value: ir.Value, axis: Axis, rank: int, field: str) -> str:
        """Output with one number per index of `axis`; of "pairs", one per two of them.

        Of an axis with `by`, a matrix with a row per block.
        """
        kept = [position for position in (axis.by, axis.position) if position >= 0]
        if field == "pairs":
            return self._pairs(value, axis, kept, rank)
        axes = [position for position in range(rank) if position not in kept]
        source = self._indicator(value) if field == "active" else value
        name = f"{axis}/{field}"
        op_type = _OPERATORS[field]
        if not axes:
            alone, operands = _ALONE.get(field, ("Identity", 1))
            reduced = self.append(alone, [source] * operands, name)
        elif self.opset >= (13 if op_type == "ReduceSum" else 18):
            wanted = self._constant(f"onnxprune/axes/{axes}", np.array(axes, np.int64))
            reduced = self.append(op_type, [source, wanted], name, keepdims=0)
        else:
            reduced = self.append(op_type, [source], name, axes=axes, keepdims=0)
        if kept != sorted(kept):
            reduced = self.append("Transpose", [reduced], f"{name}/by_block", perm=[1, 0])
        return self._publish(reduced, value.dtype or ir.DataType.FLOAT, [None] * len(kept))

    def _pairs(self, value: ir.Value, axis: Axis, kept: Sequence[int], rank: int) -> str:
        """Output (C, C) with the sums of a_i a_j over all other axes."""
        order = [*kept, *(n for n in range(rank) if n not in kept)]
        first = self.append("Transpose", [value], f"{axis}/first", perm=order)
        rows = self.append("Flatten", [first], f"{axis}/rows", axis=len(kept))
        columns = self.append("Transpose", [rows], f"{axis}/columns", perm=[1, 0])
        pairs = self.append("MatMul", [rows, columns], f"{axis}/pairs")
        return self._publish(pairs, value.dtype or ir.DataType.FLOAT, [None, None])

    def _indicator(self, value: ir.Value) -> ir.Value:
        """1 where `value` is not zero, else 0."""
        name = value.name or ""
        if name not in self._indicators:
            dtype = value.dtype or ir.DataType.FLOAT
            # Equal takes floats since opset 11 only, Cast to bool has always meant "not zero".
            active = self.append("Cast", [value], f"{name}/is_active", to=int(ir.DataType.BOOL))
            self._indicators[name] = self.append("Cast", [active], f"{name}/active", to=int(dtype))
        return self._indicators[name]
