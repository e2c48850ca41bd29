"""ONNX Runtime's attention operators, taken apart; without a cache from earlier calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.attention import (
    Heads,
    attend,
    by_head,
    causal,
    lowest,
    merged,
    rotated,
    size_of,
)
from onnxprune.gradients.slots import attribute, data_input, optional_input, rank_of, wanted
from onnxprune.model import shape_of
from onnxprune.ops.registry import lowers

__all__: list[str] = []

_VENDOR = "com.microsoft"
_FILL = -10000.0  # what masked scores get added by default


def _plus(e: Emitter, x: ir.Value | None, bias: ir.Value | None) -> ir.Value | None:
    return x if bias is None or x is None else e.op("Add", x, bias)


def _hidden(e: Emitter, keep: ir.Value, low: float) -> ir.Value:
    """0 where `keep` is not 0, else `low`."""
    if keep.dtype is not ir.DataType.BOOL:
        keep = e.op("Cast", keep, to=ir.DataType.BOOL)
    return e.op("Where", keep, e.scalar(0.0), e.scalar(low))


def _mask_bias(e: Emitter, mask: ir.Value, k: ir.Value, low: float) -> ir.Value | None:
    """Scores of keys that a mask leaves out, for the mask's ranks 1 (lengths) to 4."""
    rank = rank_of(mask)
    if rank == 1:
        zero, one = e.constant(np.array(0)), e.constant(np.array(1))
        steps = e.op("Squeeze", size_of(e, k, 2), e.integers(0))
        places = e.op("Range", zero, steps, one)
        counts = e.op("Unsqueeze", e.op("Cast", mask, to=ir.DataType.INT64), e.integers(1, 2, 3))
        return _hidden(e, e.op("Less", places, counts), low)
    if rank == 2:
        return e.op("Unsqueeze", _hidden(e, mask, low), e.integers(1, 2))
    if rank == 3:
        return e.op("Unsqueeze", _hidden(e, mask, low), e.integers(1))
    return None


