"""Matrix products: Gemm and MatMul."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Fact, Floats
from onnxprune.ops.connect import Connections
from onnxprune.ops.edit import Absorber, Edit, shifts
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.registry import (
    Role,
    Sizes,
    View,
    absorbs,
    connects,
    couples,
    macs,
    parameters,
    traces,
)
from onnxprune.ops.trace import Kind, Trace, TraceView

parameters("Gemm", slots={0: Role.WEIGHT, 1: Role.WEIGHT, 2: Role.AFFINE})
parameters("MatMul", slots={0: Role.WEIGHT, 1: Role.WEIGHT})


@couples("Gemm")
def gemm(view: View) -> Iterator[Fact]:
    """Couple rows and columns of a matrix product with bias.

    Forward:  Y = alpha * A' B' + beta * C,  A' (M, K), B' (K, N), ' transposed where asked
    Couples:  A.K <-> B.K;  A.M <-> Y.M;  B.N <-> Y.N;  C broadcasts to Y
    """
    a, b, c, y = view.input(0), view.input(1), view.input(2), view.output()
    trans_a, trans_b = view.attribute("transA", 0), view.attribute("transB", 0)
    yield from view.equal(view.axis(a, 0 if trans_a else 1), view.axis(b, 1 if trans_b else 0))
    yield from view.equal(view.axis(a, 1 if trans_a else 0), view.axis(y, 0))
    yield from view.equal(view.axis(b, 0 if trans_b else 1), view.axis(y, 1))
    if c is not None:
        yield from broadcast(view, c, y)


@couples("MatMul")
def matmul(view: View) -> Iterator[Fact]:
    """Couple the axes of a batched matrix product.

    Forward:  Y[..., m, n] = sum_k A[..., m, k] B[..., k, n]; a vector has no M or no N
    Couples:  A.K <-> B.K;  A.M <-> Y.M;  B.N <-> Y.N;  batch axes broadcast
    """
    yield from contraction(view, view.input(0), view.input(1), view.output())


def contraction(view: View, a: ir.Value | None, b: ir.Value | None, y: ir.Value) -> Iterator[Fact]:
    """What holds of every batched product of `a` and `b`."""
    left, right, rank = view.shape(a), view.shape(b), len(view.shape(y))
    yield from view.equal(view.axis(a, -1), view.axis(b, -2 if len(right) > 1 else 0))
    if len(left) > 1:
        yield from view.equal(view.axis(a, -2), view.axis(y, -2 if len(right) > 1 else -1))
    if len(right) > 1:
        yield from view.equal(view.axis(b, -1), view.axis(y, -1))
    tail = (len(left) > 1) + (len(right) > 1)
    for value in (a, b):
        batch = len(view.shape(value)) - 2
        for position in range(max(batch, 0)):
            target = rank - tail - batch + position
            if view.shape(value)[position] != 1:
                yield from view.equal(view.axis(value, position), view.axis(y, target))


@macs("Gemm")
def gemm_macs(view: View) -> int:
    """M x K x N; dynamic sizes counted as 1."""
    inner = view.shape(view.input(0))[0 if view.attribute("transA", 0) else 1]
    return _product(view.shape(view.output())) * (inner or 1)


@macs("MatMul")
def matmul_macs(view: View) -> int:
    """Output size x K; dynamic sizes counted as 1."""
    return contraction_macs(view, 0)


def contraction_macs(view: View, slot: int) -> int:
    """Output size x K, the last size of the left factor at input `slot`."""
    return _product(view.shape(view.output())) * (view.shape(view.input(slot))[-1] or 1)


def _product(sizes: Sizes) -> int:
    return int(np.prod([size or 1 for size in sizes], dtype=np.int64))


@absorbs("Gemm")
def gemm_absorber(view: View, slot: int) -> Absorber | None:
    """Inputs meet B's rows (columns when transB)."""
    b = view.input(1)
    if slot != 0 or view.attribute("transA", 0) or not view.is_constant(1) or b is None:
        return None
    trans = view.attribute("transB", 0)
    return Absorber(slot=1, in_axis=int(trans), out_axis=int(not trans))


@absorbs("MatMul")
def matmul_absorber(view: View, slot: int) -> Absorber | None:
    """A constant right-hand matrix absorbs the columns of the left-hand data."""
    b = view.input(1)
    if slot != 0 or b is None or not view.is_constant(1) or len(view.shape(b)) != 2:
        return None
    return Absorber(slot=1, in_axis=0, out_axis=1)


