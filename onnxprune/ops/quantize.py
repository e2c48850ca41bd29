"""Quantized numbers: QuantizeLinear, DequantizeLinear, products and convolutions of integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Coupling, Fact, Inexact
from onnxprune.emit import Emitter
from onnxprune.ops.conv import convolution, kernel_macs
from onnxprune.ops.edit import Edit
from onnxprune.ops.matmul import contraction, contraction_macs
from onnxprune.ops.registry import (
    View,
    arange,
    couples,
    dequantizes,
    macs,
    mimics,
    resizes,
    traces,
    zero_points,
)
from onnxprune.ops.trace import Kind, Trace, TraceView

zero_points("MatMulInteger", slots={0: 2, 1: 3})
zero_points("QLinearMatMul", slots={0: 2, 3: 5})
zero_points("ConvInteger", slots={0: 2, 1: 3})
zero_points("QLinearConv", slots={0: 2, 3: 5})


@couples("QuantizeLinear", "DequantizeLinear")
def quantize(view: View) -> Iterator[Fact]:
    """Couple every axis one to one, and scales and zero points with the axis they belong to.

    Forward:  y[i] = round(x[i] / scale) + zero, or (x[i] - zero) * scale
    Couples:  (x, p)[i] <-> (y, p)[i];  per axis: scale <-> zero <-> (x, axis);  in blocks: they
              have all axes of x, and on `axis` one entry per block, where x keeps its size
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    for position in range(rank):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    axis = view.attribute("axis", 1)
    for slot in (1, 2):
        value = view.input(slot)
        sizes = () if value is None else view.shape(value)
        if len(sizes) == 1 and sizes[0] != 1 and rank:
            yield from view.equal(view.axis(value, 0), view.axis(x, axis))
        elif len(sizes) > 1:
            yield from _in_blocks(view, value, axis % rank)


def _in_blocks(view: View, value: ir.Value | None, axis: int) -> Iterator[Fact]:
    x = view.input(0)
    for position in range(len(view.shape(x))):
        if position == axis:
            yield from view.fixed(value, position)
            yield from view.fixed(x, position)
        else:
            yield from view.equal(view.axis(value, position), view.axis(x, position))


@couples("DynamicQuantizeLinear")
def dynamic_quantize(view: View) -> Iterator[Fact]:
    """Couple every axis one to one; the range, and with it all values, depends on all indices.

    Forward:  scale = (max(x, 0) - min(x, 0)) / 255;  y = round(x / scale) + zero
    Couples:  (x, p)[i] <-> (y, p)[i]
    """
    x, y = view.input(0), view.output()
    for position, size in enumerate(view.shape(x)):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
        if size is not None and size > 1:
            yield Inexact(view.axis(x, position), view.key, "the range of all values")


@couples("MatMulInteger")
def matmul_integer(view: View) -> Iterator[Fact]:
    """Couple as MatMul does, and zero points with rows of A or columns of B.

    Forward:  Y = (A - a_zero) (B - b_zero)
    Couples:  A.K <-> B.K;  A.M <-> Y.M <-> a_zero;  B.N <-> Y.N <-> b_zero
    """
    a, b, y = view.input(0), view.input(1), view.output()
    yield from contraction(view, a, b, y)
    yield from _of_rows(view, a, 2)
    yield from _of_columns(view, b, 3)


@couples("QLinearMatMul")
def qlinear_matmul(view: View) -> Iterator[Fact]:
    """Couple as MatMul does, and scales and zero points with rows of A, columns of B, rows of Y.

    Forward:  Y = round((A - a_zero) (B - b_zero) a_scale b_scale / y_scale) + y_zero
    Couples:  A.K <-> B.K;  A.M <-> Y.M <-> theirs;  B.N <-> Y.N <-> B's
    """
    a, b, y = view.input(0), view.input(3), view.output()
    yield from contraction(view, a, b, y)
    for slot in (1, 2):
        yield from _of_rows(view, a, slot)
        yield from _of_columns(view, b, slot + 3)
        yield from _of_rows(view, y, slot + 5)


def _of_rows(view: View, matrix: ir.Value | None, slot: int) -> Iterator[Fact]:
    """A scale or zero point per row: a vector, or (..., M, 1)."""
    value = view.input(slot)
    sizes = () if value is None else view.shape(value)
    rank = len(view.shape(matrix))
    if len(sizes) == 1 and sizes[0] != 1 and rank > 1:
        yield from view.equal(view.axis(value, 0), view.axis(matrix, -2))
    elif len(sizes) > 1:
        yield from _aligned(view, value, matrix)


