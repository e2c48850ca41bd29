"""Operators that only re-arrange: Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Expand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Choice, Fact, Frozen, Reason
from onnxprune.ops.edit import Edit
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.opening import Opening, opens
from onnxprune.ops.registry import View, couples, resizes, traces
from onnxprune.ops.trace import Trace, TraceView


@couples("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(view: View) -> Iterator[Fact]:
    """Couple the axes of two shapes of the same elements, in row-major order.

    Forward:  y = x with other sizes
    Couples:  over the common refinement of both lists of sizes into atoms, each axis is a product
              of neighbouring atoms; an axis that is one atom on both sides is coupled one to one.
              Sizes that do not nest keep theirs, and so do those that join a dynamic one.
    """
    x, y = view.input(0), view.output()
    assert x is not None
    left = [view.axis(x, position) for position in range(len(view.shape(x)))]
    right = [view.axis(y, position) for position in range(len(view.shape(y)))]
    for lefts, rights in _blocks(view, left, right):
        yield from _block(view, lefts, rights)


def _blocks(
    view: View, left: Sequence[Axis], right: Sequence[Axis]
) -> Iterator[tuple[list[Axis], list[Axis]]]:
    """Cut both lists where a single dynamic axis faces a single dynamic axis.

    Shapes with one dynamic size each (the batch), and sizes known to agree, are matched from the
    front and from the back; what holds a dynamic size and more stays together.
    """
    front: list[tuple[list[Axis], list[Axis]]] = []
    back: list[tuple[list[Axis], list[Axis]]] = []
    a, b = _real(view, left), _real(view, right)
    while a and b and view.size(a[0]) == view.size(b[0]):
        known = view.agree(a[0], b[0]) or _copied(view, a[0], b[0])
        if view.size(a[0]) is None and not known and not _same_dynamic(view, a, b):
            break
        front.append(([a.pop(0)], [b.pop(0)]))
    while a and b and view.size(a[-1]) is not None and view.size(a[-1]) == view.size(b[-1]):
        back.append(([a.pop()], [b.pop()]))
    yield from front
    if a or b:
        yield a, b
    yield from reversed(back)


def _copied(view: View, left: Axis, right: Axis) -> bool:
    """Whether the target of a Reshape says 0 here: the size of the input at the same position."""
    target = view.constant(1) if view.node.op_type == "Reshape" else None
    same = left.position == right.position and not view.attribute("allowzero", 0)
    return same and target is not None and bool(target[right.position] == 0)


def _same_dynamic(view: View, a: Sequence[Axis], b: Sequence[Axis]) -> bool:
    """Whether the leading dynamic axes must be equal: the static rest has equal products."""
    rest = [_static_product(view, side[1:]) for side in (a, b)]
    return rest[0] is not None and rest[0] == rest[1]


def _static_product(view: View, axes: Sequence[Axis]) -> int | None:
    product = 1
    for axis in axes:
        size = view.size(axis)
        if size is None:
            return None
        product *= size
    return product


def _real(view: View, axes: Sequence[Axis]) -> list[Axis]:
    return [axis for axis in axes if view.size(axis) != 1]


def _block(view: View, left: Sequence[Axis], right: Sequence[Axis]) -> Iterator[Fact]:
    if len(left) == len(right) == 1:
        yield from view.equal(left[0], right[0])
        return
    open_ones = [any(view.size(axis) is None for axis in side) for side in (left, right)]
    heads = [_static_head(view, side) if all(open_ones) else [] for side in (left, right)]
    tails = [_static_tail(view, side) for side in (left, right)]
    for side, head, tail in zip((left, right), heads, tails, strict=True):
        for axis in side[len(head) : len(side) - len(tail)]:
            yield from _fixed(view, axis)
    found = _Atoms(view)
    yield from found.align(heads, front=True)
    yield from found.align(tails, front=False)
    if found.axes:
        yield Choice(
            node=view.key,
            sizes=tuple(found.sizes),
            axes=tuple(found.axes),
            whole=frozenset(found.hidden),
        )


class _Atoms:
    """What the axes of both shapes are products of; grows with every pair of lists aligned."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.sizes: list[int] = []
        self.axes: list[tuple[Axis, tuple[int, ...]]] = []
        self.hidden: list[int] = []

    def align(self, sides: Sequence[Sequence[Axis]], *, front: bool) -> Iterator[Fact]:
        """Static axes of both sides that begin, or end, at the same element.

        Where one side holds more elements, the rest lies in the dynamic axis of the other, and
        its atoms can carry no units.
        """
        sizes = [[self.view.size(axis) or 1 for axis in side] for side in sides]
        shared = _shared_atoms(sizes, front=front)
        if shared is None:
            for axis in (*sides[0], *sides[1]):
                yield from _fixed(self.view, axis)
            return
        atoms, hidden = shared
        first = len(self.sizes)
        for side, own in zip(sides, sizes, strict=True):
            short = math.prod(own) < math.prod(atoms)
            start = len(hidden) if short and not front else 0
            for axis, parts in _products(side, own, atoms, start):
                self.axes.append((axis, tuple(first + part for part in parts)))
        self.sizes += atoms
        self.hidden += [first + number for number in hidden]