@shifts("Gemm")
def gemm_shift(edit: Edit, vector: Floats) -> None:
    """Add `vector` (N,), what alpha A' B' is to grow by before alpha, to the bias C."""
    view = edit.view
    alpha, beta = view.attribute("alpha", 1.0), view.attribute("beta", 1.0)
    bias = view.constant(2)
    shift = vector * alpha
    wide = bias is not None and bias.shape[-1:] == vector.shape
    if view.input(2) is not None and not (wide and beta):
        edit.add_behind(shift, axis=1)
        return
    if bias is None:
        view.node.attributes.add(ir.AttrFloat32("beta", 1.0))
        edit.write(2, shift, role="bias", along={0: Axis(view.output().name or "", 1)})
        return
    edit.write(2, (bias + shift / beta).astype(bias.dtype), role="bias")


@shifts("MatMul")
def matmul_shift(edit: Edit, vector: Floats) -> None:
    """Add `vector` (N,) to the constant of the one Add behind, or put an Add there."""
    value = edit.view.node.outputs[0]
    found = _added_behind(edit.view)
    if found is not None:
        follower, slot = found
        bias = follower.constant(slot)
        if bias is not None and bias.shape[-1:] == vector.shape and bias.ndim <= 2:
            behind = replace(edit, view=follower)
            behind.write(slot, (bias + vector).astype(bias.dtype), role="bias")
            return
    rank = len(edit.view.shape(value))
    edit.add_behind(vector, axis=rank - 1)


def _added_behind(view: View) -> tuple[View, int] | None:
    """The one Add that reads the product, and the slot of what it adds."""
    value = view.output()
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "Add":
        return None
    return replace(view, node=uses[0].node), 1 - uses[0].idx


@connects("Gemm")
def gemm_connections(view: View) -> Connections:
    """A connection is an entry of B'; the bias is C."""
    trans_a, trans_b = view.attribute("transA", 0), view.attribute("transB", 0)
    return Connections(
        data=view.axis(view.input(0), 0 if trans_a else 1),
        out=view.axis(view.output(), 1),
        slot=1,
        table=lambda weight: (weight.T if trans_b else weight)[None, :, :, None],
        bias=None if view.input(2) is None else (view.node, 2),
        scale=view.attribute("alpha", 1.0),
        bias_scale=view.attribute("beta", 1.0),
    )


@connects("MatMul")
def matmul_connections(view: View) -> Connections | None:
    """A connection is an entry of a right-hand matrix; the bias is added behind."""
    if len(view.shape(view.input(1))) != 2:
        return None
    found = _added_behind(view)
    return Connections(
        data=view.axis(view.input(0), -1),
        out=view.axis(view.output(), -1),
        slot=1,
        table=lambda weight: weight[None, :, :, None],
        bias=(found[0].node, found[1])
        if found is not None and found[0].is_constant(found[1])
        else None,
    )


@traces("Gemm")
def gemm_trace(view: View, around: TraceView) -> Trace | None:
    """A unit is its column of B' and its entry of C, times alpha and beta."""
    trans = view.attribute("transB", 0)
    trace = _columns(view, around, view.axis(view.input(1), 0 if trans else 1), int(not trans))
    if trace is None:
        return None
    trace = Trace(
        rows=trace.rows * view.attribute("alpha", 1.0), kind=trace.kind, inputs=trace.inputs
    )
    if view.input(2) is None:
        return trace
    bias, index = view.constant(2), around.index(view.axis(view.output(), 1))
    if bias is not None and bias.ndim == 2 and bias.shape[0] > 1:
        return None  # differs by row, which no unit knows
    if bias is None or index is None or bias.size == 1 or bias.shape[-1] == 1:
        return trace if bias is not None and bias.size == 1 and not bias.any() else None
    return trace.plus(bias.reshape(-1, bias.shape[-1])[0][index] * view.attribute("beta", 1.0))


@traces("MatMul")
def matmul_trace(view: View, around: TraceView) -> Trace | None:
    """A unit is its column of a constant right-hand matrix."""
    if len(view.shape(view.input(1))) != 2:
        return None
    return _columns(view, around, view.axis(view.input(1), 1), 1)


def _columns(view: View, around: TraceView, axis: Axis, position: int) -> Trace | None:
    weight, index = view.constant(1), around.index(axis)
    if weight is None or index is None or around.inputs[0] is not None:
        return None
    rows = np.moveaxis(weight, position, 0)[index].reshape(len(index), -1).astype(np.float64)
    inner = view.axis(view.input(0), 0 if view.attribute("transA", 0) else -1)
    return Trace(rows=rows, kind=Kind.LINEAR, inputs=(inner,))
