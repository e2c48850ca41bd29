"""Writing nodes: the thin layer over `onnx_ir.tape` that every derived graph is built with.

An `Emitter` names what it makes after a prefix, so that names are reproducible and tell where a
node comes from, and it hides the few places where an operator is spelled differently by opset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array

__all__ = ["Emitter"]

_AXES_AS_INPUT = {"ReduceSum": 13}  # opset from which axes are an input; 18 for all others


class Emitter:
    """Collects nodes and constants until they are added to a graph.

    Args:
        prefix: first part of all names made here.
        opset: version of the standard operators to write for.
        dtype: element type of `scalar`.
    """

    def __init__(self, prefix: str, *, opset: int, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        self.prefix = prefix
        self.opset = opset
        self.dtype = dtype
        self._tape = ir.tape.Tape()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """The single output of a new node, called `name` or after the prefix."""
        value = self._tape.op(op_type, inputs, attributes or None, domain=domain)
        value.name = name or self._next_name(op_type)
        return value

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """All outputs of a new node, called `outputs`."""
        values = self._tape.op_multi_out(
            op_type, inputs, attributes or None, num_outputs=len(outputs), domain=domain
        )
        for value, name in zip(values, outputs, strict=True):
            value.name = name
        return tuple(values)

    def _next_name(self, op_type: str) -> str:
        return f"{self.prefix}/{op_type.lower()}_{len(self._tape.nodes)}"

    def constant(self, array: Array) -> ir.Value:
        """A constant that holds `array`; equal arrays share one."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}/constant_{len(self._constants)}"
            self._constants[key] = self._tape.initializer(ir.Tensor(array, name=name))
        return self._constants[key]

    def scalar(self, number: float) -> ir.Value:
        """A constant of shape () and this emitter's dtype."""
        return self.constant(np.array(number, dtype=self.dtype.numpy()))

    def integers(self, *numbers: int) -> ir.Value:
        """A constant int64 vector: axes, shapes, sizes."""
        return self.constant(np.array(numbers, dtype=np.int64))

    def reduce(
        self, op_type: str, x: ir.Value, axes: Sequence[int], *, keepdims: bool = True
    ) -> ir.Value:
        """A reduction over `axes`, spelled for this opset."""
        if self.opset >= _AXES_AS_INPUT.get(op_type, 18):
            return self.op(op_type, x, self.integers(*axes), keepdims=int(keepdims))
        return self.op(op_type, x, axes=list(axes), keepdims=int(keepdims))

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What was written so far, in order."""
        return self._tape.nodes

    @property
    def initializers(self) -> Sequence[ir.Value]:
        """The constants made so far."""
        return self._tape.initializers

    def add_to(self, graph: ir.Graph, *, before: ir.Node | None = None) -> None:
        """Move everything into `graph`, at its end or in front of a node of it."""
        for value in self._tape.initializers:
            graph.register_initializer(value)
        if before is None:
            graph.extend(self._tape.nodes)
        else:
            graph.insert_before(before, self._tape.nodes)
