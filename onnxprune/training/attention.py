"""Attention-23 as MatMul and Softmax; a part of `compositions`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.model import shape_of
from onnxprune.ops.registry import lowers
from onnxprune.training.slots import attribute, optional_input

__all__: list[str] = []


@lowers("Attention")
def attention(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Per head softmax(Q K^T * scale + mask) V, for (N, H, L, d) or (N, L, H * d) inputs.

    Left alone (so that the engine names it) with a key-value cache, soft capping, outputs beside
    the first, a different number of key and value heads, or unknown head sizes.
    """
    inputs = [optional_input(node, slot) for slot in range(6)]
    if any(inputs[4:]) or any(value.name for value in node.outputs[1:]):
        return None
    shapes = [None if value is None else shape_of(value) for value in inputs[:3]]
    sizes = _head_sizes(node, shapes)
    if sizes is None or attribute(node, "softcap", 0.0) or attribute(node, "is_causal", 0):
        return None
    heads, size = sizes
    flat = shapes[0] is not None and len(shapes[0]) == 3
    q, k, v = (_by_head(e, value, heads) if flat else value for value in inputs[:3])
    scale = attribute(node, "scale", None) or 1 / math.sqrt(size)
    scores = e.op(
        "MatMul", e.op("Mul", q, e.scalar(scale)), e.op("Transpose", k, perm=[0, 1, 3, 2])
    )
    if inputs[3] is not None:
        scores = e.op("Add", scores, _bias(e, inputs[3]))
    result = e.op("MatMul", e.op("Softmax", scores, axis=-1), v)
    if not flat:
        return result
    return e.op("Reshape", e.op("Transpose", result, perm=[0, 2, 1, 3]), e.integers(0, 0, -1))


def _head_sizes(
    node: ir.Node, shapes: Sequence[Sequence[int | None] | None]
) -> tuple[int, int] | None:
    """Number of heads and size of a query head, when all inputs have as many."""
    queries, keys = shapes[0], shapes[1]
    if queries is None or keys is None or len(queries) != len(keys):
        return None
    if len(queries) == 4:
        heads, others, size = queries[1], keys[1], queries[3]
    else:
        heads, others = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
        size = queries[2] // heads if heads and queries[2] is not None else None
    return None if heads is None or heads != others or size is None else (heads, size)


def _by_head(e: Emitter, value: ir.Value | None, heads: int) -> ir.Value:
    """(N, L, H * d) as (N, H, L, d)."""
    split = e.op("Reshape", value, e.integers(0, 0, heads, -1))
    return e.op("Transpose", split, perm=[0, 2, 1, 3])


def _bias(e: Emitter, mask: ir.Value) -> ir.Value:
    """What is added to the scores: the mask itself, or a very small number where it is False."""
    if mask.dtype is not ir.DataType.BOOL:
        return mask
    lowest = float(np.finfo(e.dtype.numpy()).min)
    return e.op("Where", mask, e.scalar(0.0), e.scalar(lowest))
