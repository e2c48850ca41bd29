"""Operators the gradient engine cannot differentiate, expressed by ones it can.

`LOWERINGS` maps an operator to a function `(emitter, node) -> value | None` that writes an equal
composition and returns what replaces the node's first output, or None to leave the node alone (it
is one the engine handles, or sizes it would need are unknown). The training copy alone is
rewritten; the user's graph never is. Which operators need it was found by
building the gradient of each alone with onnxruntime-training 1.19.2.

A kink is written with Where, not Max or Abs: at exactly 0, where untrained and dead units sit, the
engine's gradients of Relu and Abs are 0, while softplus or Elu have a slope there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.model import constant, shape_of
from onnxprune.training.attention import attention
from onnxprune.training.pooling import (
    attribute,
    average_pool,
    data_input,
    depth_to_space,
    explicit_pads,
    global_max_pool,
    optional_input,
    pad,
    rank_of,
    space_to_depth,
)

__all__ = ["LOWERINGS", "Lowering", "softplus"]

Lowering: TypeAlias = Callable[[Emitter, ir.Node], "ir.Value | None"]


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Axes of a reduction, >= 0; None when computed or relative to an unknown rank."""
    rank = rank_of(data_input(node))
    given = attribute(node, "axes", None)
    if given is None and optional_input(node, 1) is not None:
        given = constant(optional_input(node, 1))
        if given is None:
            return None
    if given is None or len(given) == 0:
        if attribute(node, "noop_with_empty_axes", 0) or rank is None:
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
    return softplus(e, data_input(node))


def _elu(e: Emitter, node: ir.Node) -> ir.Value:
    x, alpha = data_input(node), attribute(node, "alpha", 1.0)
    positive = _positive(e, x)
    below = e.op("Mul", _exp_of_negative_part(e, x, positive), e.scalar(alpha))
    return e.op("Where", positive, x, below)


def _selu(e: Emitter, node: ir.Node) -> ir.Value:
    alpha = attribute(node, "alpha", 1.67326319217681884765625)
    gamma = attribute(node, "gamma", 1.05070102214813232421875)
    x = data_input(node)
    positive = _positive(e, x)
    below = e.op("Mul", _exp_of_negative_part(e, x, positive), e.scalar(alpha))
    return e.op("Mul", e.op("Where", positive, x, below), e.scalar(gamma))


def _celu(e: Emitter, node: ir.Node) -> ir.Value:
    x, alpha = data_input(node), attribute(node, "alpha", 1.0)
    positive = _positive(e, x)
    scaled = e.op("Div", x, e.scalar(alpha))
    below = e.op("Mul", _exp_of_negative_part(e, scaled, positive), e.scalar(alpha))
    return e.op("Where", positive, x, below)