def _of_columns(view: View, matrix: ir.Value | None, slot: int) -> Iterator[Fact]:
    """A scale or zero point per column: a vector, or (..., 1, N)."""
    value = view.input(slot)
    if value is not None:
        yield from _aligned(view, value, matrix)


def _aligned(view: View, value: ir.Value | None, matrix: ir.Value | None) -> Iterator[Fact]:
    """Axes of `value` other than 1 belong to those of `matrix`, from the last one."""
    sizes, rank = view.shape(value), len(view.shape(matrix))
    for position, size in enumerate(sizes):
        place = position - len(sizes)
        if size != 1 and -place <= rank:
            yield from view.equal(view.axis(value, position), view.axis(matrix, place))


@macs("MatMulInteger")
def matmul_integer_macs(view: View) -> int:
    """Output size x K; dynamic sizes counted as 1."""
    return contraction_macs(view, 0)


@macs("QLinearMatMul")
def qlinear_matmul_macs(view: View) -> int:
    """Output size x K; dynamic sizes counted as 1."""
    return contraction_macs(view, 0)


@couples("ConvInteger")
def conv_integer(view: View) -> Iterator[Fact]:
    """Couple as Conv does, and the filters' zero points with the filters.

    Forward:  y = conv(x - x_zero, w - w_zero)
    Couples:  x.C <-> w.1;  y.C <-> w.0 <-> w_zero;  products with groups as for Conv
    """
    yield from convolution(view, view.input(0), view.input(1))
    yield from _per_filter(view, 3)


@couples("QLinearConv")
def qlinear_conv(view: View) -> Iterator[Fact]:
    """Couple as Conv does, and the filters' scales, zero points and bias with the filters.

    Forward:  y = round(conv(x - x_zero, w - w_zero) x_scale w_scale / y_scale + bias) + y_zero
    Couples:  x.C <-> w.1;  y.C <-> w.0 <-> w_scale <-> w_zero <-> bias
    """
    yield from convolution(view, view.input(0), view.input(3))
    for slot in (4, 5, 8):
        yield from _per_filter(view, slot)


def _per_filter(view: View, slot: int) -> Iterator[Fact]:
    value = view.input(slot)
    if value is not None and view.shape(value) not in ((), (1,)):
        yield from view.equal(view.axis(value, 0), view.axis(view.output(), 1))


@macs("ConvInteger")
def conv_integer_macs(view: View) -> int:
    """As for Conv."""
    return kernel_macs(view, 1)


@macs("QLinearConv")
def qlinear_conv_macs(view: View) -> int:
    """As for Conv."""
    return kernel_macs(view, 3)


