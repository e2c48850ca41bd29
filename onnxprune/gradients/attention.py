"""Attention and rotary embeddings as MatMul, Softmax and elementwise operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.slots import attribute, data_input, optional_input, rank_of, wanted
from onnxprune.model import shape_of
from onnxprune.ops.registry import lowers

__all__ = ["Heads", "attend", "by_head", "causal", "lowest", "merged", "rotated", "size_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Numbers of query heads and of key and value heads, and what the scores are multiplied by.

    Attributes:
        scale: 1 / sqrt(size of a query head) where None.
    """

    queries: int
    keys: int
    scale: float | None = None
    softcap: float = 0.0


def size_of(e: Emitter, value: ir.Value | None, axis: int) -> ir.Value:
    """(1,) the size of an axis, in the graph."""
    return e.op("Gather", e.op("Shape", value), e.integers(axis))


def by_head(e: Emitter, value: ir.Value | None, heads: int) -> ir.Value:
    """(N, L, H * d) as (N, H, L, d)."""
    split = e.op("Reshape", value, e.integers(0, 0, heads, -1))
    return e.op("Transpose", split, perm=[0, 2, 1, 3])


def merged(e: Emitter, value: ir.Value) -> ir.Value:
    """(N, H, L, d) as (N, L, H * d)."""
    return e.op("Reshape", e.op("Transpose", value, perm=[0, 2, 1, 3]), e.integers(0, 0, -1))


def lowest(e: Emitter) -> float:
    """What is added to scores that must not count."""
    return float(np.finfo(e.dtype.numpy()).min)


