"""Convolutions: Conv and ConvTranspose in 1, 2 and 3 dimensions, grouped and depthwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Balanced, Choice, Coupling, Fact, Floats
from onnxprune.emit import Emitter
from onnxprune.model import is_constant
from onnxprune.ops.connect import Connections
from onnxprune.ops.edit import Absorber, Edit, shifts
from onnxprune.ops.registry import (
    Role,
    View,
    absorbs,
    arange,
    connects,
    couples,
    macs,
    parameters,
    resizes,
    traces,
)
from onnxprune.ops.trace import Kind, Trace, TraceView

parameters("DeformConv", slots={1: Role.WEIGHT, 3: Role.AFFINE})
parameters("Conv", "ConvTranspose", "CausalConvWithState", slots={1: Role.WEIGHT, 2: Role.AFFINE})


@couples("Conv")
def conv(view: View) -> Iterator[Fact]:
    """Couple channels with the filters that make and read them.

    Forward:  y[n, o, ...] = b[o] + sum_i w[o, i, ...] * x[n, g(o) + i, ...]
    Couples:  x.C <-> w.1;  y.C <-> w.0 <-> b;  with groups, x.C = (group, input per group) and
              y.C = w.0 = (group, output per group) are products: groups go, or the same channels
              of all groups, or equally many of every group.
    """
    bias = view.input(2)
    yield from convolution(view, view.input(0), view.input(1))
    if bias is not None:
        yield from view.equal(view.axis(bias, 0), view.axis(view.output(), 1))


def convolution(view: View, x: ir.Value | None, w: ir.Value | None) -> Iterator[Fact]:
    """What holds of every convolution of `x` with filters `w`."""
    out, inner = view.axis(view.output(), 1), view.axis(w, 1)
    group = view.attribute("group", 1)
    if group == 1:
        yield from view.equal(view.axis(x, 1), inner)
        yield from view.equal(out, view.axis(w, 0))
    else:
        outputs = (view.size(view.axis(w, 0)) or group) // group
        choice = Choice(
            node=view.key,
            sizes=(group, view.size(inner) or 1, outputs),
            axes=(
                (view.axis(x, 1), (0, 1)),
                (inner, (1,)),
                (view.axis(w, 0), (0, 2)),
                (out, (0, 2)),
            ),
        )
        yield _grouped(view, choice, (view.axis(x, 1), w), (view.axis(w, 0), out))
    yield from _rest(view, x, w)


def _grouped(
    view: View, choice: Choice, ragged: tuple[Axis, ir.Value | None], whole: tuple[Axis, Axis]
) -> Fact:
    """Groups need equally many channels on either side, not the same ones of each.

    Args:
        view: the convolution.
        choice: what holds when whole groups or the same channels of all groups go.
        ragged: the axis of one side's data, and the filters, whose axis 1 holds the same channels
            group by group: the groups are blocks of axis 0.
        whole: the axes of the other side, equal to each other.
    """
    group, inner, outputs = choice.sizes
    data, w = ragged
    if inner == 1 or outputs == 1 or view.size(data) != group * inner or not _is_own(w):
        return choice
    by = replace(view.axis(w, 1), by=0)
    every = arange(group * inner)
    couplings = (
        Coupling(left=data, right=by, left_index=every, right_index=every),
        *view.equal(*whole),
    )
    blocks = ((by, group), (data, group), *((axis, group) for axis in whole))
    return Balanced(blocks=blocks, couplings=couplings, stripes=(choice,))


@couples("ConvTranspose")
def conv_transpose(view: View) -> Iterator[Fact]:
    """Couple channels with the filters, whose first axis is the input here.

    Forward:  w is (C_in, C_out / group, ...)
    Couples:  x.C <-> w.0;  y.C <-> w.1 <-> b;  products with groups as for Conv.
    """
    x, w, bias, y = view.input(0), view.input(1), view.input(2), view.output()
    out, inner = Axis(y.name or "", 1), view.axis(w, 1)
    group = view.attribute("group", 1)
    if group == 1:
        yield from view.equal(view.axis(x, 1), view.axis(w, 0))
        yield from view.equal(out, inner)
    else:
        per_group = view.size(inner) or 1
        channels = (view.size(view.axis(x, 1)) or group) // group
        choice = Choice(
            node=view.key,
            sizes=(group, channels, per_group),
            axes=(
                (view.axis(x, 1), (0, 1)),
                (view.axis(w, 0), (0, 1)),
                (out, (0, 2)),
                (inner, (2,)),
            ),
        )
        yield _grouped(view, choice, (out, w), (view.axis(x, 1), view.axis(w, 0)))
    yield from _rest(view, x, w)
    if bias is not None:
        yield from view.equal(view.axis(bias, 0), out)


def _is_own(w: ir.Value | None) -> bool:
    """Whether the filters are a constant that nothing else reads."""
    if w is None or len(w.uses()) != 1:
        return False
    producer = w.producer()
    return is_constant(w) and (producer is None or producer.op_type == "Constant")


def _rest(view: View, x: ir.Value | None, w: ir.Value | None) -> Iterator[Fact]:
    """Batch runs through; positions and kernel offsets keep their sizes."""
    y = view.output()
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    spatial = range(2, len(view.shape(x)))
    for value in (x, w, y):
        yield from view.fixed(value, *spatial)


@couples("DeformConv")
def deformed(view: View) -> Iterator[Fact]:
    """Couple as Conv does; offsets and masks are per position, and per group of input channels.

    Forward:  as Conv, of x read at positions moved by `offset` and weighted by `mask`
    Couples:  as Conv; with several groups of offsets the input channels keep their places
    """
    x, bias = view.input(0), view.input(3)
    yield from convolution(view, x, view.input(1))
    if bias is not None:
        yield from view.equal(view.axis(bias, 0), view.axis(view.output(), 1))
    if view.attribute("offset_group", 1) != 1:
        yield from view.fixed(x, 1)
    for slot in (2, 4):
        value = view.input(slot)
        if value is not None:
            yield from view.equal(view.axis(value, 0), view.axis(x, 0))
            yield from view.fixed(value, *range(1, len(view.shape(value))))


@couples("CausalConvWithState")
def causal_conv(view: View) -> Iterator[Fact]:
    """Couple channels with their kernels, biases and states.

    Forward:  y[n, c, t] = f(b[c] + sum_i w[c, 0, i] * z[n, c, t + i]), z = state and x in a row
    Couples:  x.C <-> y.C <-> w.0 <-> b <-> states.C;  batch one to one
    """
    x, y = view.input(0), view.output()
    states = [view.input(3), *(value for value in view.node.outputs[1:] if value.name)]
    for value in (view.input(1), view.input(2)):
        if value is not None:
            yield from view.equal(view.axis(value, 0), view.axis(y, 1))
            yield from view.fixed(value, *range(1, len(view.shape(value))))
    for value in (x, *states):
        if value is not None:
            yield from view.equal(view.axis(value, 0), view.axis(y, 0))
            yield from view.equal(view.axis(value, 1), view.axis(y, 1))
            yield from view.fixed(value, 2)
    yield from view.fixed(y, 2)


@resizes("Conv", "ConvTranspose", "DeformConv")
def regroup(edit: Edit) -> None:
    """`group` follows from the channels that were kept: their number over inputs per group."""
    view = edit.view
    if view.attribute("group", 1) == 1:
        return
    x, w = view.input(0), view.input(1)
    assert x is not None
    assert w is not None
    if view.node.op_type != "ConvTranspose":
        channels, per_group = edit.size_after(x, 1), edit.size_after(w, 1)
    else:
        channels, per_group = edit.size_after(view.output(), 1), edit.size_after(w, 1)
    if channels and per_group:
        view.node.attributes.add(ir.AttrInt64("group", channels // per_group))


@macs("Conv", "DeformConv", "CausalConvWithState")
def conv_macs(view: View) -> int:
    """Batch x output positions x output channels x (inputs per group x kernel)."""
    return kernel_macs(view, 1)


def kernel_macs(view: View, slot: int) -> int:
    """Batch x output positions x size of the filters at input `slot`."""
    filters, y = view.shape(view.input(slot)), view.shape(view.output())
    return _product(filters) * _product((y[0], *y[2:]))


@macs("ConvTranspose")
def conv_transpose_macs(view: View) -> int:
    """Batch x input positions x weights."""
    filters, x = view.shape(view.input(1)), view.shape(view.input(0))
    return _product(filters) * _product((x[0], *x[2:]))


def _product(sizes: tuple[int | None, ...]) -> int:
    return int(np.prod([size or 1 for size in sizes], dtype=np.int64))


@absorbs("Conv")
def conv_absorber(view: View, slot: int) -> Absorber | None:
    """Input channels meet axis 1 of the filters; zero padding makes constants inexact."""
    w = view.input(1)
    if slot != 0 or view.attribute("group", 1) != 1 or not view.is_constant(1) or w is None:
        return None
    pads = view.attribute("pads", ())
    auto = view.attribute("auto_pad", "NOTSET")
    kernel = view.shape(w)[2:]
    padded = any(pads) or (auto.startswith("SAME") and any(size != 1 for size in kernel))
    return Absorber(slot=1, in_axis=1, out_axis=0, padded=padded)


@shifts("Conv")
def conv_shift(edit: Edit, vector: Floats) -> None:
    """Add `vector` (C_out,) to the bias, or make it the bias."""
    bias = edit.view.constant(2)
    if bias is None and edit.view.input(2) is not None:
        rank = len(edit.view.shape(edit.view.output()))
        edit.add_behind(vector.reshape(1, -1, *[1] * (rank - 2)), axis=1)
        return
    total = vector if bias is None else bias + vector.astype(bias.dtype)
    edit.write(2, total, role="bias", along={0: Axis(edit.view.output().name or "", 1)})


_PLACED = ("auto_pad", "dilations", "kernel_shape", "output_padding", "pads", "strides")


@connects("Conv", "ConvTranspose")
def conv_connections(view: View) -> Connections:
    """A connection is a kernel; filters are (G * O, I, kernel), transposed ones (G * I, O, kernel).

    Every kernel alone is a convolution with as many groups as there are input channels.
    """
    op_type, group = view.node.op_type, view.attribute("group", 1)
    kernel = view.shape(view.input(1))[2:]

    def table(weight: Array) -> Array:
        parts = weight.reshape(group, len(weight) // group, weight.shape[1], -1)
        return parts if op_type == "ConvTranspose" else parts.swapaxes(1, 2)

    def spread(e: Emitter, x: ir.Value, kernels: Array) -> ir.Value:
        groups, inputs, outputs, _ = kernels.shape
        rows = (
            (groups * inputs, outputs) if op_type == "ConvTranspose" else (kernels[..., 0].size, 1)
        )
        attributes = {name: view.attribute(name) for name in _PLACED if view.attribute(name)}
        filters = e.constant(kernels.reshape(*rows, *kernel))
        return e.op(op_type, x, filters, group=groups * inputs, **attributes)

    return Connections(
        data=view.axis(view.input(0), 1),
        out=view.axis(view.output(), 1),
        slot=1,
        table=table,
        bias=None if view.input(2) is None else (view.node, 2),
        spread=spread,
    )


@traces("Conv", "ConvTranspose")
def conv_trace(view: View, around: TraceView) -> Trace | None:
    """A unit is its filter and bias; a depthwise unit also whatever its input channel is."""
    transposed = view.node.op_type == "ConvTranspose"
    w = view.input(1)
    weight = view.constant(1)
    if w is None or weight is None:
        return None
    index = around.index(view.axis(w, 1 if transposed else 0))
    if index is None or (transposed and view.attribute("group", 1) != 1):
        return None
    filters = weight.swapaxes(0, 1) if transposed else weight
    rows = filters[index].reshape(len(index), -1)
    kind = Kind.LINEAR
    inputs: tuple[Axis, ...] = (view.axis(view.input(0), 1),)
    incoming = around.inputs[0]
    if incoming is not None:  # depthwise: the unit's own input varies with the unit
        kind, inputs = Kind.EQUAL, incoming.inputs
        rows = np.concatenate([incoming.rows, rows], axis=1)
    elif view.attribute("group", 1) != 1:
        return None
    trace = Trace(rows=rows.astype(np.float64), kind=kind, inputs=inputs)
    if view.input(2) is None:
        return trace
    bias = view.constant(2)
    return None if bias is None else trace.plus(bias[index].astype(np.float64))