@lowers("Attention", domain=_VENDOR)
def packed_attention(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Project to queries, keys and values, attend, put the heads side by side."""
    x, w, b, mask, past, extra = (optional_input(node, slot) for slot in range(6))
    heads, widths = attribute(node, "num_heads", 0), _widths(node, w)
    if widths is None or past is not None or attribute(node, "do_rotary", 0):
        return None
    if any(wanted(value) for value in node.outputs[1:]):
        return None
    packed = _plus(e, e.op("MatMul", x, w), b)
    names = [f"{e.prefix}/{name}" for name in ("queries", "keys", "values")]
    parts = e.ops("Split", packed, e.integers(*widths), outputs=names, axis=2)
    return _attended(e, node, [by_head(e, part, heads) for part in parts], mask, extra)


def _widths(node: ir.Node, w: ir.Value | None) -> list[int] | None:
    """Columns of queries, keys and values in the packed weight."""
    given = attribute(node, "qkv_hidden_sizes", None)
    if given:
        return list(given)
    shape = None if w is None else shape_of(w)
    return None if shape is None or shape[1] is None else [shape[1] // 3] * 3


@lowers("MultiHeadAttention", domain=_VENDOR)
def multi_head_attention(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None] | None:
    """Attention of separate queries, keys and values with packed biases."""
    q, k, v, b, mask, extra, past_k, past_v = (optional_input(node, slot) for slot in range(8))
    heads = attribute(node, "num_heads", 0)
    if q is None or k is None or v is None or past_k is not None or past_v is not None:
        return None
    if rank_of(q) != 3 or rank_of(k) not in (3, 4):
        return None
    parts: list[ir.Value | None] = [q, k, v]
    if b is not None:
        sizes = _bias_sizes(b, (q, k, v))
        if sizes is None:
            return None
        names = [f"{e.prefix}/bias_{name}" for name in "qkv"]
        biases = e.ops("Split", b, e.integers(*sizes), outputs=names, axis=0)
        parts = [_plus(e, part, bias) for part, bias in zip(parts, biases, strict=True)]
    made = [_heads_apart(e, part, heads) for part in parts]
    y = _attended(e, node, made, mask, extra)
    if y is None:
        return None
    present = [e.op("Identity", value) for value in made[1:]]
    return [y, *present][: len(node.outputs)]


def _heads_apart(e: Emitter, value: ir.Value | None, heads: int) -> ir.Value:
    assert value is not None
    return value if rank_of(value) == 4 else by_head(e, value, heads)


def _attended(
    e: Emitter,
    node: ir.Node,
    parts: Sequence[ir.Value],
    mask: ir.Value | None,
    extra: ir.Value | None,
) -> ir.Value | None:
    """Attention of queries, keys and values by head, as both operators describe it."""
    (q, k, v), heads = parts, attribute(node, "num_heads", 0)
    biases: list[ir.Value | None] = [extra]
    if mask is not None:
        bias = _mask_bias(e, mask, k, attribute(node, "mask_filter_value", _FILL))
        if bias is None:
            return None
        biases.append(bias)
    if attribute(node, "unidirectional", 0):
        biases.append(causal(e, q, k, None))
    how = Heads(queries=heads, keys=heads, scale=attribute(node, "scale", None))
    return merged(e, attend(e, q, k, v, how, biases))


def _bias_sizes(b: ir.Value, parts: Sequence[ir.Value]) -> list[int] | None:
    """How the packed bias divides: by the widths of queries, keys and values."""
    shapes = [shape_of(part) for part in parts]
    if any(shape is None or len(shape) != 3 or shape[2] is None for shape in shapes):
        return None
    sizes = [int(shape[2] or 0) for shape in shapes if shape is not None]
    whole = shape_of(b)
    return sizes if whole is not None and whole[0] == sum(sizes) else None


@lowers("GroupQueryAttention", domain=_VENDOR)
def group_query_attention(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None] | None:
    """Causal attention in which query heads share keys and values; without earlier positions."""
    q, k, v, past_k, past_v, _, _, cos, sin = (optional_input(node, slot) for slot in range(9))
    windowed = attribute(node, "local_window_size", -1) >= 0
    if q is None or k is None or v is None or past_k is not None or past_v is not None or windowed:
        return None
    if any(optional_input(node, slot) is not None for slot in range(9, len(node.inputs))):
        return None
    if attribute(node, "smooth_softmax", 0) > 0:
        return None
    heads = Heads(
        queries=attribute(node, "num_heads", 0),
        keys=attribute(node, "kv_num_heads", 0),
        scale=attribute(node, "scale", None),
        softcap=attribute(node, "softcap", 0.0),
    )
    parts = [
        e.op("Reshape", x, e.integers(0, 0, count, -1))
        for x, count in ((q, heads.queries), (k, heads.keys), (v, heads.keys))
    ]
    if attribute(node, "do_rotary", 0):
        turned = [_turned(e, node, part, cos, sin) for part in parts[:2]]
        if turned[0] is None or turned[1] is None:
            return None
        parts[:2] = turned[0], turned[1]
    a, b, c = (e.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    y = merged(e, attend(e, a, b, c, heads, [causal(e, a, b, None, lowest(e))]))
    return [y, *(e.op("Identity", value) for value in (b, c))][: len(node.outputs)]


def _turned(
    e: Emitter, node: ir.Node, x: ir.Value, cos: ir.Value | None, sin: ir.Value | None
) -> ir.Value | None:
    """`x` (N, L, H, d) turned by the angles of the positions 0, 1, ..."""
    shape = None if cos is None else shape_of(cos)
    if shape is None or shape[1] is None:
        return None
    zero, one = e.integers(0), e.integers(1)
    steps = size_of(e, x, 1)
    tables = [
        e.op("Unsqueeze", e.op("Slice", table, zero, steps, zero, one), zero)
        for table in (cos, sin)
    ]
    interleaved = bool(attribute(node, "rotary_interleaved", 0))
    cosines, sines = tables
    return rotated(e, x, cosines, sines, width=2 * shape[1], interleaved=interleaved)


@lowers("RotaryEmbedding", domain=_VENDOR)
def rotary_embedding(e: Emitter, node: ir.Node) -> ir.Value | None:
    """As ONNX's operator; positions may be one number that is counted on from."""
    x, places, cos, sin = (optional_input(node, slot) for slot in range(4))
    shape = None if cos is None else shape_of(cos)
    rank = rank_of(data_input(node))
    known = shape is not None and shape[-1] is not None and places is not None
    if not known or rank not in (3, 4) or attribute(node, "scale", 1.0) != 1 or places is None:
        return None
    half = int(shape[-1] or 0) if shape is not None else 0
    heads, width = attribute(node, "num_heads", 0), attribute(node, "rotary_embedding_dim", 0)
    if rank == 3 and width and not heads:
        return None
    if rank == 4:
        apart = e.op("Transpose", x, perm=[0, 2, 1, 3])
    else:
        apart = e.op("Reshape", x, e.integers(0, 0, heads or -1, -1 if heads else 2 * half))
    if rank_of(places) == 1:
        zero, one = e.constant(np.array(0)), e.constant(np.array(1))
        steps = e.op("Squeeze", size_of(e, apart, 1), e.integers(0))
        places = e.op(
            "Unsqueeze", e.op("Add", e.op("Range", zero, steps, one), places), e.integers(0)
        )
    tables = [e.op("Gather", table, places) for table in (cos, sin)]
    interleaved = bool(attribute(node, "interleaved", 0))
    y = rotated(e, apart, tables[0], tables[1], width=width or 2 * half, interleaved=interleaved)
    if rank == 4:
        return e.op("Transpose", y, perm=[0, 2, 1, 3])
    return e.op("Reshape", y, e.integers(0, 0, -1))
