"""Elementwise arithmetic with broadcasting: Add, Mul, Where, comparisons and their like."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Fact, Floats, Frozen, Reason
from onnxprune.ops.registry import Role, View, couples, parameters, traces
from onnxprune.ops.trace import Kind, Trace, TraceView, combined

_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Mod", "BitShift")
_LOGIC = (
    "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Or", "Xor",
)  # fmt: skip
_VARIADIC = ("Max", "Min", "Sum", "Mean", "SwiGLU")

parameters("Add", "Sub", "Mul", slots={0: Role.AFFINE, 1: Role.AFFINE})
parameters("PRelu", slots={1: Role.AFFINE})


def broadcast(view: View, value: ir.Value, output: ir.Value) -> Iterator[Fact]:
    """The axes of `value` lie on the last axes of `output`; size 1 repeats."""
    sizes, target = view.shape(value), view.shape(output)
    offset = len(target) - len(sizes)
    for position, size in enumerate(sizes):
        if size != 1:
            yield from view.equal(view.axis(value, position), view.axis(output, offset + position))


@couples(*_BINARY, *_LOGIC, *_VARIADIC, "Where")
def elementwise(view: View) -> Iterator[Fact]:
    """Couple aligned axes one to one.

    Forward:  y[..., i, ...] = f(a[..., i, ...], b[..., i, ...]), numpy broadcasting
    Couples:  (a, p)[i] <-> (y, p')[i], aligned from the last axis; size-1 axes repeat and stay
    """
    if view.opset < 7 and _broadcasts_otherwise(view):
        for value in (*view.node.inputs, *view.node.outputs):
            if value is not None and value.name:
                yield from view.fixed(value, *range(len(view.shape(value))), reason=Reason.NO_RULE)
        return
    output = view.output()
    for slot in range(len(view.node.inputs)):
        value = view.input(slot)
        if value is not None:
            yield from broadcast(view, value, output)
    yield from _repeated(view, output)


def _broadcasts_otherwise(view: View) -> bool:
    """Up to opset 6 an attribute says where the second input lies; slopes belong to channels."""
    return bool(view.attribute("broadcast", 0)) or view.node.op_type == "PRelu"


def _repeated(view: View, output: ir.Value) -> Iterator[Fact]:
    """An output axis that every input repeats has no index to follow."""
    rank = len(view.shape(output))
    for position in range(rank):
        size = view.shape(output)[position]
        if size is None or size == 1:
            continue
        if not any(
            (view.shape(value) or (1,))[position - rank] == size
            for value in view.node.inputs
            if value is not None and rank - position <= len(view.shape(value))
        ):
            yield Frozen(axis=view.axis(output, position), reason=Reason.POSITIONS, node=view.key)


@traces("Add", "Sum")
def add_trace(view: View, around: TraceView) -> Trace | None:
    """A sum of units that have traces, and constants of each unit."""
    data = [trace for trace in around.inputs if trace is not None]
    if not data:
        return None
    result: Trace | None = combined(data)
    for slot, trace in enumerate(around.inputs):
        if trace is None and result is not None:
            columns = _per_unit(view, around, slot)
            result = None if columns is None else result.plus(columns)
    return result


@traces("Sub")
def sub_trace(view: View, around: TraceView) -> Trace | None:
    """A unit minus a constant of it."""
    columns = _per_unit(view, around, 1)
    first = around.inputs[0]
    return None if first is None or columns is None else first.plus(-columns)


@traces("Mul")
def mul_trace(view: View, around: TraceView) -> Trace | None:
    """A unit times a constant of it, or times another value of it (x * sigmoid(x))."""
    first, second = around.inputs[:2]
    if first is not None and second is not None:
        return combined([first, second]).then(Kind.EQUAL)
    for slot in (0, 1):
        trace = around.inputs[slot]
        if trace is not None and around.inputs[1 - slot] is None:
            factor = _per_unit(view, around, 1 - slot)
            return None if factor is None else trace.times(factor)
    return None


@traces("Div")
def div_trace(view: View, around: TraceView) -> Trace | None:
    """A unit over a constant of it."""
    divisor = _per_unit(view, around, 1)
    first = around.inputs[0]
    if first is None or divisor is None or not divisor.all():
        return None
    return first.times(1.0 / divisor)


@traces("PRelu")
def prelu_trace(view: View, around: TraceView) -> Trace | None:
    """Equal slopes are part of what makes two units equal."""
    slope = _per_unit(view, around, 1)
    first = around.inputs[0]
    if first is None or slope is None:
        return None
    same = bool((slope == slope[0]).all() and (np.abs(slope) <= 1).all())
    if same and first.kind <= Kind.HOMOGENEOUS:
        return first.then(Kind.HOMOGENEOUS)
    return Trace(
        rows=np.concatenate([first.rows, slope], axis=1), kind=Kind.EQUAL, inputs=first.inputs
    )


def _per_unit(view: View, around: TraceView, slot: int) -> Floats | None:
    """The constant at `slot` as (U, k): per unit, or one column when all units share it.

    None when it is computed, or when it varies along an axis that is not the units'.
    """
    array = view.constant(slot)
    value = view.input(slot)
    if array is None or value is None:
        return None
    if array.size == 1:
        count = _units(view, around)
        return None if count is None else np.full((count, 1), array.reshape(-1)[0], np.float64)
    wide = [position for position, size in enumerate(array.shape) if size != 1]
    index = around.index(Axis(value.name or "", wide[0])) if len(wide) == 1 else None
    return None if index is None else array.reshape(-1)[index].astype(np.float64)


def _units(view: View, around: TraceView) -> int | None:
    output = view.output()
    for position in range(len(view.shape(output))):
        index = around.index(view.axis(output, position))
        if index is not None:
            return len(index)
    return None
