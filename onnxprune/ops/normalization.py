"""Normalizations: by running statistics, channel by channel, and over the units themselves.

BatchNormalization and InstanceNormalization work on each channel alone. The others see the units of
an axis together: one that goes changes what those that stay become, so that such axes may lose
units, but never exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Choice, Fact, Inexact
from onnxprune.emit import Emitter
from onnxprune.ops.edit import Edit
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.registry import Role, View, couples, mimics, parameters, resizes, traces
from onnxprune.ops.trace import Kind, Trace, TraceView

_VENDOR = "com.microsoft"

parameters("BatchNormalization", "InstanceNormalization", slots={1: Role.SCALE, 2: Role.AFFINE})
parameters("LayerNormalization", "GroupNormalization", slots={1: Role.SCALE, 2: Role.AFFINE})
parameters("RMSNormalization", "SimplifiedLayerNormalization", slots={1: Role.SCALE})
parameters("SimplifiedLayerNormalization", domain=_VENDOR, slots={1: Role.SCALE})
parameters(
    "SkipLayerNormalization",
    domain=_VENDOR,
    slots={2: Role.SCALE, 3: Role.AFFINE, 4: Role.AFFINE},
)
parameters(
    "SkipSimplifiedLayerNormalization", domain=_VENDOR, slots={2: Role.SCALE, 3: Role.AFFINE}
)


def together(view: View, x: Axis, y: Axis) -> Iterator[Fact]:
    """Index i of both axes belongs together, and what y holds there depends on all of x."""
    yield from view.equal(x, y)
    yield Inexact(x, view.key, f"{view.node.op_type} over this axis")


def mixed(view: View, positions: Collection[int]) -> Iterator[Fact]:
    """Input 0 and output 0 have the same axes; those at `positions` are worked on as a whole."""
    x, y = view.input(0), view.output()
    for position in range(len(view.shape(x))):
        here, there = view.axis(x, position), view.axis(y, position)
        yield from together(view, here, there) if position in positions else view.equal(here, there)


@couples("BatchNormalization")
def batch_normalization(view: View) -> Iterator[Fact]:
    """Couple channels with scale, shift and running statistics.

    Forward:  y = scale * (x - mean) / sqrt(var + epsilon) + shift, per channel (axis 1)
    Couples:  x.C <-> y.C <-> scale <-> shift <-> mean <-> var (and the statistics it puts out);
              every other axis one to one
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    for position in range(rank):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    channel = Axis(y.name or "", 1 if rank > 1 else 0)
    statistics = [view.input(slot) for slot in range(1, 5)]
    statistics += [output for output in view.node.outputs[1:] if output.name]
    for value in statistics:
        if value is not None and len(view.shape(value)) == 1:
            yield from view.equal(view.axis(value, 0), channel)


@traces("BatchNormalization")
def batch_normalization_trace(view: View, around: TraceView) -> Trace | None:
    """Folded: rows times scale / sqrt(var + epsilon), plus shift - mean * that."""
    arrays = [view.constant(slot) for slot in range(1, 5)]
    index = around.index(view.axis(view.output(), 1))
    trace = around.inputs[0]
    if trace is None or index is None or any(array is None for array in arrays):
        return None
    scale, shift, mean, var = (np.asarray(array, np.float64)[index] for array in arrays)
    factor = scale / np.sqrt(var + view.attribute("epsilon", 1e-5))
    return trace.times(factor).plus(shift - mean * factor)


@couples("InstanceNormalization")
def instance_normalization(view: View) -> Iterator[Fact]:
    """Couple channels with scale and shift; the positions of a channel are worked on together.

    Forward:  y = scale * (x - mean(x)) / sqrt(var(x) + epsilon) + shift, mean and var per example
              and channel
    Couples:  x.C <-> y.C <-> scale <-> shift; every other axis one to one
    Inexact:  along the positions
    """
    rank = len(view.shape(view.input(0)))
    yield from mixed(view, range(2, rank))
    for slot in (1, 2):
        yield from view.equal(view.axis(view.input(slot), 0), view.axis(view.output(), 1))


@traces("InstanceNormalization")
def instance_normalization_trace(view: View, around: TraceView) -> Trace | None:
    """Equal channels with equal scale and shift stay equal."""
    index = around.index(view.axis(view.output(), 1))
    trace, scale, shift = around.inputs[0], view.constant(1), view.constant(2)
    if trace is None or index is None or scale is None or shift is None:
        return None
    equal = trace.then(Kind.EQUAL)
    return equal.times(scale[index].astype(np.float64)).plus(shift[index].astype(np.float64))


