"""Standard operators on quantized numbers, as ONNX Runtime writes them (com.microsoft).

Its quantizer turns a float model into these where no QuantizeLinear and DequantizeLinear shall
remain: the plain operator, with a scale and a zero point beside every input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxprune.base import Array, Coupling, Fact, Inexact, Reason
from onnxprune.emit import Emitter
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.matmul import contraction, contraction_macs
from onnxprune.ops.normalization import together
from onnxprune.ops.quantize import quantize, scaled
from onnxprune.ops.registry import View, arange, couples, dequantizes, macs, mimics, zero_points

_VENDOR = "com.microsoft"

zero_points("QGemm", slots={0: 2, 3: 5}, domain=_VENDOR)
zero_points("MatMulIntegerToFloat", slots={0: 4, 1: 5}, domain=_VENDOR)

_DATA: Mapping[str, tuple[int, ...]] = {
    "QLinearAdd": (0, 3),
    "QLinearMul": (0, 3),
    "QLinearLeakyRelu": (0,),
    "QLinearSigmoid": (0,),
    "QLinearWhere": (0, 1, 4),
}


@couples("QuantizeLinear", "DequantizeLinear", domain=_VENDOR)
def quantize_linear(view: View) -> Iterator[Fact]:
    """Couple as the standard operator does, for more types of integers."""
    yield from quantize(view)


@mimics("QuantizeLinear", "DequantizeLinear", domain=_VENDOR)
def like_cast(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of x, in the type of the zero point, or real."""
    dtype = ir.DataType.FLOAT
    if node.op_type == "QuantizeLinear":
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        dtype = ir.DataType.UINT8 if zero is None or zero.dtype is None else zero.dtype
    return [e.op("Cast", node.inputs[0], to=int(dtype))]


@couples(*_DATA, domain=_VENDOR)
def elementwise(view: View) -> Iterator[Fact]:
    """Couple aligned axes one to one; scales and zero points are single numbers.

    Forward:  y = quantize(f(dequantize(a), dequantize(b)))
    Couples:  (a, p)[i] <-> (y, p')[i], aligned from the last axis
    """
    for slot in _DATA[view.node.op_type]:
        value = view.input(slot)
        if value is not None:
            yield from broadcast(view, value, view.output())


