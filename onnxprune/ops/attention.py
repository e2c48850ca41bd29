"""Attention as one operator, and the rotation of positions in front of it.

Heads and their sizes share axes: queries are (KV, R, D), keys (KV, D), values (KV, E) and outputs
(KV, R, E), for KV key-value heads, each read by R query heads, of the sizes D and E. Which of these
atoms carries the units is for the engine to choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Choice, Fact
from onnxprune.ops.edit import Edit
from onnxprune.ops.registry import View, couples, macs, resizes

__all__ = [
    "KV",
    "QUERY",
    "D",
    "E",
    "HeadSizes",
    "Parts",
    "R",
    "choice",
    "frozen",
    "grouped",
    "keep_scale",
    "left",
    "over_scores",
    "resize_rotary",
    "rest",
    "rotation",
    "score_macs",
    "split",
]

KV, R, D, E = range(4)  # the atoms
QUERY = (KV, R)  # the atoms of query heads
HeadSizes = tuple[int, int, int, int]
Parts = tuple[tuple[Axis, tuple[int, ...], int], ...]  # axis, atoms, where they begin


def split(view: View, value: ir.Value | None, heads: tuple[int, ...], size: int) -> Parts:
    """Heads and head size on one axis of (B, S, H * D), or on two of (B, H, S, D)."""
    if value is None or not value.name:
        return ()
    if len(view.shape(value)) == 3:
        return ((view.axis(value, 2), (*heads, size), 0),)
    return ((view.axis(value, 1), heads, 0), (view.axis(value, 3), (size,), 0))


def _head_size(view: View, value: ir.Value | None, heads: int) -> int | None:
    """The size of a head of `value`; None when it is open or there is no such number of heads."""
    sizes = view.shape(value)
    if len(sizes) == 4:
        return sizes[3] if sizes[1] == heads else None
    width = sizes[-1]
    return None if width is None or not heads or width % heads else width // heads


def over_scores(view: View, slot: int, heads: int) -> Parts:
    """What is added to the scores (B, H, S, T) may have one entry per query head."""
    value = view.input(slot)
    if value is None or len(view.shape(value)) < 3 or view.shape(value)[-3] != heads:
        return ()
    return ((view.axis(value, -3), QUERY, 0),)


def choice(view: View, sizes: HeadSizes, parts: Parts, whole: frozenset[int]) -> Choice:
    """The fact that the engine resolves: `parts` with the atoms of `sizes`."""
    return Choice(
        node=view.key,
        sizes=sizes,
        axes=tuple((axis, atoms) for axis, atoms, _ in parts),
        starts=tuple(start for _, _, start in parts),
        whole=whole,
    )


def rest(view: View, parts: Parts) -> Iterator[Fact]:
    """Examples keep company with those of the output; positions and all else keep their sizes."""
    taken = {axis for axis, _, _ in parts}
    batch = view.axis(view.output(), 0)
    for value in (*view.node.inputs, *view.node.outputs):
        if value is None or not value.name:
            continue
        for position in range(len(view.shape(value))):
            axis = view.axis(value, position)
            data = position == 0 and len(view.shape(value)) in (3, 4) and view.size(axis) != 1
            if axis in taken or axis == batch:
                continue
            if data and view.size(axis) == view.size(batch):
                yield from view.equal(axis, batch)
            else:
                yield from view.fixed(value, position)


def frozen(view: View) -> Iterator[Fact]:
    """Everything keeps its size: the numbers of heads do not fit the sizes, or those are open."""
    for value in (*view.node.inputs, *view.node.outputs):
        if value is not None and value.name:
            yield from view.fixed(value, *range(len(view.shape(value))))


def _onnx_heads(view: View) -> HeadSizes | None:
    """KV, R, D, E of an ONNX Attention."""
    q, k, v = (view.input(slot) for slot in range(3))
    counts = []
    for value, name in ((q, "q_num_heads"), (k, "kv_num_heads")):
        sizes = view.shape(value)
        counts.append(sizes[1] if len(sizes) == 4 else view.attribute(name))
    return grouped(view, counts[0], counts[1], (q, k, v))


def grouped(
    view: View, heads: int | None, groups: int | None, data: Sequence[ir.Value | None]
) -> HeadSizes | None:
    """KV, R, D, E of queries, keys and values; None where they do not fit each other."""
    if not heads or not groups or heads % groups:
        return None
    query = _head_size(view, data[0], heads)
    key, value = (_head_size(view, item, groups) for item in data[1:])
    if query is None or query != key or value is None:
        return None
    return groups, heads // groups, query, value


@couples("Attention")
def attention(view: View) -> Iterator[Fact]:
    """Couple the heads of queries, keys, values and output.

    Forward:  Y[h] = softmax(scale Q[h] K[h // R]^T + mask[h]) V[h // R], scale = 1 / sqrt(D)
    Couples:  Q = (KV, R, D), K = (KV, D), V = (KV, E), Y = (KV, R, E) and the caches, masks and
              scores that hold heads; batch one to one
    """
    sizes = _onnx_heads(view)
    if sizes is None:
        yield from frozen(view)
        return
    y, *others = view.node.outputs
    present_key, present_value, scores = [*others, None, None, None][:3]
    parts = (
        *split(view, view.input(0), QUERY, D),
        *split(view, view.input(1), (KV,), D),
        *split(view, view.input(2), (KV,), E),
        *over_scores(view, 3, sizes[KV] * sizes[R]),
        *split(view, view.input(4), (KV,), D),
        *split(view, view.input(5), (KV,), E),
        *split(view, y, QUERY, E),
        *split(view, present_key, (KV,), D),
        *split(view, present_value, (KV,), E),
    )
    if scores is not None and scores.name:
        parts = (*parts, (view.axis(scores, 1), QUERY, 0))
    # A key that is put out does not end here, so that its head size has no place to be replaced at.
    cached = present_key is not None and bool(present_key.name)
    yield choice(view, sizes, parts, frozenset([D] if cached else []))
    yield from rest(view, parts)


@resizes("Attention")
def resize_attention(edit: Edit) -> None:
    """Head counts of what was kept; the scale of the original head size."""
    resize_heads(edit, _onnx_heads(edit.view))


def resize_heads(edit: Edit, sizes: HeadSizes | None) -> None:
    """Write out how many heads are left, and the scale."""
    view = edit.view
    if sizes is None:
        return
    query = left(edit, view.input(0), sizes[KV] * sizes[R], sizes[D])
    key = left(edit, view.input(1), sizes[KV], sizes[D])
    for name, (heads, _) in (("q_num_heads", query), ("kv_num_heads", key)):
        if name in view.node.attributes:
            view.node.attributes.add(ir.AttrInt64(name, heads))
    keep_scale(view, sizes[D], query[1])


def left(
    edit: Edit, value: ir.Value | None, heads: int, size: int, *, start: int = 0
) -> tuple[int, int]:
    """Heads, and indices per head, that are left of `value`, or of a window of its last axis."""
    assert value is not None
    rank = len(edit.view.shape(value))
    if rank == 4:
        return edit.size_after(value, 1) or heads, edit.size_after(value, 3) or size
    kept = edit.kept_at(value, rank - 1)
    if kept is None:
        return heads, size
    inside = kept[(kept >= start) & (kept < start + heads * size)] - start
    number = len(np.unique(inside // size))
    return number, len(inside) // number


def keep_scale(view: View, before: int, after: int) -> None:
    """Write out the scale that followed from the head size."""
    if after != before and not view.attribute("scale", 0.0):
        view.node.attributes.add(ir.AttrFloat32("scale", 1 / math.sqrt(before)))


@macs("Attention")
def attention_macs(view: View) -> int:
    """Batch x query heads x positions x positions x both head sizes; dynamic sizes count as 1."""
    return score_macs(view, _onnx_heads(view), view.input(0), view.input(1))


def score_macs(
    view: View, sizes: HeadSizes | None, query: ir.Value | None, key: ir.Value | None
) -> int:
    """Scores and what they weigh: batch x heads x positions x positions x both head sizes."""
    if sizes is None:
        return 0
    positions = [view.shape(value)[-2] or 1 for value in (query, key)]
    batch = view.shape(query)[0] or 1
    return batch * math.prod(positions) * sizes[KV] * sizes[R] * (sizes[D] + sizes[E])


@couples("RotaryEmbedding")
def rotary_embedding(view: View) -> Iterator[Fact]:
    """Couple the two numbers of every pair that is rotated together.

    Forward:  [a, b] = the halves of each head (interleaved: every second number);
              y = [a cos - b sin, b cos + a sin]
    Couples:  X = Y = (heads, 2, D / 2), interleaved (heads, D / 2, 2); cos.last = sin.last = D / 2.
              Where only part of a head is rotated, heads go whole
    """
    yield from rotation(view, view.attribute("num_heads", 0), (1, 2))


def rotation(view: View, heads: int, tables: tuple[int, int]) -> Iterator[Fact]:
    """The facts of a rotary embedding with its cosines and sines at the slots `tables`."""
    x, y = view.input(0), view.output()
    sizes = _rotated(view, heads, tables[0])
    if sizes is None:
        yield from frozen(view)
        return
    count, pairs, rest_of_head = sizes
    order = (3,) if not pairs else (2, 1) if view.attribute("interleaved", 0) else (1, 2)
    parts = [part for value in (x, y) for part in _rotated_parts(view, value, order)]
    if pairs:
        parts += [(view.axis(view.input(slot), -1), (2,), 0) for slot in tables]
    atoms = (count, 2, pairs or 1, rest_of_head)
    yield choice(view, atoms, tuple(parts), frozenset((1, 3)))
    yield from rest(view, tuple(parts))


def _rotated_parts(view: View, value: ir.Value | None, order: tuple[int, ...]) -> Parts:
    if len(view.shape(value)) == 3:
        return ((view.axis(value, 2), (0, *order), 0),)
    return ((view.axis(value, 1), (0,), 0), (view.axis(value, 3), order, 0))


def _rotated(view: View, heads: int, table: int) -> tuple[int, int, int] | None:
    """Heads, pairs (0 where only a part of the head is rotated), and the head size then."""
    x = view.input(0)
    count = view.shape(x)[1] if len(view.shape(x)) == 4 else heads
    half = view.shape(view.input(table))[-1]
    if not count and half and not view.attribute("rotary_embedding_dim", 0):
        count = (view.shape(x)[-1] or 0) // (2 * half)
    size = None if not count else _head_size(view, x, count)
    if not count or size is None or half is None:
        return None
    return (count, half, 1) if 2 * half == size else (count, 0, size)


@resizes("RotaryEmbedding")
def resize_rotary(edit: Edit) -> None:
    """The number of heads where it is given, and how much of a head is rotated."""
    view, x = edit.view, edit.view.input(0)
    table = 1 if view.node.domain in ("", "ai.onnx") else 2
    sizes = _rotated(view, view.attribute("num_heads", 0), table)
    if sizes is None:
        return
    count, pairs, rest_of_head = sizes
    heads, size = left(edit, x, count, 2 * pairs or rest_of_head)
    if view.attribute("num_heads", 0):
        view.node.attributes.add(ir.AttrInt64("num_heads", heads))
    if pairs and view.attribute("rotary_embedding_dim", 0):
        view.node.attributes.add(ir.AttrInt64("rotary_embedding_dim", size))


def _linear_heads(view: View) -> HeadSizes | None:
    """KV, R, D, E of a LinearAttention."""
    counts = [view.attribute(name) for name in ("q_num_heads", "kv_num_heads")]
    return grouped(view, counts[0], counts[1], [view.input(slot) for slot in range(3)])


def _state(view: View, value: ir.Value | None) -> Parts:
    """A matrix per head: (B, KV, D, E)."""
    if value is None or not value.name:
        return ()
    atoms = zip((1, 2, 3), (KV, D, E), strict=True)
    return tuple((view.axis(value, place), (atom,), 0) for place, atom in atoms)


def _per_head(view: View, slot: int, sizes: HeadSizes) -> Parts:
    """A gate has a number per key head, or per index of each; of size 1 it has one for all."""
    value = view.input(slot)
    if value is None or view.size(view.axis(value, 2)) == 1:
        return ()
    whole = view.size(view.axis(value, 2)) == sizes[KV] * sizes[D]
    return ((view.axis(value, 2), (KV, D) if whole else (KV,), 0),)


@couples("LinearAttention")
def linear_attention(view: View) -> Iterator[Fact]:
    """Couple the heads of queries, keys, values, gates, states and output.

    Forward:  S_t = decay_t S_(t-1) + k_t v_t^T (delta rules: v_t less what S recalls for k_t);
              y_t = scale q_t^T S_t;  scale = 1 / sqrt(D)
    Couples:  Q = (KV, R, D), K = (KV, D), V = (KV, E), Y = (KV, R, E), states.1 = KV, .2 = D,
              .3 = E, gates = KV or (KV, D); batch one to one
    """
    sizes = _linear_heads(view)
    if sizes is None:
        yield from frozen(view)
        return
    y, *others = view.node.outputs
    state = others[0] if others and others[0].name else None
    parts = (
        *split(view, view.input(0), QUERY, D),
        *split(view, view.input(1), (KV,), D),
        *split(view, view.input(2), (KV,), E),
        *_state(view, view.input(3)),
        *_per_head(view, 4, sizes),
        *_per_head(view, 5, sizes),
        *split(view, y, QUERY, E),
        *_state(view, state),
    )
    cached = view.input(3) is not None or (state is not None and bool(state.uses()))
    cached = cached or (state is not None and state.is_graph_output())
    yield choice(view, sizes, parts, frozenset([D] if cached else []))
    yield from rest(view, parts)


@resizes("LinearAttention")
def resize_linear_attention(edit: Edit) -> None:
    """Head counts of what was kept; the scale of the original head size."""
    resize_heads(edit, _linear_heads(edit.view))


@macs("LinearAttention")
def linear_attention_macs(view: View) -> int:
    """Per position: each key head's state is written, and read by its query heads."""
    sizes = _linear_heads(view)
    if sizes is None:
        return 0
    positions = view.shape(view.input(0))[1] or 1
    return positions * sizes[KV] * (1 + sizes[R]) * sizes[D] * sizes[E]
