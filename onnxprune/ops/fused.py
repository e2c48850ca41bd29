"""What ONNX Runtime fuses: its operators that are standard ones with something attached.

FusedConv, FusedGemm and FusedMatMul are the plain operators with an activation behind, a residual
added or more transposes; BiasGelu, FastGelu and QuickGelu are activations with a bias in front.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Fact, Floats, Inexact
from onnxprune.emit import Emitter
from onnxprune.ops.conv import conv, conv_absorber, conv_macs, conv_shift
from onnxprune.ops.edit import Absorber, Edit, shifts
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.matmul import gemm, gemm_absorber, gemm_macs, gemm_shift, gemm_trace
from onnxprune.ops.registry import (
    Role,
    View,
    absorbs,
    couples,
    macs,
    mimics,
    parameters,
    traces,
)
from onnxprune.ops.trace import Kind, Trace, TraceView

_VENDOR = "com.microsoft"
_KINDS = {"Relu": Kind.HOMOGENEOUS, "Tanh": Kind.ODD, "Sigmoid": Kind.SIGMOID}
_STEEPEST = 1.13  # of a GELU, in whatever approximation; of x * sigmoid(c x) it is 1.1

parameters("FusedConv", slots={1: Role.WEIGHT, 2: Role.AFFINE}, domain=_VENDOR)
parameters("FusedGemm", slots={1: Role.WEIGHT, 2: Role.AFFINE}, domain=_VENDOR)
parameters("FusedMatMul", "TransposeMatMul", slots={0: Role.WEIGHT, 1: Role.WEIGHT}, domain=_VENDOR)
parameters(
    "EmbedLayerNormalization",
    slots={2: Role.TABLE, 3: Role.TABLE, 4: Role.TABLE, 5: Role.SCALE, 6: Role.AFFINE},
    domain=_VENDOR,
)
parameters("BiasGelu", "FastGelu", slots={1: Role.AFFINE}, domain=_VENDOR)


@couples("FusedConv", domain=_VENDOR)
def fused_conv(view: View) -> Iterator[Fact]:
    """Couple as Conv does, and what is added with the output.

    Forward:  y = activation(Conv(x, w, b) + z)
    Couples:  as Conv;  z one to one with y
    """
    yield from conv(view)
    if view.input(3) is not None:
        yield from broadcast(view, view.node.inputs[3], view.output())  # type: ignore[arg-type]


@couples("FusedGemm", domain=_VENDOR)
def fused_gemm(view: View) -> Iterator[Fact]:
    """Couple as Gemm does: y = activation(alpha * A' B' + beta * C)."""
    yield from gemm(view)


@couples("FusedMatMul", "TransposeMatMul", domain=_VENDOR)
def fused_matmul(view: View) -> Iterator[Fact]:
    """Couple the axes of a batched matrix product whose operands are transposed on the way.

    Forward:  Y = alpha * A' B', as MatMul; transA swaps the last two axes of A, transBatchA then
              moves the first of the remaining ones behind the others: (M, batch, K)
    Couples:  A.K <-> B.K;  A.M <-> Y.M;  B.N <-> Y.N;  batch axes broadcast
    """
    a, b, y = view.input(0), view.input(1), view.output()
    left, right = (_arranged(view, slot) for slot in (0, 1))
    rank = len(view.shape(y))
    yield from view.equal(view.axis(a, left[-1]), view.axis(b, right[-2 if len(right) > 1 else 0]))
    if len(left) > 1:
        yield from view.equal(view.axis(a, left[-2]), view.axis(y, -2 if len(right) > 1 else -1))
    if len(right) > 1:
        yield from view.equal(view.axis(b, right[-1]), view.axis(y, -1))
    tail = (len(left) > 1) + (len(right) > 1)
    for value, order in ((a, left), (b, right)):
        batch = order[:-2]
        for number, position in enumerate(batch):
            if view.shape(value)[position] != 1:
                target = rank - tail - len(batch) + number
                yield from view.equal(view.axis(value, position), view.axis(y, target))


def _arranged(view: View, slot: int) -> list[int]:
    """Positions of the operand's axes in the order (batch, rows, columns)."""
    order = list(range(len(view.shape(view.input(slot)))))
    side = "AB"[slot]
    if len(order) > 2 and view.attribute("transBatch" + side, 0):
        order = [*order[1:-1], 0, order[-1]]
    if len(order) > 1 and view.attribute("trans" + side, 0):
        order[-2:] = order[-1], order[-2]
    return order


@couples("BiasGelu", "FastGelu", "QuickGelu", "Gelu", domain=_VENDOR)
def bias_gelu(view: View) -> Iterator[Fact]:
    """Couple every axis one to one; y = f(x + bias), the bias on the last axes."""
    for slot in range(len(view.node.inputs)):
        value = view.input(slot)
        if value is not None:
            yield from broadcast(view, value, view.output())


@couples("EmbedLayerNormalization", domain=_VENDOR)
def embed_layer_normalization(view: View) -> Iterator[Fact]:
    """Couple the columns of embedding tables with the normalization of their sum.

    Forward:  s = words[ids] + positions[0 ..] + segments[segment_ids];
              y = scale * (s - mean(s)) / sqrt(var(s) + epsilon) + shift; s is put out too
    Couples:  the last axes of y, s, the tables, scale and shift; examples one to one
    Inexact:  along the last axis
    """
    y = view.output()
    yield Inexact(view.axis(y, 2), view.key, "EmbedLayerNormalization over this axis")
    for slot in range(len(view.node.inputs)):
        value = view.input(slot)
        if value is not None and 2 <= slot <= 6:
            yield from view.equal(view.axis(value, -1), view.axis(y, 2))
            yield from view.fixed(value, *range(len(view.shape(value)) - 1))
    for value in (*view.node.inputs[:2], *view.node.inputs[7:], *view.node.outputs[1:]):
        if value is not None and value.name:
            for position in range(len(view.shape(value))):
                yield from view.equal(view.axis(value, position), view.axis(y, position))