def attend(
    e: Emitter,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    heads: Heads,
    biases: Sequence[ir.Value | None] = (),
) -> ir.Value:
    """Per head softmax(softcap(Q K^T * scale) + biases) V; all (N, H, L, d).

    A key head that several query heads share is repeated.
    """
    if heads.queries != heads.keys:
        k, v = (_repeated(e, value, heads) for value in (k, v))
    scores = e.op("MatMul", q, e.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = e.op("Mul", scores, _scale(e, q, heads))
    if heads.softcap:
        cap = e.scalar(heads.softcap)
        scores = e.op("Mul", e.op("Tanh", e.op("Div", scores, cap)), cap)
    for bias in biases:
        scores = scores if bias is None else e.op("Add", scores, bias)
    return e.op("MatMul", e.op("Softmax", scores, axis=-1), v)


def _scale(e: Emitter, q: ir.Value, heads: Heads) -> ir.Value:
    if heads.scale:
        return e.scalar(heads.scale)
    size = e.op("Cast", size_of(e, q, 3), to=e.dtype)
    return e.op("Reciprocal", e.op("Sqrt", size))


def _repeated(e: Emitter, value: ir.Value, heads: Heads) -> ir.Value:
    """(N, KV, L, d) as (N, H, L, d), each key head as often as it has query heads."""
    times = heads.queries // heads.keys
    wide = e.op("Expand", e.op("Unsqueeze", value, e.integers(2)), e.integers(1, 1, times, 1, 1))
    ends = [size_of(e, value, axis) for axis in (2, 3)]
    shape = e.op("Concat", e.integers(0, heads.queries), *ends, axis=0)
    return e.op("Reshape", wide, shape)


def causal(
    e: Emitter, q: ir.Value, k: ir.Value, offset: ir.Value | None, low: float | None = None
) -> ir.Value:
    """(L, T) what is added so that query i sees the keys up to i + offset."""
    zero, one = e.constant(np.array(0)), e.constant(np.array(1))
    rows, columns = (
        e.op("Range", zero, e.op("Squeeze", size_of(e, value, 2), e.integers(0)), one)
        for value in (q, k)
    )
    last = e.op("Unsqueeze", rows, e.integers(1))
    last = last if offset is None else e.op("Add", last, offset)
    seen = e.op("LessOrEqual", columns, last)
    return e.op("Where", seen, e.scalar(0.0), e.scalar(lowest(e) if low is None else low))


@lowers("Attention")
def attention(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None] | None:
    """For (N, H, L, d) or (N, L, H * d) inputs, with a cache, masks and shared key heads.

    Left alone (so that what is in front of it is not trained) where the scores are put out, padding
    is counted by key, or the numbers of heads are unknown.
    """
    q, k, v, mask, past_k, past_v = (optional_input(node, slot) for slot in range(6))
    heads = _heads(node, q, k)
    windows = any(attribute(node, f"{side}_window_size", -1) >= 0 for side in ("left", "right"))
    scores = any(wanted(value) for value in node.outputs[3:])
    if heads is None or q is None or k is None or v is None or windows or scores:
        return None
    if optional_input(node, 6) is not None:
        return None
    flat = rank_of(q) == 3
    if flat:
        q, k, v = (
            by_head(e, x, n) for x, n in ((q, heads.queries), (k, heads.keys), (v, heads.keys))
        )
    if past_k is not None:
        k, v = e.op("Concat", past_k, k, axis=2), e.op("Concat", past_v, v, axis=2)
    biases = [None if mask is None else _bias(e, mask)]
    if attribute(node, "is_causal", 0):
        biases.append(causal(e, q, k, None if past_k is None else size_of(e, past_k, 2)))
    y = attend(e, q, k, v, heads, biases)
    present = [e.op("Identity", value) if kept else None for value, kept in _presents(node, k, v)]
    return [merged(e, y) if flat else y, *present]


def _presents(node: ir.Node, k: ir.Value, v: ir.Value) -> list[tuple[ir.Value, bool]]:
    return [(x, wanted(y)) for x, y in zip((k, v), node.outputs[1:3], strict=False)]


def _heads(node: ir.Node, q: ir.Value | None, k: ir.Value | None) -> Heads | None:
    shapes = [None if value is None else shape_of(value) for value in (q, k)]
    if shapes[0] is None or shapes[1] is None:
        return None
    if len(shapes[0]) == 4:
        queries, keys = shapes[0][1], shapes[1][1]
    else:
        queries, keys = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
    if not queries or not keys or queries % keys:
        return None
    return Heads(
        queries=queries,
        keys=keys,
        scale=attribute(node, "scale", None),
        softcap=attribute(node, "softcap", 0.0),
    )


def _bias(e: Emitter, mask: ir.Value) -> ir.Value:
    """What is added to the scores: the mask itself, or a very small number where it is False."""
    if mask.dtype is not ir.DataType.BOOL:
        return mask
    return e.op("Where", mask, e.scalar(0.0), e.scalar(lowest(e)))


# --- rotary embeddings ---------------------------------------------------------------------------


def rotated(
    e: Emitter,
    x: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    *,
    width: int,
    interleaved: bool,
) -> ir.Value:
    """(N, L, H, d) with the pairs of its first `width` numbers turned by their angles.

    cos, sin: (N or 1, L, width / 2).
    """
    prefix = f"{e.prefix}/{x.name}"
    ends = e.op("Sub", size_of(e, x, 3), e.integers(width))
    names = [f"{prefix}/turned", f"{prefix}/kept"]
    sizes = e.op("Concat", e.integers(width), ends, axis=0)
    turned, kept = e.ops("Split", x, sizes, outputs=names, axis=3)
    cos, sin = (e.op("Unsqueeze", value, e.integers(2)) for value in (cos, sin))
    half = e.integers(width // 2, width // 2)
    if interleaved:
        pairs = e.op("Reshape", turned, e.integers(0, 0, 0, width // 2, 2))
        parts = e.ops(
            "Split", pairs, e.integers(1, 1), outputs=[f"{prefix}/{n}" for n in "ab"], axis=4
        )
        a, b = (e.op("Squeeze", part, e.integers(4)) for part in parts)
    else:
        a, b = e.ops("Split", turned, half, outputs=[f"{prefix}/{n}" for n in "ab"], axis=3)
    real = e.op("Sub", e.op("Mul", cos, a), e.op("Mul", sin, b))
    other = e.op("Add", e.op("Mul", sin, a), e.op("Mul", cos, b))
    if interleaved:
        wide = [e.op("Unsqueeze", part, e.integers(4)) for part in (real, other)]
        together = e.op("Concat", *wide, axis=4)
        whole = e.op("Reshape", together, e.integers(0, 0, 0, width))
    else:
        whole = e.op("Concat", real, other, axis=3)
    return e.op("Concat", whole, kept, axis=3)


@lowers("RotaryEmbedding")
def rotary_embedding(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Turn pairs of numbers by the angles of their positions."""
    x, cos, sin, places = (optional_input(node, slot) for slot in range(4))
    rank, shape = rank_of(data_input(node)), None if cos is None else shape_of(cos)
    heads = attribute(node, "num_heads", 0)
    if x is None or cos is None or shape is None or shape[-1] is None:
        return None
    if rank not in (3, 4) or (rank == 3 and not heads):
        return None
    width = attribute(node, "rotary_embedding_dim", 0) or 2 * shape[-1]
    by_position = e.op("Transpose", x, perm=[0, 2, 1, 3]) if rank == 4 else None
    if by_position is None:
        by_position = e.op("Reshape", x, e.integers(0, 0, heads, -1))
    tables = [t if places is None else e.op("Gather", t, places) for t in (cos, sin)]
    interleaved = bool(attribute(node, "interleaved", 0))
    y = rotated(e, by_position, *tables, width=width, interleaved=interleaved)  # type: ignore[arg-type]
    if rank == 4:
        return e.op("Transpose", y, perm=[0, 2, 1, 3])
    return e.op("Reshape", y, e.integers(0, 0, -1))