@resizes("ConvInteger", "QLinearConv")
def regroup(edit: Edit) -> None:
    """`group` follows from the channels that were kept, as for Conv."""
    view = edit.view
    w = view.input(1 if view.node.op_type == "ConvInteger" else 3)
    x = view.input(0)
    if view.attribute("group", 1) == 1 or x is None or w is None:
        return
    channels, per_group = edit.size_after(x, 1), edit.size_after(w, 1)
    if channels and per_group:
        view.node.attributes.add(ir.AttrInt64("group", channels // per_group))


@couples("MatMulNBits", domain="com.microsoft")
def matmul_nbits(view: View) -> Iterator[Fact]:
    """Couple columns with their packed weights; K is packed in blocks and keeps its size.

    Forward:  Y[..., n] = sum_k A[..., k] W[n, k] (+ bias[n]), W unpacked from B (N, blocks, bytes)
    Couples:  Y.N <-> B.0 <-> bias;  scales and zero points, of N times as many entries, with N
    """
    a, b, y = view.input(0), view.input(1), view.output()
    rank = len(view.shape(y))
    columns = view.axis(y, -1)
    for position in range(rank - 1):
        yield from view.equal(view.axis(a, position), view.axis(y, position))
    yield from view.fixed(a, -1)
    yield from view.equal(view.axis(b, 0), columns)
    yield from view.fixed(b, *range(1, len(view.shape(b))))
    for slot in (2, 3, 5):
        value = view.input(slot)
        if value is not None:
            yield from _first_of(view, Axis(value.name or "", 0), columns)
            yield from view.fixed(value, *range(1, len(view.shape(value))))
    if view.input(4) is not None:  # group indices, along K
        yield from view.fixed(view.input(4), 0)


def _first_of(view: View, axis: Axis, columns: Axis) -> Iterator[Fact]:
    """`axis` has as many entries per column, one column behind another."""
    size, count = view.size(axis), view.size(columns)
    if size is None or not count or size % count:
        yield from view.equal(axis, columns)
        return
    index = arange(size)
    yield Coupling(left=axis, right=columns, left_index=index, right_index=index // (size // count))


@resizes("MatMulNBits", domain="com.microsoft")
def fewer_columns(edit: Edit) -> None:
    """The attribute N follows the output."""
    y = edit.view.output()
    columns = edit.size_after(y, -1)
    if columns is not None:
        edit.view.node.attributes.add(ir.AttrInt64("N", columns))


@macs("MatMulNBits", domain="com.microsoft")
def matmul_nbits_macs(view: View) -> int:
    """Output size x K; dynamic sizes counted as 1."""
    return contraction_macs(view, 0)


@mimics("MatMulNBits", domain="com.microsoft")
def like_matmul(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of a product with K x N weights, which are not written out."""
    sizes = e.integers(*(node.attributes[name].as_int() for name in ("K", "N")))
    return [e.op("MatMul", node.inputs[0], e.op("ConstantOfShape", sizes))]


@traces("QuantizeLinear", "DequantizeLinear")
def quantized(view: View, around: TraceView) -> Trace | None:
    """Equal units stay equal where all share scale and zero point."""
    trace = around.inputs[0]
    given = [value for slot in (1, 2) if (value := view.input(slot)) is not None]
    shared = all(size == 1 for value in given for size in view.shape(value))
    return trace.then(Kind.EQUAL) if trace is not None and shared else None


# Per operator and slot of a weight: the slots of its scale and zero point, and their axis.
_SCALED: dict[str, dict[int, tuple[int | None, int, int]]] = {
    "ConvInteger": {1: (None, 3, 0)},
    "QLinearConv": {3: (4, 5, 0)},
    "MatMulInteger": {1: (None, 3, -1)},
    "QLinearMatMul": {3: (4, 5, -1)},
}


@dequantizes(*_SCALED)
def real_weights(view: View, slot: int) -> Callable[[], Array] | None:
    """(w - zero) * scale; in units of the scale where the operator does not know it."""
    found = _SCALED[view.node.op_type].get(slot)
    return None if found is None else scaled(view, slot, *found)


def scaled(
    view: View, slot: int, scale: int | None, zero: int | None, axis: int
) -> Callable[[], Array] | None:
    """What gives the real numbers behind the integers at `slot`; None where those are computed.

    Args:
        view: the node.
        slot: of the weight.
        scale: slot of its scale, a number or a vector along `axis`; 1 where absent or computed.
        zero: slot of its zero point likewise; 0 where absent or computed.
        axis: of the weight.
    """
    if not view.is_constant(slot):
        return None
    return partial(_scaled, view, slot, {np.subtract: zero, np.multiply: scale}, axis)


def _scaled(view: View, slot: int, places: Mapping[np.ufunc, int | None], axis: int) -> Array:
    weight = view.constant(slot)
    assert weight is not None
    shape = [1] * weight.ndim
    shape[axis] = -1
    real: Array = weight.astype(np.float64)
    for apply, place in places.items():
        array = None if place is None else view.constant(place)
        if array is not None and array.ndim <= 1:
            real = apply(real, array.astype(np.float64).reshape(shape))
        elif array is not None:
            real = apply(real, array.astype(np.float64))
    return real


@dequantizes("MatMulNBits", domain="com.microsoft")
def unpacked(view: View, slot: int) -> Callable[[], Array] | None:
    """(number - zero) * scale of every entry, (N, blocks, block size), from bytes of `bits` each.

    The lower bits of a byte come first; without zero points numbers count from 2^(bits - 1).
    """
    known = view.is_constant(1) and view.is_constant(2)
    wanted = slot == 1 and view.attribute("bits", 4) in (2, 4, 8)
    return partial(_unpacked, view) if known and wanted else None


def _unpacked(view: View) -> Array:
    packed, scales = view.constant(1), view.constant(2)
    assert packed is not None
    assert scales is not None
    bits, count = view.attribute("bits", 4), view.attribute("N")
    numbers = _unpack(packed, bits).astype(np.float64)
    scales = scales.reshape(count, -1, 1).astype(np.float64)
    zeros, middle = view.constant(3), np.full_like(scales, 2 ** (bits - 1))
    if zeros is not None and zeros.dtype == np.uint8:
        middle = _unpack(zeros.reshape(count, -1), bits)[:, : scales.shape[1], None]
    elif zeros is not None:
        middle = zeros.reshape(scales.shape)
    real: Array = (numbers - middle.astype(np.float64)) * scales
    return real


def _unpack(packed: Array, bits: int) -> Array:
    """Numbers of `bits` each along the last axis of bytes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return numbers.reshape(*packed.shape[:-1], -1)