@couples("GroupNormalization")
def group_normalization(view: View) -> Iterator[Fact]:
    """Couple channels with scale and shift: whole groups, or the same stripe of every group.

    Forward:  x.C = (group, member); y = scale * (x - mean(x)) / sqrt(var(x) + epsilon) + shift,
              mean and var per example and group, over members and positions
    Couples:  x.C = y.C = (group, member) is a product; so are scale and shift since opset 21,
              before they hold one number per group
    Inexact:  along the members and the positions; a whole group goes without any effect on others
    """
    x, y = view.input(0), view.output()
    channels, groups = view.size(view.axis(x, 1)), view.attribute("num_groups")
    if channels is None or channels % groups:
        yield from view.fixed(x, *range(len(view.shape(x))))
        return
    affine = (0, 1) if view.opset >= 21 else (0,)
    data = [view.axis(value, 1) for value in (x, y)]
    vectors = [view.axis(view.input(slot), 0) for slot in (1, 2)]
    choice = Choice(
        node=view.key,
        sizes=(groups, channels // groups),
        axes=(*((axis, (0, 1)) for axis in data), *((axis, affine) for axis in vectors)),
    )
    yield choice
    yield Inexact(choice.atom(1), view.key, "GroupNormalization over the members of a group")
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    for position in range(2, len(view.shape(x))):
        yield from together(view, view.axis(x, position), view.axis(y, position))


@resizes("GroupNormalization")
def regroup(edit: Edit) -> None:
    """`num_groups` is the number of groups of which any channel was kept."""
    x, groups = edit.view.input(0), edit.view.attribute("num_groups")
    kept = edit.kept_at(x, 1)
    if kept is not None:
        members = (edit.view.shape(x)[1] or 0) // groups
        edit.view.node.attributes.add(ir.AttrInt64("num_groups", len(np.unique(kept // members))))


@couples("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
@couples("SimplifiedLayerNormalization", domain=_VENDOR)
def layer_normalization(view: View) -> Iterator[Fact]:
    """Couple every axis one to one, and those that are normalized with scale and shift.

    Forward:  y = scale * (x - mean(x)) / sqrt(var(x) + epsilon) + shift over the axes from `axis`
              on; RMS: y = scale * x / sqrt(mean(x^2) + epsilon)
    Couples:  x[p] <-> y[p]; scale and shift lie on the last axes of y; the statistics it puts out
              have the axes before `axis`
    Inexact:  along the axes from `axis` on
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    axis = view.attribute("axis", -1) % rank
    yield from mixed(view, range(axis, rank))
    for slot in (1, 2):
        value = view.input(slot)
        if value is not None:
            yield from broadcast(view, value, y)
    for output in view.node.outputs[1:]:
        if output.name:
            yield from broadcast(view, output, y)


@couples("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_VENDOR)
def skip_layer_normalization(view: View) -> Iterator[Fact]:
    """Couple a residual sum with the scale and shift of its normalization.

    Forward:  s = x + skip + bias; y = LayerNormalization(s) over the last axis; s is put out too
    Couples:  x[p] <-> y[p] <-> s[p]; skip, scale, shift and bias lie on the last axes of y
    Inexact:  along the last axis
    """
    y = view.output()
    yield from mixed(view, [len(view.shape(y)) - 1])
    for value in (*view.node.inputs[1:], *view.node.outputs[1:]):
        if value is not None and value.name:
            yield from broadcast(view, value, y)


@mimics("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization")
@mimics("SimplifiedLayerNormalization", domain=_VENDOR)
@mimics("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_VENDOR)
def same_sizes(e: Emitter, node: ir.Node) -> list[ir.Value | None]:
    """The normalized values are like x, and so is the sum that a Skip operator puts out fourth."""
    same = [0, 3] if node.op_type.startswith("Skip") else [0]
    return [
        e.op("Identity", node.inputs[0]) if slot in same else None
        for slot in range(len(node.outputs))
    ]


@couples("LpNormalization", "MeanVarianceNormalization", "LRN")
def plain_normalization(view: View) -> Iterator[Fact]:
    """Couple every axis one to one.

    Forward:  LpNormalization: y = x / |x|_p along `axis`; MeanVarianceNormalization:
              y = (x - mean(x)) / std(x) over `axes`; LRN: y = x / (bias + alpha / size * sum of x^2
              over `size` neighbouring channels)^beta
    Couples:  x[p] <-> y[p]
    Inexact:  along those axes
    """
    rank = len(view.shape(view.input(0)))
    over: dict[str, list[int]] = {
        "LpNormalization": [view.attribute("axis", -1)],
        "MeanVarianceNormalization": list(view.attribute("axes", (0, 2, 3))),
        "LRN": [1],
    }
    yield from mixed(view, [axis % rank for axis in over[view.node.op_type]])
