"""Pooling, padding and block layouts as compositions; the second half of `compositions`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.compositions import root
from onnxprune.gradients.slots import (
    attribute,
    attributes,
    data_input,
    optional_input,
    rank_of,
    wanted,
)
from onnxprune.model import constant, shape_of
from onnxprune.ops.registry import lowers

__all__: list[str] = []


@lowers("GlobalMaxPool")
def global_max_pool(e: Emitter, node: ir.Node) -> ir.Value | None:
    """MaxPool over static sizes, else TopK over the flattened ones."""
    shape = shape_of(data_input(node))
    if shape is None:
        return None
    sizes = [size for size in shape[2:] if size is not None]
    if len(sizes) == len(shape) - 2:
        return e.op("MaxPool", data_input(node), kernel_shape=sizes)
    flat = e.op("Reshape", data_input(node), e.integers(0, 0, -1))
    top, _ = e.ops("TopK", flat, e.integers(1), outputs=(f"{e.prefix}/top", f"{e.prefix}/at"))
    return e.op("Unsqueeze", top, e.integers(*range(3, len(shape)))) if len(shape) > 3 else top


@lowers("MaxPool")
def row_major(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Without storage_order, which only numbers the positions; the engine's gradient ignores it."""
    if not attribute(node, "storage_order", 0) or any(wanted(v) for v in node.outputs[1:]):
        return None
    kept = {name: v.value for name, v in node.attributes.items() if name != "storage_order"}
    return e.op("MaxPool", data_input(node), **kept)


@lowers("Conv")
def explicit_pads(e: Emitter, node: ir.Node) -> ir.Value | None:
    """A convolution with auto_pad, with pads instead.

    The engine's ConvGrad ignores auto_pad: it reads and writes beyond its arrays.
    """
    auto = attribute(node, "auto_pad", "NOTSET")
    shape, w = shape_of(data_input(node)), optional_input(node, 1)
    kernel = None if w is None else shape_of(w)
    if auto == "NOTSET" or kernel is None or None in kernel[2:]:
        return None
    spatial = len(kernel) - 2
    sizes = [None] * spatial if shape is None else shape[2:]
    pads = _pool_pads(node, sizes, [size for size in kernel[2:] if size is not None])
    if pads is None:
        return None
    kept = {name: value.value for name, value in node.attributes.items() if name != "auto_pad"}
    return e.op("Conv", *node.inputs, **{**kept, "pads": pads})


def _pool_pads(node: ir.Node, sizes: Sequence[int | None], kernel: list[int]) -> list[int] | None:
    """Explicit pads (begins, then ends), grown at the end where ceil_mode asks for it."""
    spatial = len(kernel)
    strides = attribute(node, "strides", [1] * spatial)
    dilations = attribute(node, "dilations", [1] * spatial)
    auto = attribute(node, "auto_pad", "NOTSET")
    begins, ends = [], []
    given = list(attribute(node, "pads", [0] * (2 * spatial)))
    for axis in range(spatial):
        size, stride = sizes[axis], strides[axis]
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if size is None and stride > 1:
                return None
            total = max(extent - 1, 0)
            if size is not None:
                total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
            small, large = total // 2, total - total // 2
            begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
        else:
            begin, end = (given[axis], given[spatial + axis]) if auto == "NOTSET" else (0, 0)
            if attribute(node, "ceil_mode", 0):
                if size is None:
                    return None
                end += _ceil_growth(size, begin, end, extent, stride)
        begins.append(begin)
        ends.append(end)
    return begins + ends


def _ceil_growth(size: int, begin: int, end: int, extent: int, stride: int) -> int:
    """How far the last window of ceil_mode reaches past the padded input."""
    span = size + begin + end - extent
    windows = math.ceil(span / stride) + 1
    if (windows - 1) * stride >= size + begin:  # it would start in the end padding: dropped
        windows -= 1
    return max((windows - 1) * stride - span, 0)


