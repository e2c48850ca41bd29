"""Operators that only re-arrange: Reshape, Flatten, Squeeze, Unsqueeze, Transpose, Expand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import mul

import onnx_ir as ir

from onnxprune.base import Axis, Choice, Fact, Frozen, Reason
from onnxprune.ops.edit import Edit
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.registry import View, couples, resizes, traces
from onnxprune.ops.trace import Trace, TraceView


@couples("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(view: View) -> Iterator[Fact]:
    """Couple the axes of two shapes of the same elements, in row-major order.

    Forward:  y = x with other sizes
    Couples:  over the common refinement of both lists of sizes into atoms, each axis is a product
              of neighbouring atoms; an axis that is one atom on both sides is coupled one to one.
              Sizes that do not nest keep theirs.
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

    Shapes with one dynamic size each (the batch) are matched from the front and from the back;
    what holds a dynamic size and more stays together.
    """
    front: list[tuple[list[Axis], list[Axis]]] = []
    back: list[tuple[list[Axis], list[Axis]]] = []
    a, b = _real(view, left), _real(view, right)
    while a and b and view.size(a[0]) == view.size(b[0]):
        if view.size(a[0]) is None and not _same_dynamic(view, a, b):
            break
        front.append(([a.pop(0)], [b.pop(0)]))
    while a and b and view.size(a[-1]) is not None and view.size(a[-1]) == view.size(b[-1]):
        back.append(([a.pop()], [b.pop()]))
    yield from front
    if a or b:
        yield a, b
    yield from reversed(back)


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
    sizes = [[view.size(axis) for axis in side] for side in (left, right)]
    atoms = None if None in sizes[0] + sizes[1] else refinement(*sizes)  # type: ignore[arg-type]
    if atoms is None:
        for axis in (*left, *right):
            yield from _fixed(view, axis)
        return
    yield Choice(
        node=view.key,
        sizes=tuple(atoms),
        axes=(*_products(left, sizes[0], atoms), *_products(right, sizes[1], atoms)),
    )


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
    axes: Sequence[Axis], sizes: Sequence[int | None], atoms: Sequence[int]
) -> Iterator[tuple[Axis, tuple[int, ...]]]:
    """Each axis with the atoms it is made of, outermost first."""
    position = 0
    for axis, size in zip(axes, sizes, strict=True):
        taken, product = [], 1
        while product < (size or 1):
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
    """Couple the axes that x brings; the ones it repeats to a larger size keep theirs."""
    x, y = view.input(0), view.output()
    assert x is not None
    yield from broadcast(view, x, y)
    offset = len(view.shape(y)) - len(view.shape(x))
    for position, size in enumerate(view.shape(y)):
        brought = view.shape(x)[position - offset] if position >= offset else 1
        if size not in (None, 1) and brought == 1:
            yield from view.fixed(y, position)
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


@traces("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
def moved(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """The unit itself, at other positions."""
    return around.inputs[0]