def _static_head(view: View, axes: Sequence[Axis]) -> Sequence[Axis]:
    """What stands before the first axis of dynamic size."""
    stop = next((n for n, axis in enumerate(axes) if view.size(axis) is None), len(axes))
    return axes[:stop]


def _static_tail(view: View, axes: Sequence[Axis]) -> Sequence[Axis]:
    """What stands behind the last axis of dynamic size."""
    start = len(axes)
    while start and view.size(axes[start - 1]) is not None:
        start -= 1
    return axes[start:]


def _shared_atoms(sizes: Sequence[Sequence[int]], *, front: bool) -> tuple[list[int], range] | None:
    """The common atoms of both sides, and which lie in a dynamic axis of one of them.

    Row-major order aligns both at their end, or at their beginning. Example: of (B, 16, 4, 16) and
    (B * 16, 64) the ends are (16, 4, 16) and (64); the atoms are [16, 4, 16], the first of which is
    part of B * 16. Of (32, H, W) and (8, 4 * H * W) the beginnings are (32) and (8); the atoms are
    [8, 4], the second of which is part of 4 * H * W.
    """
    left, right = (math.prod(side) for side in sizes)
    larger, smaller = max(left, right), min(left, right)
    if larger % smaller:
        return None
    factor = larger // smaller
    padding = [factor] if factor > 1 else []
    padded = [
        list(side)
        if math.prod(side) == larger
        else [*side, *padding]
        if front
        else [*padding, *side]
        for side in sizes
    ]
    atoms = refinement(*padded)
    if atoms is None:
        return None
    inside, product = 0, 1
    for size in reversed(atoms) if front else atoms:
        if product >= factor:
            break
        product, inside = product * size, inside + 1
    return atoms, range(len(atoms) - inside, len(atoms)) if front else range(inside)


def _fixed(view: View, axis: Axis) -> Iterator[Fact]:
    if view.size(axis) is not None:
        yield Frozen(axis=axis, reason=Reason.MIXED, node=view.key, detail="sizes do not nest")


