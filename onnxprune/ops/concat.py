"""Putting together and taking apart along an axis: Concat, Split, Slice, Gather."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Coupling, Ends, Fact, Index, Reason
from onnxprune.ops.edit import Edit
from onnxprune.ops.opening import Opening, opens
from onnxprune.ops.registry import Role, View, arange, couples, parameters, resizes, traces
from onnxprune.ops.trace import Trace, TraceView

parameters("Gather", slots={0: Role.TABLE})

_END = 2**31 - 1  # the end of a slice that goes on to the last index


@couples("Concat")
def concat(view: View) -> Iterator[Fact]:
    """Couple the concatenated axis of each input to its own window of the output.

    Forward:  y[..., o_k + i, ...] = x_k[..., i, ...] on `axis`, o_k = sum of earlier sizes
    Couples:  (x_k, axis)[i] <-> (y, axis)[o_k + i]; every other axis one to one
    """
    y = view.output()
    rank = len(view.shape(y))
    axis = view.attribute("axis", 1) % rank
    offset: int | None = 0
    for slot in range(len(view.node.inputs)):
        x = view.input(slot)
        size = view.shape(x)[axis]
        for position in range(rank):
            if position != axis:
                yield from view.equal(view.axis(x, position), view.axis(y, position))
        if offset is None or size is None or view.shape(y)[axis] is None:
            yield from view.fixed(x, axis, reason=Reason.DYNAMIC)
            offset = None
            continue
        yield _window(view.axis(x, axis), view.axis(y, axis), size, offset)
        offset += size


def _window(small: Axis, large: Axis, size: int, offset: int) -> Coupling:
    return Coupling(
        left=small, right=large, left_index=arange(size), right_index=arange(size) + offset
    )


@couples("Split")
def split(view: View) -> Iterator[Fact]:
    """Couple each output with its own window of the input.

    Forward:  y_k[..., i, ...] = x[..., o_k + i, ...] on `axis`, o_k = sum of earlier sizes
    Couples:  (y_k, axis)[i] <-> (x, axis)[o_k + i]; every other axis one to one
    """
    x = view.input(0)
    rank = len(view.shape(x))
    axis = view.attribute("axis", 0) % rank
    offset = 0
    for y in view.node.outputs:
        for position in range(rank):
            if position != axis:
                yield from view.equal(view.axis(x, position), view.axis(y, position))
        size = view.shape(y)[axis]
        if size is None or view.shape(x)[axis] is None:
            yield from view.fixed(x, axis, reason=Reason.DYNAMIC)
            return
        yield _window(view.axis(y, axis), view.axis(x, axis), size, offset)
        offset += size
    if view.input(1) is not None:
        yield from view.fixed(view.input(1), 0)


@resizes("Split")
def resize_split(edit: Edit) -> None:
    """The sizes of the parts are written out: as an attribute before opset 13, else as an input.

    Parts that do not stand one behind another any more are taken by a Gather each.
    """
    view, x = edit.view, edit.view.input(0)
    axis = view.attribute("axis", 0) % len(view.shape(x))
    if edit.kept_at(x, axis) is None or x is None:
        return
    parts = _parts_after(edit, x, axis)
    if (np.diff(np.concatenate(parts)) != 1).any():
        for number, places in enumerate(parts):
            taken = edit.initializer(f"{view.node.outputs[number].name}/taken", places)
            edit.replace_output(number, "Gather", x, taken, axis=axis)
        edit.around.remove(view.node, safe=True)
        return
    sizes = [edit.size_after(y, axis) or 0 for y in view.node.outputs]
    if view.opset < 13:
        view.node.attributes.add(ir.AttrInt64s("split", sizes))
        return
    view.node.attributes.pop("num_outputs", None)
    edit.write(1, np.array(sizes, np.int64), role="split")


def _parts_after(edit: Edit, x: ir.Value, axis: int) -> list[Index]:
    """The new positions of each part of a Split."""
    parts, offset = [], 0
    for y in edit.view.node.outputs:
        size = edit.view.shape(y)[axis] or 0
        parts.append(edit.moved(x, axis, arange(size) + offset, edit.kept_at(y, axis)))
        offset += size
    return parts


def _slice_bounds(view: View) -> tuple[list[int], ...] | None:
    """starts, ends, axes, steps; None when computed."""
    if view.opset < 10:
        starts, ends = view.attribute("starts"), view.attribute("ends")
        axes = view.attribute("axes") or range(len(starts))
        return list(starts), list(ends), list(axes), [1] * len(starts)
    arrays = [view.constant(slot) for slot in range(1, 5)]
    if arrays[0] is None or arrays[1] is None:
        return None
    for slot in (3, 4):
        if arrays[slot - 1] is None and view.input(slot) is not None:
            return None
    starts, ends = [int(i) for i in arrays[0]], [int(i) for i in arrays[1]]
    axes = list(range(len(starts))) if arrays[2] is None else [int(i) for i in arrays[2]]
    steps = [1] * len(starts) if arrays[3] is None else [int(i) for i in arrays[3]]
    return starts, ends, axes, steps


def _sliced(view: View) -> dict[int, slice] | None:
    """The slice per axis that is cut; None when a bound is computed."""
    bounds = _slice_bounds(view)
    if bounds is None:
        return None
    rank = len(view.shape(view.input(0)))
    cuts = {}
    for start, end, axis, step in zip(*bounds, strict=True):
        size = view.shape(view.input(0))[axis % rank]
        if size is not None:
            cuts[axis % rank] = slice(*_clamped(start, end, step, size), step)
        elif not (start == 0 and step == 1 and end >= 2**31 - 1):
            cuts[axis % rank] = slice(start, end, step)
    return cuts


def _clamped(start: int, end: int, step: int, size: int) -> tuple[int, int | None]:
    """ONNX clamps bounds as Python does, but an end below -size means `from the start`."""
    stop: int | None = end
    if step < 0 and end < -size:
        stop = None
    return start, stop


@couples("Slice")
def slice_(view: View) -> Iterator[Fact]:
    """Couple the window with what it becomes.

    Forward:  y[..., i, ...] = x[..., start + step * i, ...] on the sliced axes
    Couples:  (y, axis)[i] <-> (x, axis)[start + step * i]; every other axis one to one
    """
    x, y = view.input(0), view.output()
    cuts = _sliced(view)
    for slot in range(1, 5):
        if view.input(slot) is not None:
            yield from view.fixed(view.input(slot), 0)
    for position, size in enumerate(view.shape(x)):
        left, right = view.axis(x, position), view.axis(y, position)
        if cuts is None:
            yield from view.fixed(x, position, reason=Reason.DYNAMIC)
            yield from view.fixed(y, position, reason=Reason.DYNAMIC)
        elif position not in cuts:
            yield from view.equal(left, right)
        elif size is not None and view.size(right) is not None:
            taken = arange(size)[cuts[position]]
            yield Coupling(left=right, right=left, left_index=arange(len(taken)), right_index=taken)
        elif size is not None:
            yield from view.fixed(x, position, reason=Reason.DYNAMIC)


@resizes("Slice")
def resize_slice(edit: Edit) -> None:
    """New bounds where the kept positions are a window again, else a Gather in front."""
    view = edit.view
    cuts = _sliced(view) or {}
    for position, cut in cuts.items():
        x = view.input(0)
        kept = edit.kept_at(x, position)
        if kept is None or x is None:
            continue
        window = arange(view.shape(x)[position] or 0)[cut]
        out = edit.kept_at(view.output(), position)
        edit_selection(edit, position, edit.moved(x, position, window, out))


def edit_selection(edit: Edit, position: int, taken: Index) -> None:
    """Make a Slice take the positions `taken` (new numbering) along axis `position`."""
    steps = np.diff(taken)
    step = int(steps[0]) if len(steps) else 1
    regular = bool((steps == step).all()) and step != 0
    if not regular:
        indices = edit.initializer(f"{edit.view.key}/taken", taken)
        _gather_in_front(edit, position, indices)
        taken, step = arange(len(taken)), 1
    start = int(taken[0])
    end = int(taken[-1]) + (1 if step > 0 else -1)
    _write_bounds(edit, position, start, end if end >= 0 else -(2**31), step)


def _gather_in_front(edit: Edit, position: int, indices: ir.Value) -> None:
    x = edit.view.input(0)
    assert x is not None
    name = x.name or ""
    made = edit.insert_before(0, "Gather", indices, role=f"taken_{position}", axis=position)
    sizes = edit.shapes[made.name or ""] = edit.shapes[name]
    # The other axes are resized like the data's; this one is taken as a whole from now on.
    edit.resized(made, {p: Axis(name, p) for p in range(len(sizes)) if p != position})


def _write_bounds(edit: Edit, position: int, start: int, end: int, step: int) -> None:
    view = edit.view
    bounds = _slice_bounds(view)
    assert bounds is not None
    rank = len(view.shape(view.input(0)))
    entry = [axis % rank for axis in bounds[2]].index(position)
    for slot, number in ((0, start), (1, end), (3, step)):
        bounds[slot][entry] = number
    if view.opset < 10:
        for name, values in zip(("starts", "ends", "axes"), bounds, strict=False):
            view.node.attributes.add(ir.AttrInt64s(name, values))
        return
    for slot, role in enumerate(("starts", "ends", "axes", "steps")):
        old = view.constant(slot + 1)
        if old is not None or role in ("steps", "axes"):
            dtype = np.dtype(np.int64) if old is None else old.dtype
            edit.write(slot + 1, np.array(bounds[slot], dtype), role=role)


@couples("Gather")
def gather(view: View) -> Iterator[Fact]:
    """Couple what constant indices take with what it becomes; computed ones need all of the axis.

    An embedding looks up rows of a table by computed indices: rows stay, columns are coupled.

    Forward:  y[before, i, after] = x[before, indices[i], after] on `axis`
    Couples:  (x, axis)[indices[i]] <-> (y, axis)[i]; every other axis one to one
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    axis = view.attribute("axis", 0) % rank
    indices = view.constant(1)
    inner = len(view.shape(view.input(1)))
    for position in range(rank):
        if position != axis:
            target = position if position < axis else position + inner - 1
            yield from view.equal(view.axis(x, position), view.axis(y, target))
    size = view.shape(x)[axis]
    if indices is None:
        yield from view.fixed(x, axis)
        for position in range(inner):
            yield from view.equal(view.axis(view.input(1), position), view.axis(y, axis + position))
        return
    yield from view.fixed(view.input(1), *range(inner))
    if inner != 1 or size is None:
        yield from view.fixed(x, axis)
        yield from view.fixed(y, *range(axis, axis + inner))
        return
    taken = np.where(indices < 0, indices + size, indices).astype(np.int64)
    yield Coupling(
        left=view.axis(y, axis),
        right=view.axis(x, axis),
        left_index=arange(len(taken)),
        right_index=taken,
    )
    yield Ends(view.axis(x, axis))


