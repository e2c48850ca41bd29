"""Slopes of Resize, and GridSample as a composition.

Resize is linear in its input and works axis by axis: along an axis of size I it is a matrix (I, O),
which is what Resize itself makes of the identity matrix. So every mode, rounding and coordinate
transformation has the right slope without being looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.hidden import Call
from onnxprune.gradients.slots import attribute, attributes, data_input, optional_input, rank_of
from onnxprune.model import constant, shape_of
from onnxprune.ops.registry import gradient, lowers

__all__: list[str] = []

_KEPT = (
    "antialias",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "mode",
    "nearest_mode",
)
_CROP = "tf_crop_and_resize"


@gradient("Resize")
def resize(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """Per resized axis, the slope times the transposed matrix of the axis."""
    node, slope = call.node, call.slopes[0]
    assert slope is not None
    axes = _resized(node)
    rank = rank_of(call.input(0)) or rank_of(node.outputs[0]) or len(axes)
    for place, axis in enumerate(axes):
        if _is_kept(node, place, axis):
            continue
        matrix = _matrix(e, node, place, axis, len(axes))
        last = [n for n in range(rank) if n != axis] + [axis]
        back = [last.index(n) for n in range(rank)]
        moved = slope if last == sorted(last) else e.op("Transpose", slope, perm=last)
        moved = e.op("MatMul", moved, e.op("Transpose", matrix, perm=[1, 0]))
        slope = moved if last == sorted(last) else e.op("Transpose", moved, perm=back)
    return [slope, *[None] * (len(call.wanted) - 1)]


def _resized(node: ir.Node) -> list[int]:
    """The axes that scales or sizes are for."""
    rank = rank_of(data_input(node)) or rank_of(node.outputs[0]) or 0
    given = attribute(node, "axes", None)
    if given is not None:
        return [int(axis) % rank for axis in given] if rank else list(given)
    for slot in (2, 3):
        value = optional_input(node, slot)
        shape = None if value is None else shape_of(value)
        if shape is not None and shape[0]:
            rank = int(shape[0])
    return list(range(rank))


def _is_kept(node: ir.Node, place: int, axis: int) -> bool:
    """Whether nothing happens along the axis for sure."""
    if attribute(node, "coordinate_transformation_mode", "") == _CROP:
        return False
    scales = constant(optional_input(node, 2))
    if scales is not None and scales.size:
        return bool(scales[place] == 1)
    before, after = shape_of(data_input(node)), shape_of(node.outputs[0])
    if before is None or after is None:
        return False
    return before[axis] is not None and before[axis] == after[axis]


def _matrix(e: Emitter, node: ir.Node, place: int, axis: int, count: int) -> ir.Value:
    """(I, O): what becomes of every position of the axis alone."""
    x, y = data_input(node), node.outputs[0]
    size = e.op("Gather", e.op("Shape", x), e.integers(axis))
    blank = ir.Tensor(np.zeros(1, dtype=e.dtype.numpy()))
    square = e.op("ConstantOfShape", e.op("Concat", size, size, axis=0), value=blank)
    eye = e.op("Unsqueeze", e.op("EyeLike", square, dtype=e.dtype), e.integers(0, 1))
    options = attributes(node, *_KEPT)
    scales = optional_input(node, 2)
    used = scales is not None and (shape_of(scales) or (1,)) != (0,)
    roi = _roi(e, node, place, count)
    if used:
        scale = e.op("Gather", scales, e.integers(place))
        ones = e.constant(np.ones(3, dtype=np.float32))
        wide = e.op("Resize", eye, roi, e.op("Concat", ones, scale, axis=0), **options)
    else:
        after = e.op("Gather", e.op("Shape", y), e.integers(axis))
        sizes = e.op("Concat", e.integers(1, 1), size, after, axis=0)
        wide = e.op("Resize", eye, roi, None, sizes, **options)
    return e.op("Squeeze", wide, e.integers(0, 1))


def _roi(e: Emitter, node: ir.Node, place: int, count: int) -> ir.Value | None:
    """The region of interest of the identity: all of its rows, the axis's own part of a row."""
    roi = optional_input(node, 1)
    if attribute(node, "coordinate_transformation_mode", "") != _CROP:
        return None
    begin = e.op("Gather", roi, e.integers(place))
    end = e.op("Gather", roi, e.integers(count + place))
    dtype = np.float32 if roi is None or roi.dtype is None else roi.dtype.numpy()
    zeros, ones = (e.constant(np.full(3, n, dtype=dtype)) for n in (0, 1))
    return e.op("Concat", zeros, begin, ones, end, axis=0)


