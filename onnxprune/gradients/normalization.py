"""Normalizations the gradient engine cannot differentiate, expressed by operators it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.compositions import root
from onnxprune.gradients.slots import attribute, data_input, optional_input, rank_of
from onnxprune.model import shape_of
from onnxprune.ops.registry import lowers

__all__ = ["layer_norm", "root_mean_square"]


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


def layer_norm(
    e: Emitter, x: ir.Value, scale: ir.Value | None, shift: ir.Value | None, **attributes: Any
) -> tuple[ir.Value, ...]:
    """Normal values, means, inverse deviations; the engine has no gradient for fewer of them."""
    if shift is None:
        nothing = ir.Tensor(np.zeros(1, dtype=e.dtype.numpy()))
        shift = e.op("ConstantOfShape", e.op("Shape", scale), value=nothing)
    names = [f"{e.prefix}/{name}" for name in ("normal", "mean", "inverse_deviation")]
    return e.ops("LayerNormalization", x, scale, shift, outputs=names, **attributes)


def root_mean_square(
    e: Emitter, x: ir.Value, scale: ir.Value | None, axes: Sequence[int], epsilon: float
) -> ir.Value:
    """X / sqrt(mean(x^2) + epsilon) * scale."""
    square = e.reduce("ReduceMean", e.op("Mul", x, x), axes)
    deviation = e.op("Sqrt", e.op("Add", square, e.scalar(epsilon)))
    return e.op("Mul", e.op("Div", x, deviation), scale)


@lowers("BatchNormalization")
def _by_running_statistics(e: Emitter, node: ir.Node) -> ir.Value | None:
    """As scale and shift; the engine would turn it into one that normalizes by the batch."""
    _, scale, bias, mean, variance = node.inputs[:5]
    rank = rank_of(data_input(node))
    if rank is None or attribute(node, "training_mode", 0):
        return None
    epsilon = e.scalar(attribute(node, "epsilon", 1e-5))
    slope = e.op("Div", scale, e.op("Sqrt", e.op("Add", variance, epsilon)))
    shift = e.op("Sub", bias, e.op("Mul", mean, slope))
    return _affine(e, data_input(node), slope, shift, max(rank - 2, 0))


@lowers("InstanceNormalization")
def _instance_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = data_input(node)
    rank = rank_of(x)
    if rank is None or rank < 3:
        return None
    normal = _standardized(e, x, range(2, rank), attribute(node, "epsilon", 1e-5))
    return _affine(e, normal, optional_input(node, 1), optional_input(node, 2), rank - 2)


@lowers("GroupNormalization")
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


@lowers("RMSNormalization")
def _rms_normalization(e: Emitter, node: ir.Node) -> ir.Value | None:
    x = data_input(node)
    rank = rank_of(x)
    if rank is None:
        return None
    axes = range(attribute(node, "axis", -1) % rank, rank)
    epsilon = attribute(node, "epsilon", 1e-5)
    return root_mean_square(e, x, optional_input(node, 1), axes, epsilon)


@lowers("LayerNormalization")
def _layer_normalization(e: Emitter, node: ir.Node) -> Sequence[ir.Value] | None:
    """With all three inputs and outputs."""
    shift = optional_input(node, 2)
    if len(node.outputs) == 3 and all(value.name for value in node.outputs) and shift is not None:
        return None
    options = {name: attribute.value for name, attribute in node.attributes.items()}
    return layer_norm(e, data_input(node), optional_input(node, 1), shift, **options)


@lowers("MeanVarianceNormalization")
def _mean_variance_normalization(e: Emitter, node: ir.Node) -> ir.Value:
    """(x - mean) / (deviation + 1e-9), as the operator's function body has it."""
    x, axes = data_input(node), attribute(node, "axes", [0, 2, 3])
    centred = e.op("Sub", x, e.reduce("ReduceMean", x, axes))
    variance = e.reduce("ReduceMean", e.op("Mul", centred, centred), axes)
    return e.op("Div", centred, e.op("Add", root(e, variance), e.scalar(1e-9)))


@lowers("LpNormalization")
def _lp_normalization(e: Emitter, node: ir.Node) -> ir.Value:
    """X / norm, and 0 where that is 0."""
    axis, p = attribute(node, "axis", -1), attribute(node, "p", 2)
    x = data_input(node)
    if p == 1:
        norm = e.reduce("ReduceSum", e.op("Abs", x), (axis,))
    else:
        norm = e.reduce("ReduceL2", x, (axis,))
    nothing = e.op("Equal", norm, e.scalar(0.0))
    return e.op("Div", x, e.op("Where", nothing, e.scalar(1.0), norm))


@lowers("LRN")
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