@resizes("Gather")
def resize_gather(edit: Edit) -> None:
    """Constant indices are renumbered, and those of removed positions go."""
    view = edit.view
    x, indices = view.input(0), view.constant(1)
    axis = view.attribute("axis", 0) % len(view.shape(x))
    kept = edit.kept_at(x, axis)
    if x is None or kept is None or indices is None or indices.ndim != 1:
        return
    size = view.shape(x)[axis] or 0
    wanted = np.where(indices < 0, indices + size, indices).astype(np.int64)
    moved = edit.moved(x, axis, wanted, edit.kept_at(view.output(), axis))
    edit.write(1, moved.astype(indices.dtype), role="indices")


@opens("Concat")
def open_concat(opening: Opening) -> bool:
    """What is the same for all examples is repeated beside what is not."""
    view = opening.view
    values = [view.input(slot) for slot in range(len(view.node.inputs))]
    moving = next((value for value in values if opening.follows(value) is not None), None)
    place = opening.follows(moving)
    if moving is None or place is None:
        return False
    if place == view.attribute("axis", 1) % len(view.shape(moving)):
        return False
    repeated = [opening.repeat(slot, place, moving, place) for slot in range(len(values))]
    return any(repeated)


@opens("Slice")
def open_slice(opening: Opening) -> bool:
    """A slice that takes the whole batch takes all of it."""
    view, x = opening.view, opening.view.input(0)
    axis, bounds = opening.follows(x), _slice_bounds(opening.view)
    if axis is None or bounds is None:
        return False
    rank, size = len(view.shape(x)), view.shape(x)[axis] or 0
    starts, ends, axes, steps = bounds
    entries = [entry for entry, each in enumerate(axes) if each % rank == axis]
    whole = [e for e in entries if (starts[e], steps[e]) == (0, 1) and size <= ends[e] < _END]
    if not whole:
        return False
    for entry in whole:
        ends[entry] = _END
    if view.opset < 10:
        view.node.attributes.add(ir.AttrInt64s("ends", ends))
        return True
    return opening.write(2, np.array(ends, np.int64))


@traces("Slice", "Gather", "Split")
def passed(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """The unit itself, at other positions."""
    return around.inputs[0]


@traces("Concat")
def concatenated(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001
    """A unit comes from one input; when it comes from several, nothing simple is known."""
    data = [trace for trace in around.inputs if trace is not None]
    return data[0] if len(data) == 1 else None
