"""Operators about shapes, and values that come from nowhere: Shape, Size, Constant, Range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.base import Ends, Fact, Mask, Reason
from onnxprune.model import constant
from onnxprune.ops.edit import Edit
from onnxprune.ops.registry import View, couples, resizes


@couples("Shape")
def shape(view: View) -> Iterator[Fact]:
    """Any axis of x may change: what was computed from its size stays as it was (see `pin`).

    Forward:  y = sizes of x
    Couples:  nothing; the list of sizes itself has one entry per axis. Where the list is an output
              of the graph, x keeps its sizes
    """
    x, y = view.input(0), view.output()
    positions = range(len(view.shape(x)))
    if y.is_graph_output():
        yield from view.fixed(x, *positions, reason=Reason.GRAPH_OUTPUT)
    for position in positions:
        yield Ends(view.axis(x, position), reads=False)
    if len(view.shape(y)):
        yield from view.fixed(y, 0)


@couples("Size")
def size(view: View) -> Iterator[Fact]:
    """Freeze x: how many elements it has cannot be put right afterwards."""
    x = view.input(0)
    yield from view.fixed(x, *range(len(view.shape(x))))


@resizes("Shape")
def pin(edit: Edit) -> None:
    """Static sizes become constants, as they were before the removal.

    What the model computes from them (a midpoint to split at, a scale 1 / sqrt(size)) keeps its
    value that way, and shapes that must follow are mended where they are used.
    """
    view = edit.view
    x = view.input(0)
    sizes = view.shape(x)
    start, end = view.attribute("start", 0), view.attribute("end")
    sizes = sizes[slice(start, end)]
    static = np.array([size is not None for size in sizes], np.bool_)
    output = view.node.outputs[0]
    if not static.any() or all(_pinned(use.node, use.idx, static) for use in output.uses()):
        return
    numbers = edit.initializer(
        f"{view.key}/static", np.array([size or 0 for size in sizes], np.int64)
    )
    if static.all():
        ir.convenience.replace_all_uses_with(output, numbers)
        return
    mask = edit.initializer(f"{view.key}/is_static", static)
    made = ir.node("Where", [mask, numbers, output])
    made.outputs[0].name = edit.fresh(f"{view.key}/pinned")
    edit.around.insert_after(view.node, made)
    ir.convenience.replace_all_uses_with(output, made.outputs[0])
    made.replace_input_with(2, output)


def _pinned(reader: ir.Node, slot: int, static: Mask) -> bool:
    """Whether `reader` is the Where of an earlier removal and replaces all static sizes."""
    if reader.op_type != "Where" or slot != 2:
        return False
    mask = constant(reader.inputs[0])
    return mask is not None and mask.shape == static.shape and bool((mask >= static).all())


@couples("Constant", "ConstantOfShape")
def source(view: View) -> Iterator[Fact]:
    """The axes are free to follow their readers; a shape to fill has one entry per axis.

    Forward:  y = the given array; y[...] = the given number, for every index
    Couples:  nothing
    """
    for value in view.node.inputs:
        if value is not None and value.name:
            yield from view.fixed(value, *range(len(view.shape(value))))
    yield from view.ends(view.output(), *range(len(view.shape(view.output()))))


@resizes("ConstantOfShape")
def refill(edit: Edit) -> None:
    """The sizes to fill follow the output."""
    edit.sizes(0)


@couples("Range", "EyeLike", "RandomNormal", "RandomUniform", "RandomNormalLike")
@couples("RandomUniformLike", "Bernoulli", "Multinomial")
def generated(view: View) -> Iterator[Fact]:
    """Freeze what is generated: the value depends on the position.

    Forward:  y[i] = start + i * delta; ones on a diagonal; random numbers, of which another size
              draws others
    Couples:  nothing
    """
    for value in (*view.node.inputs, view.output()):
        if value is not None and value.name:
            yield from view.fixed(value, *range(len(view.shape(value))))
