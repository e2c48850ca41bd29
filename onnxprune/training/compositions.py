"""Operators the gradient engine cannot differentiate, expressed by ones it can.

`LOWERINGS` maps an operator to a function `(emitter, node) -> value | None` that writes an equal
composition and returns what replaces the node's first output, or None to leave the node alone (it
is one the engine handles, or sizes it would need are unknown). The training copy alone is
rewritten; the user's graph never is. Which operators need it was measured: ORT_TRAINING.md.

A kink is written with Where, not Max or Abs: at exactly 0, where untrained and dead units sit, the
engine's gradients of Relu and Abs are 0, while softplus or Elu have a slope there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.model import constant, shape_of

__all__ = ["LOWERINGS", "Lowering", "softplus"]

Lowering: TypeAlias = Callable[[Emitter, ir.Node], "ir.Value | None"]


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _input(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _data(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _rank(value: ir.Value) -> int | None:
    shape = shape_of(value)
    return None if shape is None else len(shape)


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes of a reduction, >= 0; None when computed or relative to an unknown rank."""
    rank = _rank(_data(node))
    given = _attribute(node, "axes", None)
    if given is None and _input(node, 1) is not None:
        given = constant(_input(node, 1))
        if given is None:
            return None
    if given is None or len(given) == 0:
        if _attribute(node, "noop_with_empty_axes", 0) or rank is None:
            return None
        return tuple(range(rank))
    if rank is None and min(given) < 0:
        return None
    return tuple(sorted(int(axis) % rank if rank is not None else int(axis) for axis in given))


# --- activations ---------------------------------------------------------------------------------


def _positive(e: Emitter, x: ir.Value) -> ir.Value:
    return e.op("Greater", x, e.scalar(0.0))


def _exp_of_negative_part(e: Emitter, x: ir.Value, positive: ir.Value) -> ir.Value:
    """exp(min(x, 0)) - 1, with slope 1 at 0."""
    return e.op("Sub", e.op("Exp", e.op("Where", positive, e.scalar(0.0), x)), e.scalar(1.0))


