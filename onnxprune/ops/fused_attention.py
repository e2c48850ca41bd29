"""Attention as ONNX Runtime fuses it: packed weights, biases inside, caches, shared key heads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Fact, Floats, Inner
from onnxprune.emit import Emitter
from onnxprune.ops.attention import (
    KV,
    QUERY,
    D,
    E,
    HeadSizes,
    Parts,
    R,
    choice,
    frozen,
    grouped,
    keep_scale,
    left,
    over_scores,
    resize_rotary,
    rest,
    rotation,
    score_macs,
    split,
)
from onnxprune.ops.edit import Absorber, Edit, shifts
from onnxprune.ops.registry import (
    Role,
    View,
    absorbs,
    couples,
    macs,
    mimics,
    parameters,
    resizes,
)

_VENDOR = "com.microsoft"

parameters("Attention", slots={1: Role.WEIGHT, 2: Role.AFFINE}, domain=_VENDOR)
parameters("MultiHeadAttention", slots={3: Role.AFFINE}, domain=_VENDOR)


def _packed(view: View) -> HeadSizes | None:
    """KV, R, D, E of ONNX Runtime's Attention, whose weights hold queries, keys and values."""
    heads, width = view.attribute("num_heads"), view.size(view.axis(view.input(1), 1))
    if width is None or not heads:
        return None
    widths = view.attribute("qkv_hidden_sizes") or [width // 3] * 3
    if sum(widths) != width or widths[0] != widths[1] or any(part % heads for part in widths):
        return None
    return heads, 1, widths[0] // heads, widths[2] // heads


@couples("Attention", domain=_VENDOR)
def packed_attention(view: View) -> Iterator[Fact]:
    """Couple the heads of the packed weights with those of the output.

    Forward:  [q, k, v] = X W + b;  Y[h] = softmax(scale q[h] k[h]^T + mask[h]) v[h]
    Couples:  X.I <-> W.0;  W.1 = b.0 = (KV, D), (KV, D), (KV, E) one behind the other, Y = (KV, E)
    """
    x, w, b = (view.input(slot) for slot in range(3))
    sizes = _packed(view)
    if sizes is None:
        yield from frozen(view)
        return
    second = sizes[KV] * sizes[D]
    windows = ((D, 0), (D, second), (E, 2 * second))
    holders = [view.axis(w, 1), *([view.axis(b, 0)] if b is not None else [])]
    parts = (
        *((axis, (KV, atom), start) for axis in holders for atom, start in windows),
        *split(view, view.output(), QUERY, E),
        *over_scores(view, 5, sizes[KV]),
    )
    cached = view.input(4) is not None or len([y for y in view.node.outputs if y.name]) > 1
    whole = {KV, R, D, E} if cached else {D} if view.attribute("do_rotary", 0) else set()
    yield choice(view, sizes, parts, frozenset(whole))
    for axis in holders:
        yield Inner(axis)
    inner = (view.axis(x, 2), view.axis(w, 0))
    yield from view.equal(*inner)
    yield from rest(view, (*parts, *((axis, (), 0) for axis in inner)))


@resizes("Attention", domain=_VENDOR)
def resize_packed_attention(edit: Edit) -> None:
    """The number of heads, the three widths where they differ, and the original scale."""
    view, sizes = edit.view, _packed(edit.view)
    if sizes is None:
        return
    heads, size, second = sizes[KV], sizes[D], sizes[KV] * sizes[D]
    query = left(edit, view.input(1), heads, size)
    value = left(edit, view.input(1), heads, sizes[E], start=2 * second)
    view.node.attributes.add(ir.AttrInt64("num_heads", query[0]))
    if query[1] != value[1] or "qkv_hidden_sizes" in view.node.attributes:
        widths = [math.prod(query), math.prod(query), math.prod(value)]
        view.node.attributes.add(ir.AttrInt64s("qkv_hidden_sizes", widths))
    keep_scale(view, size, query[1])


@macs("Attention", domain=_VENDOR)
def packed_attention_macs(view: View) -> int:
    """The projections, and what Attention does."""
    x, w = view.shape(view.input(0)), view.shape(view.input(1))
    projected = math.prod(size or 1 for size in (*x[:2], *w))
    return projected + score_macs(view, _packed(view), view.input(0), view.input(0))


@absorbs("Attention", domain=_VENDOR)
def packed_attention_absorber(view: View, slot: int) -> Absorber | None:
    """Constant inputs go into the packed bias."""
    known = view.is_constant(1) and view.is_constant(2)
    return Absorber(slot=1, in_axis=0, out_axis=1) if slot == 0 and known else None


@shifts("Attention", domain=_VENDOR)
def packed_attention_shift(edit: Edit, vector: Floats) -> None:
    """Add `vector` (q + k + v,) to the bias."""
    bias = edit.view.constant(2)
    assert bias is not None
    edit.write(2, (bias + vector).astype(bias.dtype), role="bias")


@mimics("Attention", domain=_VENDOR)
def like_packed_attention(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """(B, S, width of the values)."""
    x, w = node.inputs[:2]
    widths = node.attributes.get("qkv_hidden_sizes")
    if widths is not None:
        one = e.integers(1)
        part = e.op("Slice", w, e.integers(0), e.integers(widths.value[2]), one, one)
        return [e.op("MatMul", x, part)]
    names = [f"{e.prefix}/part_{number}" for number in range(3)]
    extra: dict[str, Any] = {"num_outputs": 3} if e.opset >= 18 else {}
    return [e.op("MatMul", x, e.ops("Split", w, outputs=names, axis=1, **extra)[0])]


def _separate(view: View) -> HeadSizes | None:
    """KV, R, D, E of a MultiHeadAttention.

    Queries, keys and values may come as one, (B, S, heads, 3, D), or keys and values,
    (B, S, heads, 2, D). None where what comes does not fit.
    """
    heads, query = view.attribute("num_heads"), view.input(0)
    data = [view.input(slot) for slot in range(3)]
    together = next((value for value in data[:2] if _is_packed(view, value)), None)
    if together is None:
        if any(value is None or len(view.shape(value)) > 4 for value in data):
            return None
        return grouped(view, heads, heads, data)
    size = view.shape(together)[4]
    fits = size is not None and view.shape(together)[2] == heads
    if together is not query:
        fits = fits and query is not None and view.shape(query)[-1] == heads * (size or 0)
    return (heads, 1, size, size) if fits and size is not None else None


def _is_packed(view: View, value: ir.Value | None) -> bool:
    """Whether a value holds several of queries, keys and values, as (B, S, heads, which, D)."""
    return value is not None and len(view.shape(value)) == 5


def _heads_of(view: View, slot: int, size: int) -> Parts:
    """Where the heads lie at an input of a MultiHeadAttention."""
    value = view.input(slot)
    if _is_packed(view, value):
        return ((view.axis(value, 2), (KV,), 0), (view.axis(value, 4), (D,), 0))
    return split(view, value, (KV,), size)


@couples("MultiHeadAttention", domain=_VENDOR)
def multi_head_attention(view: View) -> Iterator[Fact]:
    """Couple the heads of queries, keys, values, their biases and the output.

    Forward:  Attention of Q + b_q, K + b_k, V + b_v, with b = [b_q, b_k, b_v]
    Couples:  as Attention with one query head per key head; b.0 = (KV, D), (KV, D), (KV, E) one
              behind the other. Where keys and values come in one value, heads keep their sizes
    """
    sizes = _separate(view)
    if sizes is None:
        yield from frozen(view)
        return
    bias, second = view.input(3), sizes[KV] * sizes[D]
    outputs = [*view.node.outputs, None, None]
    parts = (
        *_heads_of(view, 0, D),
        *_heads_of(view, 1, D),
        *_heads_of(view, 2, E),
        *over_scores(view, 5, sizes[KV]),
        *split(view, view.input(6), (KV,), D),
        *split(view, view.input(7), (KV,), E),
        *(split(view, outputs[0], (KV,), E)),
        *(split(view, outputs[1], (KV,), D)),
        *(split(view, outputs[2], (KV,), E)),
    )
    if bias is not None:
        starts = ((D, 0), (D, second), (E, 2 * second))
        parts += tuple((view.axis(bias, 0), (KV, atom), start) for atom, start in starts)
        yield Inner(view.axis(bias, 0))
    cached = outputs[1] is not None and bool(outputs[1].name)
    together = any(_is_packed(view, view.input(slot)) for slot in (0, 1))
    yield choice(view, sizes, parts, frozenset((D, E) if together else (D,) if cached else ()))
    yield from rest(view, parts)


@resizes("MultiHeadAttention", domain=_VENDOR)
def resize_multi_head_attention(edit: Edit) -> None:
    """The number of heads that were kept; the scale of the original head size."""
    sizes = _separate(edit.view)
    query = edit.view.input(0)
    if sizes is None or query is None:
        return
    if _is_packed(edit.view, query):
        heads, size = edit.size_after(query, 2) or sizes[KV], sizes[D]
    else:
        heads, size = left(edit, query, sizes[KV], sizes[D])
    edit.view.node.attributes.add(ir.AttrInt64("num_heads", heads))
    keep_scale(edit.view, sizes[D], size)


@macs("MultiHeadAttention", domain=_VENDOR)
def multi_head_attention_macs(view: View) -> int:
    """What Attention does."""
    query = view.input(0)
    if _is_packed(view, query) or view.input(1) is None:
        return 0  # sizes of positions stand elsewhere
    return score_macs(view, _separate(view), query, view.input(1))


@mimics("MultiHeadAttention", domain=_VENDOR)
def like_multi_head_attention(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """(B, S, width of the values), for values of three axes; caches grow along the positions."""
    inputs = [*node.inputs, *[None] * 8]
    query, key, value = inputs[:3]
    if key is None:  # (B, S, heads, 3, D)
        one = e.op("Gather", query, e.constant(np.array(0)), axis=3)
        return [e.op("Reshape", one, e.integers(0, 0, -1))]
    if value is None:  # keys and values as one, of the sizes of the queries
        return [e.op("Identity", query)]
    heads = node.attributes["num_heads"].value
    made = e.op("Einsum", query, value, equation="bsd,bte->bse")
    return [made, *_caches(e, key, value, inputs[6:8], heads)]


def _caches(
    e: Emitter,
    key: ir.Value,
    value: ir.Value,
    past: Sequence[ir.Value | None],
    heads: int,
) -> Iterator[ir.Value]:
    """Keys and values as (B, H, T, D), behind the past ones."""
    for new, old in zip((key, value), past, strict=True):
        if old is not None:
            yield e.op("Concat", old, old, axis=2)
        else:
            parted = e.op("Reshape", new, e.integers(0, 0, heads, -1))
            yield e.op("Transpose", parted, perm=[0, 2, 1, 3])


def _shared(view: View) -> HeadSizes | None:
    """KV, R, D, E of a GroupQueryAttention, whose queries, keys and values may come as one."""
    data = [view.input(slot) for slot in range(3)]
    heads, groups = view.attribute("num_heads"), view.attribute("kv_num_heads")
    if data[1] is not None:
        return None if data[2] is None else grouped(view, heads, groups, data)
    width, parts = view.shape(data[0])[-1], (heads or 0) + 2 * (groups or 0)
    if not groups or heads % groups or width is None or width % parts:
        return None
    return groups, heads // groups, width // parts, width // parts


def _shared_inputs(view: View, sizes: HeadSizes) -> Parts:
    """Where the heads lie in queries, keys and values, packed one behind the other or not."""
    if view.input(1) is not None:
        pairs = zip((QUERY, (KV,), (KV,)), (D, D, E), strict=True)
        return tuple(
            part
            for slot, (heads, size) in enumerate(pairs)
            for part in split(view, view.input(slot), heads, size)
        )
    axis = view.axis(view.input(0), -1)
    keys = sizes[KV] * sizes[R] * sizes[D]
    values = keys + sizes[KV] * sizes[D]
    return ((axis, (*QUERY, D), 0), (axis, (KV, D), keys), (axis, (KV, E), values))


@couples("GroupQueryAttention", domain=_VENDOR)
def group_query_attention(view: View) -> Iterator[Fact]:
    """Couple the heads of queries, keys, values, caches and the output.

    Forward:  Attention with a cache that is always put out; rotates queries and keys where asked
    Couples:  as Attention; heads keep their sizes. Packed, the last axis is (KV, R, D), (KV, D),
              (KV, E) one behind the other
    """
    sizes = _shared(view)
    if sizes is None:
        yield from frozen(view)
        return
    y, *presents = [*view.node.outputs, None, None][:3]
    parts: Parts = (
        *_shared_inputs(view, sizes),
        *split(view, y, QUERY, E),
        *split(view, view.input(3), (KV,), D),
        *split(view, view.input(4), (KV,), E),
        *split(view, presents[0], (KV,), D),
        *split(view, presents[1], (KV,), E),
    )
    yield choice(view, sizes, parts, frozenset((D, E)))
    yield from rest(view, parts)


@resizes("GroupQueryAttention", domain=_VENDOR)
def resize_group_query_attention(edit: Edit) -> None:
    """Both numbers of heads."""
    view, sizes = edit.view, _shared(edit.view)
    if sizes is None:
        return
    query, _ = left(edit, view.input(0), sizes[KV] * sizes[R], sizes[D])
    if view.input(1) is not None:
        key, _ = left(edit, view.input(1), sizes[KV], sizes[D])
    else:
        start = sizes[KV] * sizes[R] * sizes[D]
        key, _ = left(edit, view.input(0), sizes[KV], sizes[D], start=start)
    view.node.attributes.add(ir.AttrInt64("num_heads", query))
    view.node.attributes.add(ir.AttrInt64("kv_num_heads", key))


@macs("GroupQueryAttention", domain=_VENDOR)
def group_query_attention_macs(view: View) -> int:
    """What Attention does."""
    return score_macs(view, _shared(view), view.input(0), view.input(0))


@mimics("GroupQueryAttention", domain=_VENDOR)
def like_group_query_attention(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the queries; caches grow along the positions."""
    query, key, value, *past = [*node.inputs, *[None] * 4][:5]
    heads, groups = (node.attributes[name].value for name in ("num_heads", "kv_num_heads"))
    if key is None or value is None:
        parted = e.op("Reshape", query, e.integers(0, 0, heads + 2 * groups, -1))
        sizes = [heads, groups, groups]
        names = [f"{e.prefix}/{part}" for part in ("query", "key", "value")]
        if e.opset >= 13:
            cut = e.ops("Split", parted, e.integers(*sizes), outputs=names, axis=2)
        else:
            cut = e.ops("Split", parted, outputs=names, axis=2, split=sizes)
        query, key, value = (e.op("Reshape", part, e.integers(0, 0, -1)) for part in cut)
    return [e.op("Identity", query), *_caches(e, key, value, past, groups)]


@couples("RotaryEmbedding", domain=_VENDOR)
def rotary_embedding(view: View) -> Iterator[Fact]:
    """Couple the two numbers of every pair, as ONNX's RotaryEmbedding does."""
    yield from rotation(view, view.attribute("num_heads", 0), (2, 3))


resizes("RotaryEmbedding", domain=_VENDOR)(resize_rotary)


@mimics("RotaryEmbedding", domain=_VENDOR)
def like_rotary_embedding(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of x."""
    return [e.op("Identity", node.inputs[0])]