def _softsign(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    return e.op("Div", x, e.op("Add", e.op("Abs", x), e.scalar(1.0)))


def _hard_sigmoid_of(e: Emitter, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    line = e.op("Add", e.op("Mul", x, e.scalar(alpha)), e.scalar(beta))
    return e.op("Clip", line, e.scalar(0.0), e.scalar(1.0))


def _hard_sigmoid(e: Emitter, node: ir.Node) -> ir.Value:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return _hard_sigmoid_of(e, data_input(node), alpha, beta)


def _hard_swish(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    return e.op("Mul", x, _hard_sigmoid_of(e, x, 1 / 6, 0.5))


def _mish(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    return e.op("Mul", x, e.op("Tanh", softplus(e, x)))


def _thresholded_relu(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    above = e.op("Greater", x, e.scalar(attribute(node, "alpha", 1.0)))
    return e.op("Where", above, x, e.scalar(0.0))


def _prelu(e: Emitter, node: ir.Node) -> ir.Value:
    x = data_input(node)
    below = e.op("Less", x, e.scalar(0.0))
    return e.op("Where", below, e.op("Mul", x, optional_input(node, 1)), x)


# --- sums and extremes ---------------------------------------------------------------------------


def _chain(op_type: str) -> Lowering:
    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        if op_type == node.op_type and len(node.inputs) <= 2:
            return None
        total = data_input(node)
        for value in node.inputs[1:]:
            total = e.op(op_type, total, value)
        return total if e.nodes else e.op("Identity", total)

    return lower


def _mean(e: Emitter, node: ir.Node) -> ir.Value:
    total = data_input(node)
    for value in node.inputs[1:]:
        total = e.op("Add", total, value)
    return e.op("Mul", total, e.scalar(1 / len(node.inputs)))


def _extreme(*, largest: bool) -> Lowering:
    """ReduceMax and ReduceMin as one TopK per axis, whose gradient goes to one position."""

    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        axes = _axes(node)
        if axes is None:
            return None
        value = data_input(node)
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
        if attribute(node, "keepdims", 1):
            return value
        return e.op("Squeeze", value, e.integers(*axes))

    return lower


def _reduction(inner: str) -> Lowering:
    """ReduceSum of |x| or x * x."""

    def lower(e: Emitter, node: ir.Node) -> ir.Value | None:
        axes, x = _axes(node), data_input(node)
        if axes is None:
            return None
        terms = e.op("Abs", x) if inner == "Abs" else e.op("Mul", x, x)
        return e.reduce("ReduceSum", terms, axes, keepdims=bool(attribute(node, "keepdims", 1)))

    return lower


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
    x = data_input(node)
    rank = rank_of(x)
    if rank is None or rank < 3:
        return None
    normal = _standardized(e, x, range(2, rank), attribute(node, "epsilon", 1e-5))
    return _affine(e, normal, optional_input(node, 1), optional_input(node, 2), rank - 2)


def _group_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = data_input(node)
    rank = rank_of(x)
    if rank is None:
        return None
    groups = e.op("Reshape", x, e.integers(0, attribute(node, "num_groups", 1), -1))
    normal = _standardized(e, groups, (2,), attribute(node, "epsilon", 1e-5))
    scale, bias = optional_input(node, 1), optional_input(node, 2)
    if e.opset < 21:  # one scale per group, not per channel
        return e.op("Reshape", _affine(e, normal, scale, bias, 1), e.op("Shape", x))
    return _affine(e, e.op("Reshape", normal, e.op("Shape", x)), scale, bias, rank - 2)


def _rms_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = data_input(node)
    rank = rank_of(x)
    if rank is None:
        return None
    axes = range(attribute(node, "axis", -1) % rank, rank)
    square = e.reduce("ReduceMean", e.op("Mul", x, x), axes)
    root = e.op("Sqrt", e.op("Add", square, e.scalar(attribute(node, "epsilon", 1e-5))))
    return e.op("Mul", e.op("Div", x, root), optional_input(node, 1))


def _layer_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    """With all three outputs: the engine has no gradient for fewer."""
    if len(node.outputs) == 3 and all(value.name for value in node.outputs):
        return None
    names = [f"{e.prefix}/normal", f"{e.prefix}/mean", f"{e.prefix}/inverse_deviation"]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return e.ops("LayerNormalization", *node.inputs, outputs=names, **attributes)[0]


def _lp_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    axis, p = attribute(node, "axis", -1), attribute(node, "p", 2)
    x = data_input(node)
    if p == 1:
        return e.op("Div", x, e.reduce("ReduceSum", e.op("Abs", x), (axis,)))
    return e.op("Div", x, e.reduce("ReduceL2", x, (axis,)))


def _lrn(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Divide: x / (bias + alpha / size * sum of x^2 over `size` channels) ^ beta."""
    x, size = data_input(node), int(attribute(node, "size", 1))
    shape = shape_of(x)
    if shape is None or shape[1] is None:
        return None
    # (N * C, HW) -> (N, 1, C, HW): a convolution over channels sums the window.
    flat = e.op("Reshape", e.op("Mul", x, x), e.integers(0, 1, shape[1], -1))
    kernel = e.constant(np.ones((1, 1, size, 1), dtype=e.dtype.numpy()))
    pads = [(size - 1) // 2, 0, size // 2, 0]
    window = e.op("Reshape", e.op("Conv", flat, kernel, pads=pads), e.op("Shape", x))
    alpha = e.scalar(attribute(node, "alpha", 1e-4) / size)
    base = e.op("Add", e.op("Mul", window, alpha), e.scalar(attribute(node, "bias", 1.0)))
    return e.op("Div", x, e.op("Pow", base, e.scalar(attribute(node, "beta", 0.75))))


LOWERINGS: Mapping[str, Lowering] = {
    "Attention": attention,
    "AveragePool": average_pool,
    "Celu": _celu,
    "Conv": explicit_pads,
    "DepthToSpace": depth_to_space,
    "Elu": _elu,
    "GlobalMaxPool": global_max_pool,
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
    "Pad": pad,
    "RMSNormalization": _rms_normalization,
    "ReduceL1": _reduction("Abs"),
    "ReduceMax": _extreme(largest=True),
    "ReduceMin": _extreme(largest=False),
    "ReduceSumSquare": _reduction("Mul"),
    "Selu": _selu,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "SpaceToDepth": space_to_depth,
    "Sum": _chain("Add"),
    "ThresholdedRelu": _thresholded_relu,
}
