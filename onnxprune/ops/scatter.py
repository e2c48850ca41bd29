"""Selecting and writing by index arrays: GatherElements, GatherND, ScatterND, OneHot, Compress."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Coupling, Fact, Reason
from onnxprune.ops.registry import View, arange, couples, traces
from onnxprune.ops.trace import Trace, TraceView


def _front(view: View, long: Axis, short: Axis) -> Iterator[Fact]:
    """Couple `short` with as many first indices of `long`."""
    size, rest = view.size(short), view.size(long)
    if size is None or rest is None or size > rest:
        yield from view.equal(long, short)
        return
    yield Coupling(left=long, right=short, left_index=arange(size), right_index=arange(size))


@couples("GatherElements")
def gather_elements(view: View) -> Iterator[Fact]:
    """Couple all axes but the one that is selected from.

    Forward:  y[i, j, ...] = x[indices[i, j, ...], j, ...] on `axis` 0; the other axes alike
    Couples:  indices <-> y on every axis;  (x, p)[j] <-> (y, p)[j] on every axis but `axis`, as far
              as the indices reach
    """
    x, indices, y = view.input(0), view.input(1), view.output()
    rank = len(view.shape(x))
    axis = view.attribute("axis", 0) % rank
    for position in range(rank):
        yield from view.equal(view.axis(indices, position), view.axis(y, position))
        if position == axis:
            yield from view.fixed(x, position)
        else:
            yield from _front(view, view.axis(x, position), view.axis(y, position))


@couples("Scatter", "ScatterElements")
def scatter_elements(view: View) -> Iterator[Fact]:
    """Couple all axes but the one that is written along.

    Forward:  y = x, then y[indices[i, j, ...], j, ...] = updates[i, j, ...] on `axis` 0
    Couples:  x <-> y on every axis but `axis`;  indices and updates with x there, as far as they
              reach; on `axis` everything keeps its size
    """
    x, indices, updates, y = view.input(0), view.input(1), view.input(2), view.output()
    rank = len(view.shape(x))
    axis = view.attribute("axis", 0) % rank
    for position in range(rank):
        if position == axis:
            for value in (x, indices, updates, y):
                yield from view.fixed(value, position)
            continue
        yield from view.equal(view.axis(x, position), view.axis(y, position))
        for value in (indices, updates):
            yield from _front(view, view.axis(y, position), view.axis(value, position))


@couples("TensorScatter")
def tensor_scatter(view: View) -> Iterator[Fact]:
    """Couple all axes but the one that is written along.

    Forward:  y = x, then y[n, ..., at[n] + i, ...] = updates[n, ..., i, ...] on `axis`
    Couples:  x <-> updates <-> y on every axis but `axis`;  at <-> y.N
    """
    x, updates, at, y = view.input(0), view.input(1), view.input(2), view.output()
    rank = len(view.shape(x))
    axis = view.attribute("axis", -2) % rank
    for position in range(rank):
        for value in (x, updates):
            if position == axis:
                yield from view.fixed(value, position)
            else:
                yield from view.equal(view.axis(value, position), view.axis(y, position))
    yield from view.fixed(y, axis)
    if at is not None:
        yield from view.equal(view.axis(at, 0), view.axis(y, 0))


@couples("GatherND")
def gather_nd(view: View) -> Iterator[Fact]:
    """Couple the axes that the index tuples leave alone.

    Forward:  y[b, i, ...] = x[b, indices[b, i, :], ...], b over `batch_dims` axes
    Couples:  batch axes of x, indices and y;  the indices' own axes with y;  the last axes of x
              with those of y; what the tuples index, and the tuples, keep their sizes
    """
    x, indices, y = view.input(0), view.input(1), view.output()
    batch = view.attribute("batch_dims", 0)
    own = len(view.shape(indices)) - 1
    depth = view.shape(indices)[-1]
    yield from view.fixed(indices, own)
    for position in range(own):
        yield from view.equal(view.axis(indices, position), view.axis(y, position))
    for position in range(batch):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    if depth is None:
        yield from view.fixed(x, *range(batch, len(view.shape(x))), reason=Reason.DYNAMIC)
        yield from view.fixed(y, *range(own, len(view.shape(y))), reason=Reason.DYNAMIC)
        return
    yield from view.fixed(x, *range(batch, batch + depth))
    for position in range(batch + depth, len(view.shape(x))):
        target = own + position - batch - depth
        yield from view.equal(view.axis(x, position), view.axis(y, target))


@couples("ScatterND")
def scatter_nd(view: View) -> Iterator[Fact]:
    """Couple the axes that the index tuples leave alone.

    Forward:  y = x, then y[indices[i, :], ...] = updates[i, ...]
    Couples:  the last axes of x, updates and y; what the tuples index, and the tuples, keep theirs
    """
    x, indices, updates, y = view.input(0), view.input(1), view.input(2), view.output()
    own = len(view.shape(indices)) - 1
    depth = view.shape(indices)[-1]
    yield from view.fixed(indices, *range(own + 1))
    yield from view.fixed(updates, *range(own))
    fixed = range(len(view.shape(x)) if depth is None else depth)
    for value in (x, y):
        yield from view.fixed(value, *fixed)
    if depth is None:
        yield from view.fixed(updates, *range(own, len(view.shape(updates))))
        return
    for position in range(depth, len(view.shape(x))):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
        update = view.axis(updates, own + position - depth)
        yield from view.equal(update, view.axis(y, position))


@couples("OneHot")
def one_hot(view: View) -> Iterator[Fact]:
    """Couple the axes of the indices; the new one has a position per class.

    Forward:  y[..., k, ...] = on if indices[...] == k else off, k on `axis`
    Couples:  the other axes one to one, in order
    """
    indices, y = view.input(0), view.output()
    axis = view.attribute("axis", -1) % len(view.shape(y))
    yield from view.fixed(y, axis)
    others = [position for position in range(len(view.shape(y))) if position != axis]
    for source, target in enumerate(others):
        yield from view.equal(view.axis(indices, source), view.axis(y, target))
    for slot in (1, 2):
        yield from view.fixed(view.input(slot), *range(len(view.shape(view.input(slot)))))


@couples("Compress")
def compress(view: View) -> Iterator[Fact]:
    """Couple what a constant condition selects with what it becomes.

    Forward:  y[..., k, ...] = x[..., k-th i with condition[i], ...] on `axis`
    Couples:  (x, axis)[i] <-> condition[i];  the selected i <-> (y, axis)[k]; the other axes one to
              one. A computed condition, and one over the flattened x, needs all of x
    """
    x, condition, y = view.input(0), view.input(1), view.output()
    rank, axis = len(view.shape(x)), view.attribute("axis")
    chosen = view.constant(1)
    if axis is None:
        yield from _all_fixed(view)
        return
    axis %= rank
    for position in range(rank):
        if position != axis:
            yield from view.equal(view.axis(x, position), view.axis(y, position))
    size = view.shape(x)[axis]
    taken = arange(0) if chosen is None else np.flatnonzero(chosen[:size]).astype(np.int64)
    if size is None or view.shape(y)[axis] != len(taken):
        yield from view.fixed(x, axis)
        yield from view.fixed(y, axis)
        yield from view.fixed(condition, 0)
        return
    source, target = view.axis(x, axis), view.axis(y, axis)
    yield Coupling(left=target, right=source, left_index=arange(len(taken)), right_index=taken)
    yield from _front(view, source, view.axis(condition, 0))


@couples("NonZero", "Unique", "NonMaxSuppression")
def search(view: View) -> Iterator[Fact]:
    """Freeze everything: which indices come out depends on all values.

    Forward:  y = the positions (or values) that are found
    Couples:  nothing
    """
    yield from _all_fixed(view)


def _all_fixed(view: View) -> Iterator[Fact]:
    values: list[ir.Value | None] = [*view.node.inputs, *view.node.outputs]
    for value in values:
        if value is not None and value.name:
            yield from view.fixed(value, *range(len(view.shape(value))))


@traces("GatherND", "Compress")
def passed(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """The unit itself, at other positions."""
    return around.inputs[0]