def _share_of_input(
    node: ir.Node, sizes: Sequence[int], kernel: list[int], pads: list[int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Kernel size / what AveragePool divides by, per output position: (sizes of the output)."""
    spatial = len(kernel)
    strides = attribute(node, "strides", [1] * spatial)
    dilations = attribute(node, "dilations", [1] * spatial)
    same = attribute(node, "auto_pad", "NOTSET").startswith("SAME")
    given = pads if same else list(attribute(node, "pads", [0] * (2 * spatial)))
    counts = np.ones((), dtype=np.float64)
    for axis in range(spatial):
        padded = np.zeros(pads[axis] + sizes[axis] + pads[spatial + axis])
        inside = slice(pads[axis], pads[axis] + sizes[axis])
        if attribute(node, "count_include_pad", 0):
            inside = slice(0, pads[axis] + sizes[axis] + given[spatial + axis])
        padded[inside] = 1
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        starts = range(0, len(padded) - extent + 1, strides[axis])
        row = [padded[start : start + extent : dilations[axis]].sum() for start in starts]
        counts = np.multiply.outer(counts, np.array(row))
    share: np.ndarray[Any, np.dtype[np.float64]] = math.prod(kernel) / counts
    return share


@lowers("AveragePool")
def average_pool(e: Emitter, node: ir.Node) -> ir.Value | None:
    """GlobalAveragePool where one window covers the input, else a depthwise convolution.

    The engine's own gradient of AveragePool kills the process when the batch is symbolic.
    """
    x, kernel = data_input(node), [int(size) for size in attribute(node, "kernel_shape", [])]
    shape = shape_of(x)
    if shape is None or shape[1] is None:
        return None
    sizes, channels = shape[2:], shape[1]
    pads = _pool_pads(node, sizes, kernel)
    if pads is None:
        return None
    if list(sizes) == kernel and not any(pads):
        return e.op("GlobalAveragePool", x)
    known = [size for size in sizes if size is not None]
    includes_pads = bool(attribute(node, "count_include_pad", 0))
    if any(pads) and len(known) < len(sizes) and not includes_pads:
        return None
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=e.dtype.numpy())
    options: dict[str, Any] = {
        name: list(attribute(node, name, None))
        for name in ("strides", "dilations")
        if attribute(node, name, None) is not None
    }
    pooled = e.op("Conv", x, e.constant(weight), group=channels, pads=pads, **options)
    if not any(pads) or len(known) < len(sizes):
        return pooled
    share = _share_of_input(node, known, kernel, pads)
    if np.all(share == 1):
        return pooled
    return e.op("Mul", pooled, e.constant(share.astype(e.dtype.numpy())[None, None]))


@lowers("LpPool")
def lp_pool(e: Emitter, node: ir.Node) -> ir.Value | None:
    """(sum of |x|^p)^(1/p) over each window, the sum as a depthwise convolution."""
    x, kernel = data_input(node), [int(size) for size in attribute(node, "kernel_shape", [])]
    shape = shape_of(x)
    if shape is None or shape[1] is None:
        return None
    pads = _pool_pads(node, shape[2:], kernel)
    if pads is None:
        return None
    p = attribute(node, "p", 2)
    options = attributes(node, "strides", "dilations")
    weight = e.constant(np.ones((shape[1], 1, *kernel), dtype=e.dtype.numpy()))
    powers = _power(e, x, p)
    total = e.op("Conv", powers, weight, group=shape[1], pads=pads, **options)
    return _root(e, total, p)


@lowers("GlobalLpPool")
def global_lp_pool(e: Emitter, node: ir.Node) -> ir.Value | None:
    """(sum of |x|^p)^(1/p) over all positions."""
    x, p = data_input(node), attribute(node, "p", 2)
    rank = rank_of(x)
    if rank is None:
        return None
    return _root(e, e.reduce("ReduceSum", _power(e, x, p), range(2, rank)), p)


def _power(e: Emitter, x: ir.Value, p: int) -> ir.Value:
    """|x|^p."""
    if p == 1:
        return e.op("Abs", x)
    return e.op("Mul", x, x) if p == 2 else e.op("Pow", e.op("Abs", x), e.scalar(p))


def _root(e: Emitter, x: ir.Value, p: int) -> ir.Value:
    return x if p == 1 else root(e, x, p)


@lowers("ConvTranspose")
def explicit_output(e: Emitter, node: ir.Node) -> ir.Value | None:
    """A transposed convolution with auto_pad or output_shape, with pads instead."""
    auto, wished = attribute(node, "auto_pad", "NOTSET"), attribute(node, "output_shape", None)
    w, shape = optional_input(node, 1), shape_of(data_input(node))
    kernel = None if w is None else shape_of(w)
    if (auto == "NOTSET" and wished is None) or kernel is None or None in kernel[2:]:
        return None
    spatial = len(kernel) - 2
    strides = attribute(node, "strides", [1] * spatial)
    dilations = attribute(node, "dilations", [1] * spatial)
    extra = list(attribute(node, "output_padding", [0] * spatial))
    begins, ends = [], []
    for axis in range(spatial):
        extent = (int(kernel[2 + axis] or 1) - 1) * dilations[axis] + 1
        total = extra[axis] + extent - strides[axis]  # output = input * stride
        if wished is not None:
            if shape is None or shape[2 + axis] is None:
                return None
            total += (
                strides[axis] * int(shape[2 + axis] or 0) - wished[len(wished) - spatial + axis]
            )
        elif auto == "VALID":
            total = 0
        extra[axis] += max(-total, 0)
        total = max(total, 0)
        first = total // 2 if auto == "SAME_UPPER" else total - total // 2
        begins.append(first)
        ends.append(total - first)
    options = attributes(node, "dilations", "group", "kernel_shape", "strides")
    return e.op("ConvTranspose", *node.inputs, pads=begins + ends, output_padding=extra, **options)


@lowers("Pad")
def pad(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reflect, edge and wrap padding as one Gather per padded axis."""
    mode = attribute(node, "mode", "constant")
    rank, pads = rank_of(data_input(node)), constant(optional_input(node, 1))
    if mode == "constant":
        return _pad_all(e, node)
    axes = constant(optional_input(node, 3))
    if rank is None or (axes is None and optional_input(node, 3) is not None):
        return None
    places = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    value = data_input(node)
    for place, axis in enumerate(places):
        ends = (place, len(places) + place)
        if pads is not None and not any(pads[end] for end in ends):
            continue
        size = e.op("Gather", e.op("Shape", value), e.constant(np.array(axis)))
        zero, one = (e.constant(np.array(number)) for number in (0, 1))
        index = e.op("Range", zero, size, one)
        around = e.op("Gather", node.inputs[1], e.integers(*ends))
        value = e.op("Gather", value, e.op("Pad", index, around, mode=mode), axis=axis)
    return value


def _pad_all(e: Emitter, node: ir.Node) -> ir.Value | None:
    """A Pad of some axes as one of all, which alone the engine differentiates."""
    shape, axes = shape_of(data_input(node)), constant(optional_input(node, 3))
    if shape is None or axes is None:
        return None
    rank, count = len(shape), len(axes)
    places = [int(axis) % rank + half * rank for half in (0, 1) for axis in axes]
    zeros = e.constant(np.zeros(2 * rank, dtype=np.int64))
    index = e.constant(np.array(places, dtype=np.int64).reshape(2 * count, 1))
    given = constant(optional_input(node, 1))
    if given is not None:
        whole = np.zeros(2 * rank, dtype=np.int64)
        whole[places] = given
        pads = e.constant(whole)
    else:
        pads = e.op("ScatterND", zeros, index, node.inputs[1])
    return e.op("Pad", node.inputs[0], pads, optional_input(node, 2))


@lowers("DepthToSpace")
def depth_to_space(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reshape, Transpose, Reshape, as the ONNX operator's text defines it."""
    b = attribute(node, "blocksize", 1)
    n, c, h, w = _sizes(e, data_input(node))
    block = e.integers(b)
    depth = e.op("Div", c, e.integers(b * b))
    if attribute(node, "mode", "DCR") == "DCR":
        split, perm = (n, block, block, depth, h, w), [0, 3, 4, 1, 5, 2]
    else:
        split, perm = (n, depth, block, block, h, w), [0, 1, 4, 2, 5, 3]
    result = (n, depth, e.op("Mul", h, block), e.op("Mul", w, block))
    return _rearranged(e, data_input(node), split, perm, result)


@lowers("SpaceToDepth")
def space_to_depth(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reshape, Transpose, Reshape: the inverse of DepthToSpace in DCR mode."""
    b = attribute(node, "blocksize", 1)
    n, c, h, w = _sizes(e, data_input(node))
    block = e.integers(b)
    rows, columns = e.op("Div", h, block), e.op("Div", w, block)
    result = (n, e.op("Mul", c, e.integers(b * b)), rows, columns)
    split = (n, c, rows, block, columns, block)
    return _rearranged(e, data_input(node), split, [0, 3, 5, 1, 2, 4], result)


def _sizes(e: Emitter, x: ir.Value) -> list[ir.Value]:
    """(1,) each; a number where it is known."""
    shape = shape_of(x) or (None,) * 4
    whole = e.op("Shape", x)
    return [
        e.op("Gather", whole, e.integers(axis)) if size is None else e.integers(size)
        for axis, size in enumerate(shape)
    ]


def _rearranged(
    e: Emitter,
    x: ir.Value,
    split: Sequence[ir.Value],
    perm: Sequence[int],
    result: Sequence[ir.Value],
) -> ir.Value:
    parts = e.op("Reshape", x, e.op("Concat", *split, axis=0))
    turned = e.op("Transpose", parts, perm=list(perm))
    return e.op("Reshape", turned, e.op("Concat", *result, axis=0))
