"""Re-arrangements with an attribute of their own: DepthToSpace, Tile, Trilu, ReverseSequence."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.base import Fact, Reason
from onnxprune.ops.edit import Edit
from onnxprune.ops.registry import View, couples, resizes, traces
from onnxprune.ops.resize import blocks
from onnxprune.ops.trace import Trace, TraceView


@couples("DepthToSpace")
def depth_to_space(view: View) -> Iterator[Fact]:
    """Couple each output channel with the b * b input channels it is laid out from.

    Forward:  y[n, c, h b + i, w b + j] = x[n, (i b + j) C + c, h, w]        mode DCR
              y[n, c, h b + i, w b + j] = x[n, c b b + i b + j, h, w]        mode CRD
    Couples:  all x channels of one c <-> (y, 1)[c]. The offsets i, j are no atoms that could go:
              one blocksize serves both positions
    """
    x, y = view.input(0), view.output()
    inner = view.attribute("mode", "DCR") == "DCR"
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    yield from blocks(view, view.axis(x, 1), view.axis(y, 1), inner=inner)
    for value in (x, y):
        yield from view.fixed(value, 2, 3)


@couples("SpaceToDepth")
def space_to_depth(view: View) -> Iterator[Fact]:
    """Couple each input channel with the b * b output channels it is laid out to.

    Forward:  y[n, (i b + j) C + c, h, w] = x[n, c, h b + i, w b + j]
    Couples:  (x, 1)[c] <-> (y, 1)[k C + c] for all k
    """
    x, y = view.input(0), view.output()
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    yield from blocks(view, view.axis(y, 1), view.axis(x, 1), inner=True)
    for value in (x, y):
        yield from view.fixed(value, 2, 3)


@couples("Tile", since=6)
def tile(view: View) -> Iterator[Fact]:
    """Couple each index with its copies; a single index that is repeated follows the readers.

    Forward:  y[..., i, ...] = x[..., i mod size, ...]
    Couples:  (x, p)[i] <-> (y, p)[k * size + i] for all k; nothing where the size is 1
    """
    x, y = view.input(0), view.output()
    yield from view.fixed(view.input(1), 0)
    for position, size in enumerate(view.shape(x)):
        left, right = view.axis(x, position), view.axis(y, position)
        if size == 1:
            yield from view.ends(y, position)
        elif size is None or view.size(right) is None:
            yield from view.fixed(x, position, reason=Reason.DYNAMIC)
            yield from view.fixed(y, position, reason=Reason.DYNAMIC)
        else:
            yield from blocks(view, right, left, inner=True)


@resizes("Tile", since=6)
def repeat(edit: Edit) -> None:
    """Where one index is repeated, the number of copies is the size of the output."""
    x, y = edit.view.input(0), edit.view.output()
    copies = {
        position: len(kept)
        for position, size in enumerate(edit.view.shape(x))
        if size == 1 and (kept := edit.kept_at(y, position)) is not None
    }
    edit.entries(1, copies, role="repeats")


@couples("Trilu")
def trilu(view: View) -> Iterator[Fact]:
    """Couple the batch axes; rows and columns keep their places around the diagonal.

    Forward:  y[..., i, j] = x[..., i, j] above (or below) diagonal k, else 0
    Couples:  all but the last two axes one to one
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    for position in range(rank - 2):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    for value in (x, y):
        yield from view.fixed(value, rank - 2, rank - 1)


@couples("ReverseSequence")
def reverse_sequence(view: View) -> Iterator[Fact]:
    """Couple all axes but time, whose positions trade places.

    Forward:  y[t, n, ...] = x[length[n] - 1 - t, n, ...] for t < length[n], else x[t, n, ...]
    Couples:  every axis but `time_axis` one to one;  the lengths with `batch_axis`
    """
    x, y = view.input(0), view.output()
    time, batch = view.attribute("time_axis", 0), view.attribute("batch_axis", 1)
    for position in range(len(view.shape(x))):
        if position == time:
            yield from view.fixed(x, position)
            yield from view.fixed(y, position)
        else:
            yield from view.equal(view.axis(x, position), view.axis(y, position))
    yield from view.equal(view.axis(view.input(1), 0), view.axis(y, batch))


@couples("Det")
def determinant(view: View) -> Iterator[Fact]:
    """Couple the batch axes; a determinant needs all rows and columns.

    Forward:  y[...] = det(x[..., :, :])
    Couples:  all but the last two axes one to one
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    for position in range(rank - 2):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    yield from view.fixed(x, rank - 2, rank - 1)


@traces("DepthToSpace", "SpaceToDepth", "Tile", "ReverseSequence")
def moved(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """The unit itself, at other positions."""
    return around.inputs[0]