@mimics(*_DATA, domain=_VENDOR)
def like_sum(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the inputs together."""
    inputs = [node.inputs[slot] for slot in _DATA[node.op_type]]
    return [e.op("Sum", *inputs)]


@couples("QLinearSoftmax", domain=_VENDOR)
def softmax(view: View) -> Iterator[Fact]:
    """Couple every axis one to one.

    Forward:  y = quantize(softmax(dequantize(x)) over `axis`), before opset 13 from `axis` on
    Couples:  x[p] <-> y[p]
    Inexact:  along the axes it normalizes over
    """
    x, y = view.input(0), view.output()
    rank, axis = len(view.shape(x)), view.attribute("axis", -1)
    over = {axis % rank} if view.attribute("opset", 13) >= 13 else set(range(axis % rank, rank))
    for position in range(rank):
        here, there = view.axis(x, position), view.axis(y, position)
        yield from together(view, here, there) if position in over else view.equal(here, there)


@mimics("QLinearSoftmax", domain=_VENDOR)
def like_input(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of x."""
    return [e.op("Identity", node.inputs[0])]


@couples("QLinearConcat", domain=_VENDOR)
def concat(view: View) -> Iterator[Fact]:
    """Couple the concatenated axis of each input to its own window of the output.

    Forward:  as Concat of the inputs 2, 5, 8 ..., each in front of its scale and zero point
    Couples:  (x_k, axis)[i] <-> (y, axis)[o_k + i]; every other axis one to one
    """
    y = view.output()
    rank = len(view.shape(y))
    axis, offset = view.attribute("axis") % rank, 0
    for slot in range(2, len(view.node.inputs), 3):
        x = view.input(slot)
        size = view.shape(x)[axis]
        for position in set(range(rank)) - {axis}:
            yield from view.equal(view.axis(x, position), view.axis(y, position))
        if size is None or view.shape(y)[axis] is None:
            yield from view.fixed(x, axis, reason=Reason.DYNAMIC)
            return
        index = arange(size)
        yield Coupling(
            left=view.axis(x, axis),
            right=view.axis(y, axis),
            left_index=index,
            right_index=index + offset,
        )
        offset += size


@mimics("QLinearConcat", domain=_VENDOR)
def like_concat(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the plain operator."""
    return [e.op("Concat", *node.inputs[2::3], axis=node.attributes["axis"].value)]


@couples("QLinearAveragePool", "QLinearGlobalAveragePool", domain=_VENDOR)
def pool(view: View) -> Iterator[Fact]:
    """Couple batch and channels one to one; positions keep their sizes.

    Forward:  y[n, c, o] = mean of x[n, c, window(o)]; with `channels_last` c is the last axis
    Couples:  x.N <-> y.N;  x.C <-> y.C
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    channel = rank - 1 if view.attribute("channels_last", 0) else 1
    for position in range(rank):
        if position in (0, channel):
            yield from view.equal(view.axis(x, position), view.axis(y, position))
        else:
            yield from view.fixed(x, position)
            yield from view.fixed(y, position)


@mimics("QLinearAveragePool", "QLinearGlobalAveragePool", domain=_VENDOR)
def like_pool(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the plain operator; none where channels come last."""
    last = node.attributes.get("channels_last")
    if last is not None and last.value:
        return [None]
    names = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
    given: dict[str, Any] = {n: node.attributes[n].value for n in names if n in node.attributes}
    return [e.op(node.op_type.removeprefix("QLinear"), node.inputs[0], **given)]


@couples("QGemm", domain=_VENDOR)
def gemm(view: View) -> Iterator[Fact]:
    """Couple rows and columns, and what belongs to the columns of B.

    Forward:  Y = quantize(alpha * (A - a_zero)' (B - b_zero)' a_scale b_scale + C)
    Couples:  A.K <-> B.K;  A.M <-> Y.M;  B.N <-> Y.N <-> its scales and zero points <-> C
    """
    a, b, y = view.input(0), view.input(3), view.output()
    trans_a, trans_b = view.attribute("transA", 0), view.attribute("transB", 0)
    yield from view.equal(view.axis(a, 0 if trans_a else 1), view.axis(b, 1 if trans_b else 0))
    yield from view.equal(view.axis(a, 1 if trans_a else 0), view.axis(y, 0))
    yield from view.equal(view.axis(b, 0 if trans_b else 1), view.axis(y, 1))
    for slot in (4, 5, 6):
        value = view.input(slot)
        if value is not None:
            yield from broadcast(view, value, y)


@mimics("QGemm", domain=_VENDOR)
def like_gemm(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the plain operator."""
    names = [n for n in ("transA", "transB") if n in node.attributes]
    given: dict[str, Any] = {name: node.attributes[name].value for name in names}
    product = e.op("Gemm", node.inputs[0], node.inputs[3], **given)
    real = len(node.inputs) < 8 or node.inputs[7] is None
    return [e.op("Cast", product, to=int(ir.DataType.FLOAT)) if real else product]


@couples("MatMulIntegerToFloat", domain=_VENDOR)
def matmul_to_float(view: View) -> Iterator[Fact]:
    """Couple as MatMul does, and what belongs to the columns of B.

    Forward:  Y = (A - a_zero) (B - b_zero) a_scale b_scale + bias
    Couples:  A.K <-> B.K;  A.M <-> Y.M;  B.N <-> Y.N <-> b_scale <-> b_zero <-> bias
    """
    yield from contraction(view, view.input(0), view.input(1), view.output())
    yield from _of_columns(view, (2, 3, 4, 5, 6))


def _of_columns(view: View, slots: Sequence[int]) -> Iterator[Fact]:
    for slot in slots:
        value = view.input(slot)
        if value is not None:
            yield from broadcast(view, value, view.output())


@couples("DynamicQuantizeMatMul", domain=_VENDOR)
def dynamic_matmul(view: View) -> Iterator[Fact]:
    """Couple as MatMul does, and what belongs to the columns of B.

    Forward:  Y = MatMulIntegerToFloat of A, quantized to its own range
    Couples:  A.K <-> B.K;  A.M <-> Y.M;  B.N <-> Y.N <-> b_scale <-> b_zero <-> bias
    Inexact:  along all of A, which its range depends on
    """
    a = view.input(0)
    yield from contraction(view, a, view.input(1), view.output())
    yield from _of_columns(view, (2, 3, 4))
    for position, size in enumerate(view.shape(a)):
        if size is not None and size > 1:
            yield Inexact(view.axis(a, position), view.key, "the range of all values")


@mimics("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=_VENDOR)
def like_matmul(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the plain operator, in real numbers."""
    product = e.op("MatMul", *node.inputs[:2])
    return [e.op("Cast", product, to=int(ir.DataType.FLOAT))]


@macs("DynamicQuantizeMatMul", "MatMulIntegerToFloat", domain=_VENDOR)
def product_macs(view: View) -> int:
    """Output size x K; dynamic sizes counted as 1."""
    return contraction_macs(view, 0)


@macs("QGemm", domain=_VENDOR)
def gemm_macs(view: View) -> int:
    """M x K x N; dynamic sizes counted as 1."""
    rows, columns = (size or 1 for size in view.shape(view.output()))
    inner = view.shape(view.input(0))[0 if view.attribute("transA", 0) else 1] or 1
    return rows * columns * inner


_SCALED = {  # per operator and slot of a weight: its scale and zero point
    "DynamicQuantizeMatMul": {1: (2, 3)},
    "MatMulIntegerToFloat": {1: (3, 5)},
    "QGemm": {3: (4, 5)},
}


@dequantizes(*_SCALED, domain=_VENDOR)
def real_weights(view: View, slot: int) -> Callable[[], Array] | None:
    """(w - zero) * scale, per column where these are vectors."""
    found = _SCALED[view.node.op_type].get(slot)
    axis = 0 if view.attribute("transB", 0) else -1
    return None if found is None else scaled(view, slot, *found, axis)
