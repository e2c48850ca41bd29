"""ONNX Runtime's fused operators, taken apart into the standard ones they were made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.elementwise import gelu, tanh_gelu
from onnxprune.gradients.normalization import layer_norm, root_mean_square
from onnxprune.gradients.slots import (
    attribute,
    attributes,
    data_input,
    optional_input,
    rank_of,
    wanted,
)
from onnxprune.ops.registry import lowers

__all__: list[str] = []

_VENDOR = "com.microsoft"
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _activated(e: Emitter, x: ir.Value, name: str, numbers: Sequence[float]) -> ir.Value | None:
    """What FusedConv and FusedGemm apply last; `numbers` are alpha and beta."""
    if not name:
        return x
    if name in ("Relu", "Tanh", "Sigmoid", "Softplus", "Softsign"):
        return e.op(name, x)
    if name in ("LeakyRelu", "Elu", "ThresholdedRelu") and numbers:
        return e.op(name, x, alpha=numbers[0])
    if name == "HardSigmoid" and len(numbers) == 2:
        return e.op(name, x, alpha=numbers[0], beta=numbers[1])
    if name == "Clip" and len(numbers) == 2:
        return e.op(name, x, e.scalar(numbers[0]), e.scalar(numbers[1]))
    return None


@lowers("FusedConv", domain=_VENDOR)
def fused_conv(e: Emitter, node: ir.Node) -> ir.Value | None:
    """activation(Conv(x, w, b) + z)."""
    y = e.op("Conv", *node.inputs[:3], **attributes(node, *_CONV))
    if optional_input(node, 3) is not None:
        y = e.op("Add", y, node.inputs[3])
    name = attribute(node, "activation", "")
    return _activated(e, y, name, attribute(node, "activation_params", ()))


@lowers("FusedGemm", domain=_VENDOR)
def fused_gemm(e: Emitter, node: ir.Node) -> ir.Value | None:
    """activation(alpha A' B' + beta C)."""
    y = e.op("Gemm", *node.inputs[:3], **attributes(node, "alpha", "beta", "transA", "transB"))
    numbers = attributes(node, "activation_alpha", "activation_beta").values()
    return _activated(e, y, attribute(node, "activation", ""), list(numbers))


@lowers("FusedMatMul", domain=_VENDOR)
def fused_matmul(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Alpha A' B'."""
    operands = []
    for side, value in zip("AB", node.inputs, strict=True):
        rank = None if value is None else rank_of(value)
        if rank is None:
            return None
        order = list(range(rank))
        if rank > 2 and attribute(node, f"transBatch{side}", 0):
            order = [*order[1:-1], 0, order[-1]]
        if rank > 1 and attribute(node, f"trans{side}", 0):
            order[-2:] = order[-1], order[-2]
        same = order == sorted(order)
        operands.append(value if same else e.op("Transpose", value, perm=order))
    y = e.op("MatMul", *operands)
    alpha = attribute(node, "alpha", 1.0)
    return y if alpha == 1 else e.op("Mul", y, e.scalar(alpha))


@lowers("BiasGelu", "Gelu", domain=_VENDOR)
def bias_gelu(e: Emitter, node: ir.Node) -> ir.Value:
    """Gelu of x, or of x + b."""
    return gelu(e, _with_bias(e, node))


@lowers("FastGelu", domain=_VENDOR)
def fast_gelu(e: Emitter, node: ir.Node) -> ir.Value:
    """The approximation by tanh."""
    return tanh_gelu(e, _with_bias(e, node))


@lowers("QuickGelu", domain=_VENDOR)
def quick_gelu(e: Emitter, node: ir.Node) -> ir.Value:
    """X * sigmoid(alpha x)."""
    x, alpha = data_input(node), attribute(node, "alpha", 1.702)
    return e.op("Mul", x, e.op("Sigmoid", e.op("Mul", x, e.scalar(alpha))))


def _with_bias(e: Emitter, node: ir.Node) -> ir.Value:
    bias = optional_input(node, 1)
    return data_input(node) if bias is None else e.op("Add", data_input(node), bias)


# --- normalizations ------------------------------------------------------------------------------


@lowers("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_VENDOR)
def skip_layer_norm(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """LayerNormalization of x + skip + b, or its form without means; the sum is the last output."""
    simple = "Simplified" in node.op_type
    total = e.op("Add", data_input(node), node.inputs[1])
    bias = optional_input(node, 3 if simple else 4)
    total = total if bias is None else e.op("Add", total, bias)
    epsilon = attribute(node, "epsilon", 1e-12)
    scale = optional_input(node, 2)
    shown = e.op("Identity", total)
    if simple:
        return [root_mean_square(e, total, scale, (-1,), epsilon), None, None, shown]
    shift = optional_input(node, 3)
    normal, mean, inverse = layer_norm(e, total, scale, shift, axis=-1, epsilon=epsilon)
    return [normal, mean, inverse, shown]


@lowers("SimplifiedLayerNormalization")
@lowers("SimplifiedLayerNormalization", domain=_VENDOR)
def simplified_layer_norm(e: Emitter, node: ir.Node) -> ir.Value | None:
    """X / sqrt(mean(x^2) + epsilon) * scale."""
    x = data_input(node)
    rank = rank_of(x)
    axis = attribute(node, "axis", -1)
    if (rank is None and axis != -1) or any(wanted(value) for value in node.outputs[1:]):
        return None
    axes = (-1,) if rank is None else tuple(range(axis % rank, rank))
    epsilon = attribute(node, "epsilon", 1e-5)
    return root_mean_square(e, x, optional_input(node, 1), axes, epsilon)


@lowers("EmbedLayerNormalization", domain=_VENDOR)
def embed_layer_norm(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """LayerNormalization of words + positions + segments; lengths by the mask; the sum."""
    ids, segments, words, positions, kinds, scale, shift, mask, places = (
        optional_input(node, slot) for slot in range(9)
    )
    total = e.op("Gather", words, ids)
    if places is not None:
        place = e.op("Gather", positions, places)
    else:
        steps = e.op("Gather", e.op("Shape", ids), e.integers(1))
        zero, one = e.integers(0), e.integers(1)
        place = e.op("Unsqueeze", e.op("Slice", positions, zero, steps, zero, one), zero)
    total = e.op("Add", total, place)
    if segments is not None and kinds is not None:
        total = e.op("Add", total, e.op("Gather", kinds, segments))
    epsilon = attribute(node, "epsilon", 1e-12)
    normal = layer_norm(e, total, scale, shift, axis=-1, epsilon=epsilon)[0]
    return [normal, _lengths(e, node, ids, mask), e.op("Identity", total)]


def _lengths(
    e: Emitter, node: ir.Node, ids: ir.Value | None, mask: ir.Value | None
) -> ir.Value | None:
    """(N,) int32: how many entries of each row of the mask are set; 0 without one."""
    if len(node.outputs) < 2 or not wanted(node.outputs[1]):
        return None
    if mask is not None:
        counts = e.reduce("ReduceSum", mask, [1], keepdims=False)
        return e.op("Cast", counts, to=ir.DataType.INT32)
    nothing = ir.Tensor(np.zeros(1, dtype=np.int32))
    rows = e.op("Gather", e.op("Shape", ids), e.integers(0))
    return e.op("ConstantOfShape", rows, value=nothing)