def softplus(e: Emitter, x: ir.Value) -> ir.Value:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)), which never overflows."""
    positive = _positive(e, x)
    minus_abs = e.op("Where", positive, e.op("Neg", x), x)
    tail = e.op("Log", e.op("Add", e.op("Exp", minus_abs), e.scalar(1.0)))
    return e.op("Add", e.op("Where", positive, x, e.scalar(0.0)), tail)


def _softplus(e: Emitter, node: ir.Node) -> ir.Value:
    return softplus(e, _data(node))


def _elu(e: Emitter, node: ir.Node) -> ir.Value:
    x, alpha = _data(node), _attribute(node, "alpha", 1.0)
    positive = _positive(e, x)
    below = e.op("Mul", _exp_of_negative_part(e, x, positive), e.scalar(alpha))
    return e.op("Where", positive, x, below)


def _selu(e: Emitter, node: ir.Node) -> ir.Value:
    alpha = _attribute(node, "alpha", 1.67326319217681884765625)
    gamma = _attribute(node, "gamma", 1.05070102214813232421875)
    x = _data(node)
    positive = _positive(e, x)
    below = e.op("Mul", _exp_of_negative_part(e, x, positive), e.scalar(alpha))
    return e.op("Mul", e.op("Where", positive, x, below), e.scalar(gamma))


def _celu(e: Emitter, node: ir.Node) -> ir.Value:
    x, alpha = _data(node), _attribute(node, "alpha", 1.0)
    positive = _positive(e, x)
    scaled = e.op("Div", x, e.scalar(alpha))
    below = e.op("Mul", _exp_of_negative_part(e, scaled, positive), e.scalar(alpha))
    return e.op("Where", positive, x, below)


def _softsign(e: Emitter, node: ir.Node) -> ir.Value:
    x = _data(node)
    return e.op("Div", x, e.op("Add", e.op("Abs", x), e.scalar(1.0)))


def _hard_sigmoid_of(e: Emitter, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    line = e.op("Add", e.op("Mul", x, e.scalar(alpha)), e.scalar(beta))
    return e.op("Clip", line, e.scalar(0.0), e.scalar(1.0))


def _hard_sigmoid(e: Emitter, node: ir.Node) -> ir.Value:
    alpha, beta = _attribute(node, "alpha", 0.2), _attribute(node, "beta", 0.5)
    return _hard_sigmoid_of(e, _data(node), alpha, beta)


def _hard_swish(e: Emitter, node: ir.Node) -> ir.Value:
    x = _data(node)
    return e.op("Mul", x, _hard_sigmoid_of(e, x, 1 / 6, 0.5))


def _mish(e: Emitter, node: ir.Node) -> ir.Value:
    x = _data(node)
    return e.op("Mul", x, e.op("Tanh", softplus(e, x)))


def _thresholded_relu(e: Emitter, node: ir.Node) -> ir.Value:
    x = _data(node)
    above = e.op("Greater", x, e.scalar(_attribute(node, "alpha", 1.0)))
    return e.op("Where", above, x, e.scalar(0.0))


def _prelu(e: Emitter, node: ir.Node) -> ir.Value:
    x = _data(node)
    below = e.op("Less", x, e.scalar(0.0))
    return e.op("Where", below, e.op("Mul", x, _input(node, 1)), x)


# --- sums and extremes ---------------------------------------------------------------------------


def _chain(op_type: str) -> Lowering:
    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        if op_type == node.op_type and len(node.inputs) <= 2:
            return None
        total = _data(node)
        for value in node.inputs[1:]:
            total = e.op(op_type, total, value)
        return total if e.nodes else e.op("Identity", total)

    return lower


def _mean(e: Emitter, node: ir.Node) -> ir.Value:
    total = _data(node)
    for value in node.inputs[1:]:
        total = e.op("Add", total, value)
    return e.op("Mul", total, e.scalar(1 / len(node.inputs)))


def _extreme(*, largest: bool) -> Lowering:
    """ReduceMax and ReduceMin as one TopK per axis, whose gradient goes to one position."""

    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        axes = _axes(node)
        if axes is None:
            return None
        value = _data(node)
        for axis in axes:
            name = f"{e.prefix}/top_{axis}"
            value, _ = e.ops(
                "TopK",
                value,
                e.integers(1),
                outputs=(name, f"{name}_index"),
                axis=axis,
                largest=int(largest),
            )
        if _attribute(node, "keepdims", 1):
            return value
        return e.op("Squeeze", value, e.integers(*axes))

    return lower


def _reduction(inner: str) -> Lowering:
    """ReduceSum of |x| or x * x."""

    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        axes, x = _axes(node), _data(node)
        if axes is None:
            return None
        terms = e.op("Abs", x) if inner == "Abs" else e.op("Mul", x, x)
        return e.reduce("ReduceSum", terms, axes, keepdims=bool(_attribute(node, "keepdims", 1)))

    return lower


def _global_max_pool(e: Emitter, node: ir.Node) -> ir.Value | None:
    shape = shape_of(_data(node))
    if shape is None:
        return None
    sizes = [size for size in shape[2:] if size is not None]
    if len(sizes) == len(shape) - 2:
        return e.op("MaxPool", _data(node), kernel_shape=sizes)
    flat = e.op("Reshape", _data(node), e.integers(0, 0, -1))
    top, _ = e.ops("TopK", flat, e.integers(1), outputs=(f"{e.prefix}/top", f"{e.prefix}/at"))
    return e.op("Unsqueeze", top, e.integers(*range(3, len(shape)))) if len(shape) > 3 else top


# --- normalization -------------------------------------------------------------------------------


def _standardized(e: Emitter, x: ir.Value, axes: Sequence[int], epsilon: float) -> ir.Value:
    """(x - mean) / sqrt(variance + epsilon) over `axes`."""
    centred = e.op("Sub", x, e.reduce("ReduceMean", x, axes))
    variance = e.reduce("ReduceMean", e.op("Mul", centred, centred), axes)
    return e.op("Div", centred, e.op("Sqrt", e.op("Add", variance, e.scalar(epsilon))))


def _affine(
    e: Emitter, x: ir.Value, scale: ir.Value | None, bias: ir.Value | None, trailing: int
) -> ir.Value:
    """Scale and shift: x * scale + bias, both (C,) vectors with `trailing` axes behind theirs."""
    axes = e.integers(*range(1, 1 + trailing))
    scaled = e.op("Mul", x, e.op("Unsqueeze", scale, axes) if trailing else scale)
    return e.op("Add", scaled, e.op("Unsqueeze", bias, axes) if trailing else bias)


def _instance_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = _data(node)
    rank = _rank(x)
    if rank is None or rank < 3:
        return None
    normal = _standardized(e, x, range(2, rank), _attribute(node, "epsilon", 1e-5))
    return _affine(e, normal, _input(node, 1), _input(node, 2), rank - 2)


def _group_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = _data(node)
    rank = _rank(x)
    if rank is None:
        return None
    groups = e.op("Reshape", x, e.integers(0, _attribute(node, "num_groups", 1), -1))
    normal = _standardized(e, groups, (2,), _attribute(node, "epsilon", 1e-5))
    scale, bias = _input(node, 1), _input(node, 2)
    if e.opset < 21:  # one scale per group, not per channel
        return e.op("Reshape", _affine(e, normal, scale, bias, 1), e.op("Shape", x))
    return _affine(e, e.op("Reshape", normal, e.op("Shape", x)), scale, bias, rank - 2)


def _rms_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = _data(node)
    rank = _rank(x)
    if rank is None:
        return None
    axes = range(_attribute(node, "axis", -1) % rank, rank)
    square = e.reduce("ReduceMean", e.op("Mul", x, x), axes)
    root = e.op("Sqrt", e.op("Add", square, e.scalar(_attribute(node, "epsilon", 1e-5))))
    return e.op("Mul", e.op("Div", x, root), _input(node, 1))


def _layer_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    """With all three outputs: the engine has no gradient for fewer."""
    if len(node.outputs) == 3 and all(value.name for value in node.outputs):
        return None
    names = [f"{e.prefix}/normal", f"{e.prefix}/mean", f"{e.prefix}/inverse_deviation"]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return e.ops("LayerNormalization", *node.inputs, outputs=names, **attributes)[0]


def _lp_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    axis, p = _attribute(node, "axis", -1), _attribute(node, "p", 2)
    x = _data(node)
    if p == 1:
        return e.op("Div", x, e.reduce("ReduceSum", e.op("Abs", x), (axis,)))
    return e.op("Div", x, e.reduce("ReduceL2", x, (axis,)))


def _lrn(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Divide: x / (bias + alpha / size * sum of x^2 over `size` channels) ^ beta."""
    x, size = _data(node), int(_attribute(node, "size", 1))
    shape = shape_of(x)
    if shape is None or shape[1] is None:
        return None
    # (N * C, HW) -> (N, 1, C, HW): a convolution over channels sums the window.
    flat = e.op("Reshape", e.op("Mul", x, x), e.integers(0, 1, shape[1], -1))
    kernel = e.constant(np.ones((1, 1, size, 1), dtype=e.dtype.numpy()))
    pads = [(size - 1) // 2, 0, size // 2, 0]
    window = e.op("Reshape", e.op("Conv", flat, kernel, pads=pads), e.op("Shape", x))
    alpha = e.scalar(_attribute(node, "alpha", 1e-4) / size)
    base = e.op("Add", e.op("Mul", window, alpha), e.scalar(_attribute(node, "bias", 1.0)))
    return e.op("Div", x, e.op("Pow", base, e.scalar(_attribute(node, "beta", 0.75))))


# --- pooling and layout --------------------------------------------------------------------------


def _pool_pads(node: ir.Node, sizes: Sequence[int | None], kernel: list[int]) -> list[int] | None:
    """Explicit pads (begins, then ends), grown at the end where ceil_mode asks for it."""
    rank = len(kernel)
    strides = _attribute(node, "strides", [1] * rank)
    dilations = _attribute(node, "dilations", [1] * rank)
    auto = _attribute(node, "auto_pad", "NOTSET")
    begins, ends = [], []
    given = list(_attribute(node, "pads", [0] * (2 * rank)))
    for axis in range(rank):
        size, stride = sizes[axis], strides[axis]
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if size is None:
                return None
            total = max((math.ceil(size / stride) - 1) * stride + extent - size, 0)
            small, large = total // 2, total - total // 2
            begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
        else:
            begin, end = (given[axis], given[rank + axis]) if auto == "NOTSET" else (0, 0)
            if _attribute(node, "ceil_mode", 0):
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
    rank = len(kernel)
    strides = _attribute(node, "strides", [1] * rank)
    dilations = _attribute(node, "dilations", [1] * rank)
    given = list(_attribute(node, "pads", [0] * (2 * rank)))
    counts = np.ones((), dtype=np.float64)
    for axis in range(rank):
        padded = np.zeros(pads[axis] + sizes[axis] + pads[rank + axis])
        inside = slice(pads[axis], pads[axis] + sizes[axis])
        if _attribute(node, "count_include_pad", 0):
            inside = slice(0, pads[axis] + sizes[axis] + given[rank + axis])
        padded[inside] = 1
        extent = (kernel[axis] - 1) * dilations[axis] + 1
        starts = range(0, len(padded) - extent + 1, strides[axis])
        row = [padded[start : start + extent : dilations[axis]].sum() for start in starts]
        counts = np.multiply.outer(counts, np.array(row))
    share: np.ndarray[Any, np.dtype[np.float64]] = math.prod(kernel) / counts
    return share


def _average_pool(e: Emitter, node: ir.Node) -> ir.Value | None:
    """GlobalAveragePool where one window covers the input, else a depthwise convolution.

    The engine's own gradient of AveragePool kills the process when the batch is symbolic.
    """
    x, kernel = _data(node), [int(size) for size in _attribute(node, "kernel_shape", [])]
    shape = shape_of(x)
    if shape is None or shape[1] is None:
        return None
    sizes, channels = shape[2:], shape[1]
    pads = _pool_pads(node, sizes, kernel)
    if pads is None:
        return None
    if list(sizes) == kernel and not any(pads):
        return e.op("GlobalAveragePool", x)
    weight = np.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=e.dtype.numpy())
    options: dict[str, Any] = {
        name: list(_attribute(node, name, None))
        for name in ("strides", "dilations")
        if _attribute(node, name, None) is not None
    }
    pooled = e.op("Conv", x, e.constant(weight), group=channels, pads=pads, **options)
    if not any(pads):
        return pooled
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return pooled if _attribute(node, "count_include_pad", 0) else None
    share = _share_of_input(node, known, kernel, pads)
    if np.all(share == 1):
        return pooled
    return e.op("Mul", pooled, e.constant(share.astype(e.dtype.numpy())[None, None]))


