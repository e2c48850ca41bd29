"""Pooling, padding and block layouts as compositions; the second half of `compositions`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.emit import Emitter
from onnxprune.model import constant, shape_of

__all__ = [
    "attribute",
    "average_pool",
    "data_input",
    "depth_to_space",
    "explicit_pads",
    "global_max_pool",
    "optional_input",
    "pad",
    "rank_of",
    "space_to_depth",
]


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or `default`."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def optional_input(node: ir.Node, slot: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[slot] if slot < len(node.inputs) else None


def data_input(node: ir.Node) -> ir.Value:
    """The first input."""
    value = node.inputs[0]
    assert value is not None
    return value


def rank_of(value: ir.Value) -> int | None:
    """How many axes `value` has; None when unknown."""
    shape = shape_of(value)
    return None if shape is None else len(shape)


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
    given = list(attribute(node, "pads", [0] * (2 * spatial)))
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


def pad(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reflect, edge and wrap padding as one Gather per padded axis."""
    mode = attribute(node, "mode", "constant")
    shape, pads = shape_of(data_input(node)), constant(optional_input(node, 1))
    if mode == "constant" or shape is None or pads is None:
        return None
    given = constant(optional_input(node, 3))
    axes = list(range(len(shape))) if given is None else [int(axis) for axis in given]
    indices: dict[int, Array] = {}
    for place, axis in enumerate(axes):
        before, after = int(pads[place]), int(pads[len(axes) + place])
        size = shape[axis]
        if before == after == 0:
            continue
        if size is None or min(before, after) < 0:
            return None
        indices[axis] = _padded_index(size, before, after, mode)
    value = data_input(node)
    for axis, index in indices.items():
        value = e.op("Gather", value, e.constant(index), axis=axis)
    return value if indices else None


def _padded_index(size: int, before: int, after: int, mode: str) -> Array:
    index = np.arange(size, dtype=np.int64)
    if mode == "reflect":
        return np.pad(index, (before, after), mode="reflect")
    return np.pad(index, (before, after), mode="wrap" if mode == "wrap" else "edge")


def depth_to_space(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reshape, Transpose, Reshape, as the ONNX operator's text defines it."""
    b, shape = attribute(node, "blocksize", 1), shape_of(data_input(node))
    if shape is None or None in shape[1:]:
        return None
    c, h, w = (int(size) for size in shape[1:] if size is not None)
    depth = c // (b * b)
    if attribute(node, "mode", "DCR") == "DCR":
        split, perm = (0, b, b, depth, h, w), [0, 3, 4, 1, 5, 2]
    else:
        split, perm = (0, depth, b, b, h, w), [0, 1, 4, 2, 5, 3]
    blocks = e.op("Transpose", e.op("Reshape", data_input(node), e.integers(*split)), perm=perm)
    return e.op("Reshape", blocks, e.integers(0, depth, h * b, w * b))


def space_to_depth(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reshape, Transpose, Reshape: the inverse of DepthToSpace in DCR mode."""
    b, shape = attribute(node, "blocksize", 1), shape_of(data_input(node))
    if shape is None or None in shape[1:]:
        return None
    c, h, w = (int(size) for size in shape[1:] if size is not None)
    split = e.integers(0, c, h // b, b, w // b, b)
    blocks = e.op("Transpose", e.op("Reshape", data_input(node), split), perm=[0, 3, 5, 1, 2, 4])
    return e.op("Reshape", blocks, e.integers(0, c * b * b, h // b, w // b))
