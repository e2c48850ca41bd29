"""Convolutions of a gradient graph in the blocked layout of the CPU's own kernels.

The runtime moves a convolution into that layout (NCHW16c, or 8 on older processors) only when its
weight is a constant, which it is not while it trains. Here the same nodes are written around a
weight that is reordered in the graph, so that they compute what they did, several times faster
where the convolution is depthwise. A part of
`passes`; nothing of it is for other devices.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import ModelError
from onnxprune.gradients.slots import attribute
from onnxprune.model import constant, load
from onnxprune.runtime.session import optimized

__all__ = ["DOMAIN", "block_size", "conv", "weight_gradient"]

DOMAIN = "com.microsoft.nchwc"
_LARGEST_IMAGE = 100  # positions; above, the tall image does not stay in the cache


@functools.cache
def block_size() -> int | None:
    """Channels per block on this processor; None where the runtime has no such kernels.

    Found by letting the runtime optimize a convolution of few channels, which it fills up.
    """
    few = 4
    kernel, image = (few, few, 3, 3), ir.Shape((1, few, 8, 8))
    kind = ir.TensorType(ir.DataType.FLOAT)
    tensor = ir.Tensor(np.ones(kernel, np.float32), name="w")
    w = ir.Value(name="w", const_value=tensor, type=kind, shape=ir.Shape(kernel))
    x = ir.Value(name="x", type=kind, shape=image)
    node = ir.node("Conv", [x, w], attributes={"pads": [1, 1, 1, 1]})
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, image
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 17}, name="probe")
    try:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            file = Path(folder) / "optimized.onnx"
            optimized(ir.Model(graph, ir_version=8), file)
            made = load(file, check=False)
    except (
        OSError,
        ModelError,
    ):  # no folder for temporary files: as on a processor without such kernels
        return None
    for node in made.graph:
        filled = constant(node.inputs[1]) if node.op_type == "Conv" else None
        if node.domain == DOMAIN and filled is not None:
            return int(filled.shape[0])
    return None


def _kernel(node: ir.Node, w: ir.Value | None) -> tuple[int, ...] | None:
    """The static shape of the weight of a 2-D convolution with explicit pads; else None."""
    if w is None or w.shape is None or not w.shape.is_static() or len(w.shape) != 4:
        return None
    if (
        w.dtype not in (None, ir.DataType.FLOAT)
        or attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    ):
        return None
    return tuple(int(size) for size in w.shape.numpy())


def _is_depthwise(node: ir.Node, shape: Sequence[int], block: int) -> bool:
    group = attribute(node, "group", 1)
    return group > 1 and list(shape[:2]) == [group, 1] and group % block == 0


def conv(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """A convolution, forward or as an input gradient: depthwise or with a kernel larger than 1x1.

    One thread, plain against blocked: depthwise 3x3, batch 8, 96 channels 32x32 1.45 and 0.92 ms,
    384 channels 8x8 0.68 and 0.08; dense 3x3, batch 32, 16 channels 32x32 1.69 and 1.46, 32
    channels 16x16 1.29 and 0.93, 64 channels 8x8 1.04 and 0.74. With 1x1 kernels it loses (0.33 and
    0.51).
    """
    block, x, w = block_size(), node.inputs[0], node.inputs[1]
    shape = _kernel(node, w)
    if block is None or shape is None or x is None or w is None:
        return ()
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    group = attribute(node, "group", 1)
    dense = group == 1 and not (shape[0] % block or shape[1] % block) and math.prod(shape[2:]) > 1
    if not dense and not _is_depthwise(node, shape, block):
        return ()
    return (_blocked_conv(e, x, w, shape, block, bias, **_geometry(node), group=group),)


def _geometry(node: ir.Node) -> dict[str, list[int]]:
    return {
        "pads": list(attribute(node, "pads", [0, 0, 0, 0])),
        "strides": list(attribute(node, "strides", [1, 1])),
        "dilations": list(attribute(node, "dilations", [1, 1])),
    }


def _blocked_conv(
    e: Emitter,
    x: ir.Value,
    w: ir.Value,
    shape: Sequence[int],
    block: int,
    bias: ir.Value | None = None,
    *,
    group: int,
    **geometry: list[int],
) -> ir.Value:
    inputs = [e.op("ReorderInput", x, domain=DOMAIN), _reordered(e, w, shape, block)]
    inputs += [] if bias is None else [bias]
    attributes: dict[str, Any] = {**geometry, "group": group}
    y = e.op("Conv", *inputs, domain=DOMAIN, **attributes)
    return e.op("ReorderOutput", y, domain=DOMAIN, channels=shape[0])


def _reordered(e: Emitter, w: ir.Value, shape: Sequence[int], block: int) -> ir.Value:
    """A weight (O, I, kH, kW) as the kernel reads it: blocks of inputs within blocks of outputs."""
    out, inner, *kernel = shape
    if inner == 1:
        split = e.op("Reshape", w, e.integers(out // block, block, 1, *kernel))
        turned = e.op("Transpose", split, perm=[0, 2, 3, 4, 1])
    else:
        sizes = (out // block, block, inner // block, block, *kernel)
        split = e.op("Reshape", w, e.integers(*sizes))
        turned = e.op("Transpose", split, perm=[0, 2, 4, 5, 3, 1])
    return e.op("Reshape", turned, e.integers(*shape))


def weight_gradient(e: Emitter, node: ir.Node) -> ir.Value | None:
    """DW of a depthwise convolution: the convolution of X with dY as its weight.

    dW[c, i, j] = sum over n, h, w of dY[n, c, h, w] X[n, c, h s + i, w s + j], with X padded

    All examples stand in one tall image, with rows of zeros between those of dY, so that the number
    of examples is a size and no attribute. Strides become dilations. ConvGrad against this, one
    thread, batch 32: 384 channels 8x8 8.5 and 3.0 ms, 960 channels 4x4 13.9 and 3.3; over larger
    images it loses (192 channels 16x16 6.7 and 17.6).
    """
    slope, x, w = node.inputs[:3]
    block, shape = block_size(), _kernel(node, w)
    if block is None or shape is None or not _is_depthwise(node, shape, block):
        return None
    sizes, outputs = _spatial(x), _spatial(slope)
    geometry = _geometry(node)
    if sizes is None or outputs is None or geometry["dilations"] != [1, 1]:
        return None
    if math.prod(sizes) > _LARGEST_IMAGE:
        return None
    channels, kernel, strides = shape[0], shape[2:], geometry["strides"]
    pads = geometry["pads"]
    rows = -(
        -max(sizes[0] + pads[0] + pads[2], (outputs[0] - 1) * strides[0] + kernel[0]) // strides[0]
    )
    tall = rows * strides[0]  # rows of X per example
    wide = (outputs[1] - 1) * strides[1] + kernel[1]
    ends = (tall - sizes[0] - pads[0], wide - sizes[1] - pads[1])
    image = _tall(e, x, (pads[0], pads[1], *ends), channels, wide)
    weight = _tall(e, slope, (0, 0, rows - outputs[0], 0), channels, outputs[1])
    # The rows of zeros after the last example would leave a single position.
    weight = (
        e.op("Slice", weight, e.integers(0), e.integers(outputs[0] - rows), e.integers(2))
        if rows > outputs[0]
        else weight
    )
    filters = e.op("ReorderInput", weight, domain=DOMAIN)
    sizes_of = e.op("Slice", e.op("Shape", weight), e.integers(2), e.integers(4))
    filters = e.op("Reshape", filters, e.op("Concat", e.integers(channels, 1), sizes_of, axis=0))
    y = e.op(
        "Conv",
        e.op("ReorderInput", image, domain=DOMAIN),
        filters,
        domain=DOMAIN,
        group=channels,
        dilations=strides,
    )
    y = e.op("ReorderOutput", y, domain=DOMAIN, channels=channels)
    y = e.op("Slice", y, e.integers(0, 0), e.integers(*kernel), e.integers(2, 3))
    return e.op("Reshape", y, e.integers(*shape))


def _spatial(value: ir.Value | None) -> tuple[int, int] | None:
    """Static height and width of (N, C, H, W)."""
    if value is None or value.shape is None or len(value.shape) != 4:
        return None
    height, width = value.shape[2], value.shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _tall(
    e: Emitter, x: ir.Value | None, pads: Sequence[int], channels: int, width: int
) -> ir.Value:
    """(N, C, H, W), padded by (top, left, bottom, right), as (1, C, N H, W)."""
    top, left, bottom, right = pads
    if any(pads):
        x = e.op("Pad", x, e.integers(0, 0, top, left, 0, 0, bottom, right))
    across = e.op("Transpose", x, perm=[1, 0, 2, 3])
    return e.op("Reshape", across, e.integers(1, channels, -1, width))