def _pad(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Reflect, edge and wrap padding as one Gather per padded axis."""
    mode = _attribute(node, "mode", "constant")
    shape, pads = shape_of(_data(node)), constant(_input(node, 1))
    if mode == "constant" or shape is None or pads is None:
        return None
    given = constant(_input(node, 3))
    axes = list(range(len(shape))) if given is None else [int(axis) for axis in given]
    value = _data(node)
    for place, axis in enumerate(axes):
        before, after = int(pads[place]), int(pads[len(axes) + place])
        size = shape[axis]
        if before == after == 0:
            continue
        if size is None or min(before, after) < 0:
            return None
        index = _padded_index(size, before, after, mode)
        value = e.op("Gather", value, e.constant(index), axis=axis)
    return value if e.nodes else None


def _padded_index(size: int, before: int, after: int, mode: str) -> np.ndarray[Any, Any]:
    index = np.arange(size, dtype=np.int64)
    if mode == "reflect":
        return np.pad(index, (before, after), mode="reflect")
    return np.pad(index, (before, after), mode="wrap" if mode == "wrap" else "edge")


def _depth_to_space(e: Emitter, node: ir.Node) -> ir.Value | None:
    b, shape = _attribute(node, "blocksize", 1), shape_of(_data(node))
    if shape is None or None in shape[1:]:
        return None
    c, h, w = (int(size) for size in shape[1:] if size is not None)
    depth = c // (b * b)
    if _attribute(node, "mode", "DCR") == "DCR":
        split, perm = (0, b, b, depth, h, w), [0, 3, 4, 1, 5, 2]
    else:
        split, perm = (0, depth, b, b, h, w), [0, 1, 4, 2, 5, 3]
    blocks = e.op("Transpose", e.op("Reshape", _data(node), e.integers(*split)), perm=perm)
    return e.op("Reshape", blocks, e.integers(0, depth, h * b, w * b))


def _space_to_depth(e: Emitter, node: ir.Node) -> ir.Value | None:
    b, shape = _attribute(node, "blocksize", 1), shape_of(_data(node))
    if shape is None or None in shape[1:]:
        return None
    c, h, w = (int(size) for size in shape[1:] if size is not None)
    split = e.integers(0, c, h // b, b, w // b, b)
    blocks = e.op("Transpose", e.op("Reshape", _data(node), split), perm=[0, 3, 5, 1, 2, 4])
    return e.op("Reshape", blocks, e.integers(0, c * b * b, h // b, w // b))


LOWERINGS: Mapping[str, Lowering] = {
    "AveragePool": _average_pool,
    "Celu": _celu,
    "DepthToSpace": _depth_to_space,
    "Elu": _elu,
    "GlobalMaxPool": _global_max_pool,
    "GroupNormalization": _group_normalization,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
    "Max": _chain("Max"),
    "Mean": _mean,
    "Min": _chain("Min"),
    "Mish": _mish,
    "PRelu": _prelu,
    "Pad": _pad,
    "RMSNormalization": _rms_normalization,
    "ReduceL1": _reduction("Abs"),
    "ReduceMax": _extreme(largest=True),
    "ReduceMin": _extreme(largest=False),
    "ReduceSumSquare": _reduction("Mul"),
    "Selu": _selu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "SpaceToDepth": _space_to_depth,
    "Sum": _chain("Add"),
    "ThresholdedRelu": _thresholded_relu,
}