macs("FusedConv", domain=_VENDOR)(conv_macs)
macs("FusedGemm", domain=_VENDOR)(gemm_macs)


@macs("FusedMatMul", "TransposeMatMul", domain=_VENDOR)
def fused_matmul_macs(view: View) -> int:
    """Output size x K; dynamic sizes counted as 1."""
    inner = view.shape(view.input(0))[_arranged(view, 0)[-1]] or 1
    return inner * int(np.prod([size or 1 for size in view.shape(view.output())], dtype=np.int64))


@absorbs("FusedConv", domain=_VENDOR)
def fused_conv_absorber(view: View, slot: int) -> Absorber | None:
    """As Conv, where the bias is known: behind the activation it would be too late."""
    return conv_absorber(view, slot) if _has_known_bias(view) else None


@absorbs("FusedGemm", domain=_VENDOR)
def fused_gemm_absorber(view: View, slot: int) -> Absorber | None:
    """As Gemm, where the bias is known and has one number per column."""
    bias, columns = view.constant(2), view.shape(view.output())[-1]
    wide = bias is None or (bias.shape[-1:] == (columns,) and view.attribute("beta", 1.0))
    return gemm_absorber(view, slot) if wide and _has_known_bias(view) else None


def _has_known_bias(view: View) -> bool:
    return view.input(2) is None or view.is_constant(2)


@absorbs("FusedMatMul", "TransposeMatMul", domain=_VENDOR)
def fused_matmul_absorber(view: View, slot: int) -> Absorber | None:
    """A constant right-hand matrix absorbs the columns of the left-hand data."""
    if slot != 0 or not view.is_constant(1) or len(view.shape(view.input(1))) != 2:
        return None
    rows, columns = _arranged(view, 1)
    return Absorber(slot=1, in_axis=rows, out_axis=columns)


@shifts("FusedConv", domain=_VENDOR)
def fused_conv_shift(edit: Edit, vector: Floats) -> None:
    """Into the bias."""
    conv_shift(edit, vector)


@shifts("FusedGemm", domain=_VENDOR)
def fused_gemm_shift(edit: Edit, vector: Floats) -> None:
    """Into the bias."""
    gemm_shift(edit, vector)


@shifts("FusedMatMul", "TransposeMatMul", domain=_VENDOR)
def fused_matmul_shift(edit: Edit, vector: Floats) -> None:
    """An Add behind, after alpha."""
    rank = len(edit.view.shape(edit.view.output()))
    edit.add_behind(vector * edit.view.attribute("alpha", 1.0), axis=rank - 1)


@traces("FusedGemm", domain=_VENDOR)
def fused_gemm_trace(view: View, around: TraceView) -> Trace | None:
    """The trace of the product behind its activation."""
    trace = gemm_trace(view, around)
    kind = _KINDS.get(view.attribute("activation", ""), Kind.EQUAL)
    return None if trace is None else trace.then(kind)


@traces("QuickGelu", "Gelu", domain=_VENDOR)
def same_function(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001
    """The same function for every unit, whose slope is bounded."""
    trace = around.inputs[0]
    return None if trace is None else trace.then(Kind.SMOOTH, slope=_STEEPEST)


@traces("BiasGelu", "FastGelu", domain=_VENDOR)
def bias_gelu_trace(view: View, around: TraceView) -> Trace | None:
    """The unit and its bias, behind one function for all."""
    trace, bias = around.inputs[0], view.constant(1)
    if trace is None or view.input(1) is None:
        return None if trace is None else trace.then(Kind.SMOOTH, slope=_STEEPEST)
    index = around.index(view.axis(view.input(1), 0))
    if bias is None or index is None:
        return None
    return trace.plus(bias[index].astype(np.float64)).then(Kind.SMOOTH, slope=_STEEPEST)


@mimics("BiasGelu", "FastGelu", "QuickGelu", "Gelu", domain=_VENDOR)
def like_input(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of x."""
    return [e.op("Identity", node.inputs[0])]


@mimics("EmbedLayerNormalization", domain=_VENDOR)
def like_embedding(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The rows of the words; one number per example; the rows again."""
    ids, words = node.inputs[0], node.inputs[2]
    assert ids is not None
    rows = [e.op("Gather", words, ids) for _ in range(2)]
    return [rows[0], e.reduce("ReduceMax", ids, [1], keepdims=False), rows[1]]


@mimics("FusedGemm", domain=_VENDOR)
def like_gemm(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the plain product."""
    return [e.op("Gemm", *node.inputs[:3], **_taken(node, "transA", "transB"))]


@mimics("FusedConv", domain=_VENDOR)
def like_conv(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the plain convolution."""
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    return [e.op("Conv", *node.inputs[:3], **_taken(node, *names))]


@mimics("FusedMatMul", "TransposeMatMul", domain=_VENDOR)
def like_matmul(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the product of the operands in their usual order, whatever their ranks."""
    operands = []
    for side, value in zip("AB", node.inputs[:2], strict=True):
        flags = _taken(node, "trans" + side, "transBatch" + side)
        if any(flags.values()):
            first = "a...b" if flags.get("transBatch" + side) else "...ab"
            last = "...ba" if flags.get("trans" + side) else "...ab"
            value = e.op("Einsum", value, equation=f"{first}->{last}")
        operands.append(value)
    return [e.op("MatMul", *operands)]


def _taken(node: ir.Node, *names: str) -> dict[str, Any]:
    """The attributes of `node` that have one of these names."""
    return {name: node.attributes[name].value for name in names if name in node.attributes}