def refinement(left: Sequence[int], right: Sequence[int]) -> list[int] | None:
    """Atom sizes whose neighbouring products give both lists; None when they do not nest.

    Example: (6, 16) and (2, 3, 16) give [2, 3, 16]; (6, 4) and (4, 6) give None.
    """
    cuts = sorted({*accumulate(left, mul), *accumulate(right, mul)})
    atoms, before = [], 1
    for cut in cuts:
        if cut % before:
            return None
        if cut != before:
            atoms.append(cut // before)
        before = cut
    return atoms


def _products(
    axes: Sequence[Axis], sizes: Sequence[int], atoms: Sequence[int], position: int
) -> Iterator[tuple[Axis, tuple[int, ...]]]:
    """Each axis with the atoms it is made of, outermost first, from the atom at `position` on."""
    for axis, size in zip(axes, sizes, strict=True):
        taken, product = [], 1
        while product < size:
            product *= atoms[position]
            taken.append(position)
            position += 1
        yield axis, tuple(taken)


@couples("Transpose")
def transpose(view: View) -> Iterator[Fact]:
    """Couple axis p of the output with axis perm[p] of the input, one to one."""
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    perm = view.attribute("perm") or range(rank)[::-1]
    for target, source in enumerate(perm):
        yield from view.equal(view.axis(x, source), view.axis(y, target))


@couples("Expand")
def expand(view: View) -> Iterator[Fact]:
    """Couple the axes that x brings; a repeated one begins here and follows its readers.

    Forward:  y[..., i, ...] = x[..., i, ...], or x[..., 0, ...] where x has size 1
    Couples:  (x, p)[i] <-> (y, p')[i], aligned from the last axis, where x has a size other than 1
    """
    x, y = view.input(0), view.output()
    assert x is not None
    yield from broadcast(view, x, y)
    offset = len(view.shape(y)) - len(view.shape(x))
    for position, size in enumerate(view.shape(y)):
        brought = view.shape(x)[position - offset] if position >= offset else 1
        if size not in (None, 1) and brought == 1:
            yield from view.ends(y, position)
    yield from _target(view)


def _target(view: View) -> Iterator[Fact]:
    """The shape input itself is a list of axes."""
    if view.input(1) is not None:
        yield from view.fixed(view.input(1), 0)


@resizes("Expand")
@resizes("Reshape", since=5)
def resize_target(edit: Edit) -> None:
    """The target sizes follow the output."""
    edit.sizes(1)


@resizes("Reshape", until=4)
def resize_attribute(edit: Edit) -> None:
    """Before opset 5 the target is an attribute."""
    y = edit.view.output()
    target = list(edit.view.attribute("shape"))
    for position, entry in enumerate(target):
        kept = edit.kept_at(y, position)
        if kept is not None and entry > 0:
            target[position] = len(kept)
    edit.view.node.attributes.add(ir.AttrInt64s("shape", target))


@opens("Reshape", since=5)
def open_target(opening: Opening) -> bool:
    """The size of the axis that the batch goes into is inferred, all others are written out.

    (Of older targets, which are attributes, shape inference says nothing.)
    """
    sizes = None if opening.view.constant(1) is None else _opened(opening)
    return sizes is not None and opening.write(1, np.array(sizes, np.int64))


def _opened(opening: Opening) -> list[int] | None:
    """The target with -1 where the batch goes; None where that is unknown, or nothing goes."""
    view, x = opening.view, opening.view.input(0)
    if not opening.is_live(x):
        return None
    before, after = (view.shapes.get(v.name or "") for v in (x, view.output()) if v is not None)
    if not before or after is None or None in before or None in after or 0 in after:
        return None
    left, right = ([size or 0 for size in sizes] for sizes in (before, after))
    place = batch_place(left, right, opening.follows(x) or 0, opening.batch)
    return None if place is None else [-1 if p == place else n for p, n in enumerate(right)]


def batch_place(before: Sequence[int], after: Sequence[int], axis: int, batch: int) -> int | None:
    """Which axis of the sizes `after` gets the batch that `axis` of `before` holds; None if none.

    Row-major order says where among the elements the batch begins. An axis there of just its size
    is it. Else it is part of the axis in whose middle it begins, or, between two axes, of the
    second one, unless from there on an example is as it was, or one axis: then of the first one.

    Example: of (7, 1, 12) to (7, 1, 3, 4) axis 1, to (7, 12) axis 0, to (7, 3, 4) axis 1.
    """
    start = math.prod(before[:axis])
    stop = start * before[axis]
    starts = [math.prod(after[:place]) for place in range(len(after))]
    for place, first in enumerate(starts):
        if after[place] == batch and start <= first and first * batch <= stop:
            return place
    ends = [first * size for first, size in zip(starts, after, strict=True)]
    spans = [place for place, size in enumerate(after) if size > 1]
    inside = [place for place in spans if starts[place] < start < ends[place]]
    behind = [place for place in spans if starts[place] == start]
    ahead = [place for place in spans if ends[place] == start]
    rest = [size for size in before[axis + 1 :] if size > 1]
    tail = [after[place] for place in spans if starts[place] >= start]
    if ahead and behind and tail in (rest, [math.prod(before[axis:]) // batch]):
        behind = []
    found = next(iter([*inside, *behind, *ahead]), 0)
    return found if after and after[found] % batch == 0 else None


@opens("Expand")
def open_expand(opening: Opening) -> bool:
    """The size that the data brings need not be in the target."""
    view, x = opening.view, opening.view.input(0)
    target, axis = view.constant(1), opening.follows(x)
    if target is None or axis is None:
        return False
    place = axis - len(view.shape(x)) + len(target)
    return place >= 0 and opening.write(1, np.where(np.arange(len(target)) == place, 1, target))


@traces("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
def moved(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """The unit itself, at other positions."""
    return around.inputs[0]
