"""Values around the data: Pad."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Coupling, Fact
from onnxprune.ops.edit import Edit
from onnxprune.ops.registry import View, arange, couples, resizes


def _pads(view: View) -> list[int] | None:
    if view.opset < 11:
        pads: Sequence[int] | None = view.attribute("pads") or view.attribute("paddings")
        return None if pads is None else list(pads)
    array = view.constant(1)
    if array is None:
        return None
    rank = len(view.shape(view.input(0)))
    axes = view.constant(3)
    if axes is None:
        return None if view.input(3) is not None else [int(pad) for pad in array]
    full = [0] * (2 * rank)
    for entry, axis in enumerate(axes):
        full[int(axis) % rank] = int(array[entry])
        full[int(axis) % rank + rank] = int(array[entry + len(axes)])
    return full


@couples("Pad")
def pad(view: View) -> Iterator[Fact]:
    """Couple the data with its window of the output; what is padded there belongs to nobody here.

    Forward:  y[..., p + i, ...] = x[..., i, ...], p = pads at the start (negative: cut off)
    Couples:  (x, axis)[i] <-> (y, axis)[p + i]; only with constant values may padded axes change
    """
    x, y = view.input(0), view.output()
    pads, rank = _pads(view), len(view.shape(x))
    constant_mode = view.attribute("mode", "constant") == "constant"
    for slot in (1, 3):
        if view.input(slot) is not None:
            yield from view.fixed(view.input(slot), 0)
    for position, size in enumerate(view.shape(x)):
        left, right = view.axis(x, position), view.axis(y, position)
        if pads is None or (any(pads[position::rank]) and not constant_mode):
            yield from view.fixed(x, position)
            yield from view.fixed(y, position)
        elif not any(pads[position::rank]):
            yield from view.equal(left, right)
        elif size is not None:
            inside = arange(size) + pads[position]
            visible = (inside >= 0) & (inside < (view.size(right) or 0))
            yield Coupling(
                left=left,
                right=right,
                left_index=arange(size)[visible],
                right_index=inside[visible],
            )


def _pads_after(edit: Edit, position: int, before: int, after: int) -> tuple[int, int]:
    """Pads at both ends of an axis: positive ones lie in the output, negative ones in the input."""
    x, y = edit.view.input(0), edit.view.output()
    size = edit.view.shape(x)[position] or 0
    inner, outer = edit.kept_at(x, position), edit.kept_at(y, position)
    inner = arange(size) if inner is None else inner
    outer = arange(before + size + after) if outer is None else outer
    start = np.count_nonzero(outer < before) - np.count_nonzero(inner < -before)
    end = np.count_nonzero(outer >= before + size) - np.count_nonzero(inner >= size + after)
    return int(start), int(end)


@resizes("Pad")
def resize_pad(edit: Edit) -> None:
    """As many padded positions as the output keeps on either side, as many cut off as x keeps."""
    view = edit.view
    pads, rank = _pads(view), len(view.shape(view.input(0)))
    if pads is None:
        return
    new = list(pads)
    for position in range(rank):
        if any(pads[position::rank]) and view.shape(view.input(0))[position] is not None:
            new[position], new[position + rank] = _pads_after(edit, position, *pads[position::rank])
    if new == pads:
        return
    if view.opset < 11:
        view.node.attributes.add(ir.AttrInt64s("pads", new))
    elif view.constant(3) is None:
        edit.write(1, np.array(new, np.int64), role="pads")
    else:
        axes = [int(axis) % rank for axis in view.constant(3)]  # type: ignore[union-attr]
        short = [new[axis] for axis in axes] + [new[axis + rank] for axis in axes]
        edit.write(1, np.array(short, np.int64), role="pads")