# --- GridSample ----------------------------------------------------------------------------------


@lowers("GridSample")
def grid_sample(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Sum of the corners around each point, each times its share; images only.

    Bilinear or nearest; padding by zeros or border. Elsewhere the operator has no gradient here.
    """
    x, grid = data_input(node), optional_input(node, 1)
    mode = {"bilinear": "linear"}.get(attribute(node, "mode", "linear"), attribute(node, "mode", 0))
    padding = attribute(node, "padding_mode", "zeros")
    shape = shape_of(x)
    fits = shape is not None and len(shape) == 4 and None not in shape[1:]
    if not fits or shape is None or padding == "reflection" or mode not in (0, "linear", "nearest"):
        return None
    height, width = int(shape[2] or 0), int(shape[3] or 0)
    aligned = attribute(node, "align_corners", 0)
    names = [f"{e.prefix}/grid_{name}" for name in "xy"]
    columns, rows = e.ops("Split", grid, e.integers(1, 1), outputs=names, axis=3)
    points = [
        _position(e, e.op("Squeeze", value, e.integers(3)), size, aligned, padding == "border")
        for value, size in ((rows, height), (columns, width))
    ]
    flat = e.op("Reshape", x, e.integers(0, 0, -1))
    if mode == "nearest":
        corners: list[tuple[ir.Value, ir.Value, ir.Value | None]] = [
            (e.op("Round", points[0]), e.op("Round", points[1]), None)
        ]
    else:
        corners = _corners(e, points)
    total = None
    for row, column, share in corners:
        part = _taken(e, flat, row, column, share, (height, width))
        total = part if total is None else e.op("Add", total, part)
    return total


def _position(e: Emitter, value: ir.Value, size: int, aligned: Any, border: bool) -> ir.Value:
    """Where -1 .. 1 lies between the first and the last of `size` positions."""
    factor, offset = ((size - 1) / 2, (size - 1) / 2) if aligned else (size / 2, (size - 1) / 2)
    place = e.op("Add", e.op("Mul", value, e.scalar(factor)), e.scalar(offset))
    return e.op("Clip", place, e.scalar(0.0), e.scalar(size - 1)) if border else place


def _corners(
    e: Emitter, points: Sequence[ir.Value]
) -> list[tuple[ir.Value, ir.Value, ir.Value | None]]:
    """(row, column, share) of the four positions around each point."""
    sides = []
    for point in points:
        low = e.op("Floor", point)
        part = e.op("Sub", point, low)
        sides.append(
            [
                (low, e.op("Sub", e.scalar(1.0), part)),
                (e.op("Add", low, e.scalar(1.0)), part),
            ]
        )
    return [(row, column, e.op("Mul", a, b)) for row, a in sides[0] for column, b in sides[1]]


def _taken(
    e: Emitter,
    flat: ir.Value,
    row: ir.Value,
    column: ir.Value,
    share: ir.Value | None,
    sizes: tuple[int, int],
) -> ir.Value:
    """(N, C, H, W): the values at (row, column), 0 outside, times their share."""
    height, width = sizes
    inside: ir.Value | None = None
    clipped = []
    for value, size in ((row, height), (column, width)):
        near = e.op("Clip", value, e.scalar(0.0), e.scalar(size - 1))
        clipped.append(near)
        same = e.op("Equal", near, value)
        inside = same if inside is None else e.op("And", inside, same)
    index = e.op("Add", e.op("Mul", clipped[0], e.scalar(width)), clipped[1])
    spread = e.op("Reshape", e.op("Cast", index, to=ir.DataType.INT64), e.integers(0, 1, -1))
    channels = e.op("Gather", e.op("Shape", flat), e.integers(1))
    wide = e.op("Concat", e.integers(1), channels, e.integers(1), axis=0)
    read = e.op("GatherElements", flat, e.op("Expand", spread, wide), axis=2)
    output = e.op(
        "Concat",
        e.integers(0, 0),
        e.op("Slice", e.op("Shape", row), e.integers(1), e.integers(3)),
        axis=0,
    )
    image = e.op("Reshape", read, output)
    mask = e.op("Unsqueeze", e.op("Cast", inside, to=e.dtype), e.integers(1))
    weight = mask if share is None else e.op("Mul", mask, e.op("Unsqueeze", share, e.integers(1)))
    return e.op("Mul", image, weight)
