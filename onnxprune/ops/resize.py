"""Sampling positions: Resize, Upsample, grids, regions of interest, crops, unfolded windows."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.base import Axis, Coupling, Fact
from onnxprune.ops.edit import Edit
from onnxprune.ops.opening import Opening, opens
from onnxprune.ops.registry import View, arange, couples, resizes, traces
from onnxprune.ops.trace import Kind, Trace, TraceView

# Coordinate transformations that map every index to itself at scale 1, whatever the size.
_FAITHFUL = {
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
}


@couples("Resize", "Upsample")
def resize(view: View) -> Iterator[Fact]:
    """Couple the axes that are not scaled; positions on the others keep their sizes.

    Forward:  y = x sampled at other positions along the axes whose scale is not 1
    Couples:  (x, p)[i] <-> (y, p)[i] where the scale is 1; the other axes keep their sizes
    """
    x, y = view.input(0), view.output()
    for slot in range(1, len(view.node.inputs)):
        if view.input(slot) is not None:
            yield from view.fixed(view.input(slot), *range(len(view.shape(view.input(slot)))))
    for position in range(len(view.shape(x))):
        if _unscaled(view, position):
            yield from view.equal(view.axis(x, position), view.axis(y, position))
        else:
            yield from view.fixed(x, position)
            yield from view.fixed(y, position)


def _unscaled(view: View, position: int) -> bool:
    """Whether axis `position` comes out as it went in, for any number of indices."""
    listed = _listed(view)
    if position not in listed:
        return True
    if view.attribute("coordinate_transformation_mode", "half_pixel") not in _FAITHFUL:
        return False
    scales = _scales(view)
    if scales is not None:
        return scales[listed.index(position)] == 1
    if view.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    size = view.shape(view.input(0))[position]
    return size is not None and size == view.shape(view.output())[position]


def _listed(view: View) -> list[int]:
    """The axes that scales and sizes speak of, counted from the front."""
    rank = len(view.shape(view.input(0)))
    axes = view.attribute("axes")
    return list(range(rank)) if axes is None else [axis % rank for axis in axes]


def _scales(view: View) -> list[float] | None:
    """One scale per listed axis; None when they are computed or sizes are given instead."""
    given = view.attribute("scales")
    if given is None:
        old = view.node.op_type == "Upsample" or view.opset < 11
        given = view.constant(1 if old else 2)
    return None if given is None or not len(given) else [float(scale) for scale in given]


@resizes("Resize", since=11)
def resize_sizes(edit: Edit) -> None:
    """The sizes of axes that are not scaled follow; scales stay."""
    if edit.view.input(3) is not None:
        mend_listed(edit, 3)


@opens("Resize", since=11)
def open_sizes(opening: Opening) -> bool:
    """Among the sizes stands that of the batch, whatever it is; scales stay."""
    view, x = opening.view, opening.view.input(0)
    axis = opening.follows(x)
    if x is None or axis is None or view.input(3) is None or axis not in _listed(view):
        return False
    return opening.follow(3, _listed(view).index(axis), x, axis)


def mend_listed(edit: Edit, slot: int) -> None:
    """Put the new sizes of the output into a vector that has one entry per listed axis."""
    listed = _listed(edit.view)
    resized = {
        entry: len(kept)
        for entry, position in enumerate(listed)
        if (kept := edit.kept_at(edit.view.output(), position)) is not None
    }
    edit.entries(slot, resized, role="sizes")


@couples("CenterCropPad")
def center_crop_pad(view: View) -> Iterator[Fact]:
    """Couple the axes that keep their size; cropped and padded ones keep theirs.

    Forward:  y = x cropped or padded with zeros around its center to `shape`, along `axes`
    Couples:  (x, p)[i] <-> (y, p)[i] where both sizes are equal
    """
    x, y = view.input(0), view.output()
    yield from view.fixed(view.input(1), 0)
    for position, size in enumerate(view.shape(x)):
        same = size is not None and size == view.shape(y)[position]
        if same or position not in _listed(view):
            yield from view.equal(view.axis(x, position), view.axis(y, position))
        else:
            yield from view.fixed(x, position)
            yield from view.fixed(y, position)


@resizes("CenterCropPad")
def resize_crop(edit: Edit) -> None:
    """The sizes of the axes that come out whole follow."""
    mend_listed(edit, 1)


@couples("GridSample")
def grid_sample(view: View) -> Iterator[Fact]:
    """Couple batch and channels; the grid says where each output position looks.

    Forward:  y[n, c, o] = x[n, c, at grid[n, o]]
    Couples:  x.N <-> grid.N <-> y.N;  x.C <-> y.C;  grid[1:-1] <-> y[2:];  x's positions and the
              grid's coordinates keep their sizes
    """
    x, grid, y = view.input(0), view.input(1), view.output()
    rank = len(view.shape(x))
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    yield from view.equal(view.axis(grid, 0), view.axis(y, 0))
    yield from view.equal(view.axis(x, 1), view.axis(y, 1))
    for position in range(2, rank):
        yield from view.equal(view.axis(grid, position - 1), view.axis(y, position))
    yield from view.fixed(x, *range(2, rank))
    yield from view.fixed(grid, -1)


@couples("AffineGrid")
def affine_grid(view: View) -> Iterator[Fact]:
    """Couple the batch; the grid has one row of coordinates per position.

    Forward:  y[n, o] = theta[n] applied to the coordinates of position o
    Couples:  theta.N <-> y.N; everything else keeps its size
    """
    theta, y = view.input(0), view.output()
    yield from view.equal(view.axis(theta, 0), view.axis(y, 0))
    yield from view.fixed(theta, 1, 2)
    yield from view.fixed(view.input(1), 0)
    yield from view.fixed(y, *range(1, len(view.shape(y))))


@couples("RoiAlign", "MaxRoiPool")
def region(view: View) -> Iterator[Fact]:
    """Couple channels, and regions with their outputs.

    Forward:  y[r, c] = x[image of r, c] pooled over region r
    Couples:  x.C <-> y.C;  rois.R <-> y.R <-> batch_indices; the rest keeps its size
    """
    x, rois, y = view.input(0), view.input(1), view.output()
    yield from view.equal(view.axis(x, 1), view.axis(y, 1))
    yield from view.equal(view.axis(rois, 0), view.axis(y, 0))
    if view.input(2) is not None:
        yield from view.equal(view.axis(view.input(2), 0), view.axis(y, 0))
    yield from view.fixed(rois, 1)
    yield from view.fixed(x, 0, 2, 3)
    yield from view.fixed(y, 2, 3)


@couples("MaxUnpool")
def max_unpool(view: View) -> Iterator[Fact]:
    """Freeze everything: the indices count through all channels and examples.

    Forward:  y.flat[i[n, c, o]] = x[n, c, o]
    Couples:  nothing
    """
    for value in (*view.node.inputs, view.output()):
        if value is not None and value.name:
            yield from view.fixed(value, *range(len(view.shape(value))))


@couples("Col2Im")
def col2im(view: View) -> Iterator[Fact]:
    """Couple each channel with its offsets inside the block.

    Forward:  y[n, c, ...] = sums of x[n, c * B + offset, window], B = product of block_shape
    Couples:  (x, 1)[c * B + offset] <-> (y, 1)[c];  x.N <-> y.N; positions keep their sizes
    """
    x, y = view.input(0), view.output()
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    yield from blocks(view, view.axis(x, 1), view.axis(y, 1), inner=False)
    yield from view.fixed(x, 2)
    yield from view.fixed(y, *range(2, len(view.shape(y))))
    for slot in (1, 2):
        yield from view.fixed(view.input(slot), 0)


def blocks(view: View, long: Axis, short: Axis, *, inner: bool) -> Iterator[Fact]:
    """Couple each index of `short` with all its copies on `long`, which is a multiple of it.

    Args:
        view: the node.
        long: an axis of size r * s.
        short: an axis of size s.
        inner: whether `short` varies faster along `long` (index i there is i mod s), or slower.
    """
    size, unit = view.size(long), view.size(short)
    if size is None or unit is None or unit == 0 or size % unit:
        yield from view.equal(long, short)
        return
    index = arange(size)
    owner = index % unit if inner else index // (size // unit)
    yield Coupling(left=long, right=short, left_index=index, right_index=owner)


@traces("Resize", "Upsample", "CenterCropPad")
def sampled(view: View, around: TraceView) -> Trace | None:  # noqa: ARG001 (the rules' signature)
    """Weighted means of positions are linear; weights may be negative, and zeros may enter."""
    trace = around.inputs[0]
    if trace is None or trace.kind is Kind.LINEAR:
        return trace
    return trace.then(Kind.EQUAL)
