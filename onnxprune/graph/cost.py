"""What a model costs: parameters, multiply-accumulates, latency, before and after a removal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Index, Mask
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.graph.order import kept_indices
from onnxprune.graph.timing import Stretch, Timing, work
from onnxprune.model import constants, model_input, tensor_of
from onnxprune.ops.registry import MACS, Sizes, View
from onnxprune.scopes import subgraphs

__all__ = [
    "Remaining",
    "ceiling",
    "macs",
    "parameters",
    "resized",
    "sizes_after",
    "unit_parameters",
]


def parameters(model: ir.Model, shapes: Mapping[str, Sizes] | None = None) -> int:
    """Number of floating-point (or quantized) weights that the file holds.

    Args:
        model: counted are initializers and Constant nodes of rank >= 1.
        shapes: other sizes than the file's, to count what would be left.
    """
    return sum(
        _count(_shape(name, value, shapes))
        for name, value in constants(model).items()
        if is_weight(value)
    )


def _count(sizes: Sizes) -> int:
    return math.prod(size or 1 for size in sizes)


def is_weight(value: ir.Value) -> bool:
    """Whether a constant counts as a parameter: floating point or 8 bits, and no scalar."""
    dtype = value.dtype
    counted = dtype is not None and (
        dtype.is_floating_point() or dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    )
    return counted and len(_own_shape(value)) > 0


def _shape(name: str, value: ir.Value, shapes: Mapping[str, Sizes] | None) -> Sizes:
    if shapes is not None and name in shapes:
        return shapes[name]
    return _own_shape(value)


def _own_shape(value: ir.Value) -> tuple[int, ...]:
    """Sizes of the array behind an initializer or a Constant node."""
    tensor = tensor_of(value)
    return () if tensor is None else tuple(tensor.shape.numpy())


def macs(model: ir.Model, analysis: Analysis, shapes: Mapping[str, Sizes] | None = None) -> int:
    """Multiply-accumulates of one example; dynamic sizes count as 1.

    An example is one index of the first axis of the inputs (`_batch`), so that the batch size a
    model was exported with, or that the user gives, does not count.

    Args:
        model: the graph.
        analysis: its static shapes.
        shapes: other sizes, to count what would be left.
    """
    sizes = shapes or analysis.shapes
    counted = _counted(model, sizes, analysis)
    return sum(rule(view) for view, rule, _ in counted) // _batch(model, sizes)


def _counted(
    model: ir.Model, shapes: Mapping[str, Sizes], analysis: Analysis
) -> Iterator[tuple[View, Callable[[View], int], set[str]]]:
    """The nodes that multiply, each with its rule and the values around it."""
    for view in views(model, shapes, analysis.known):
        if view.node.graph is not model.graph:
            continue  # the node that runs the body counts what is in it
        rule = MACS.find(view.node, view.opset)
        around = _names(view.node)
        if rule is not None and around <= view.shapes.keys():
            within = set().union(*map(_names, _inside(view.node)))
            yield view, rule, around | (within & view.shapes.keys())


def _names(node: ir.Node) -> set[str]:
    values = (*node.inputs, *node.outputs)
    return {value.name for value in values if value is not None and value.name}


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of all bodies, and of bodies in them."""
    for body in subgraphs(node):
        for inner in body:
            yield inner
            yield from _inside(inner)


def _batch(model: ir.Model, shapes: Mapping[str, Sizes]) -> int:
    """Examples that static sizes stand for: the first size that an input and an output share."""
    firsts = [shapes.get(value.name or "", ())[:1] for value in model.graph.outputs]
    for value in model_input(model):
        sizes = shapes.get(value.name or "", ())
        if len(sizes) > 1 and sizes[0] and sizes[:1] in firsts:
            return sizes[0]
    return 1


class Remaining:
    """Parameters, MACs or nanoseconds that remain under masks, for those who ask many times.

    A question costs as much as what the masks change: sizes follow from the number of units that
    go, and only nodes or weights with other sizes are counted again.

    Args:
        model: the graph; not changed.
        analysis: of this very graph.
        kind: "params", "macs" or "latency".
        round_to: masks are completed to what `balance.completed_keep` makes of them.
        timing: for latency.
    """

    def __init__(
        self,
        model: ir.Model,
        analysis: Analysis,
        kind: str,
        *,
        round_to: int = 1,
        timing: Timing | None = None,
    ) -> None:
        self._analysis, self._round_to = analysis, round_to
        self._shapes = dict(analysis.shapes)  # changed while a question is answered
        self._parts: list[Callable[[], int]] = []
        self._around: dict[str, list[int]] = {}
        self._finish: Callable[[int], int] = int
        if kind == "macs":
            batch = _batch(model, analysis.shapes)
            self._finish = lambda total: total // batch
            for view, rule, names in _counted(model, self._shapes, analysis):
                self._add(partial(rule, view), names)
        elif kind == "latency":
            assert timing is not None
            self._finish = timing.whole
            self._time(model, timing)
        else:
            for name, value in constants(model).items():
                if is_weight(value):
                    self._add(partial(self._elements, name, value), {name})
        self._before = [part() for part in self._parts]

    def _add(self, part: Callable[[], int], names: Iterable[str]) -> None:
        for name in names:
            self._around.setdefault(name, []).append(len(self._parts))
        self._parts.append(part)

    def _time(self, model: ir.Model, timing: Timing) -> None:
        """A part per stretch of which nodes are left."""
        main = (v for v in views(model, self._shapes, self._analysis.known))
        found = {view.key: view for view in main if view.node.graph is model.graph}
        for stretch in timing.stretches:
            inside = [found[key] for key in stretch.nodes if key in found]
            names = set().union(*(_names(view.node) for view in inside))
            self._add(partial(_nanoseconds, stretch, inside), names)

    def _elements(self, name: str, value: ir.Value) -> int:
        return _count(_shape(name, value, self._shapes))

    def __call__(self, keep: Mapping[str, Mask]) -> int:
        """What remains.

        Args:
            keep: (U,) bool per group name; absent groups keep everything.
        """
        keep = completed_keep(self._analysis, keep, round_to=self._round_to)
        changed = resized(self._analysis, keep)
        self._shapes.update(changed)
        touched = {number for name in changed for number in self._around.get(name, ())}
        total = sum(self._before) + sum(self._parts[n]() - self._before[n] for n in touched)
        self._shapes.update((name, self._analysis.shapes[name]) for name in changed)
        return self._finish(total)


def _nanoseconds(stretch: Stretch, inside: Sequence[View]) -> int:
    return stretch.time(sum(map(work, inside)))


def resized(analysis: Analysis, keep: Mapping[str, Mask]) -> dict[str, Sizes]:
    """The sizes of all values that lose some under masks which fit the groups.

    An axis with `by` loses as much of every block, and these may lie in several groups: their sum
    is divided, not the share of each.
    """
    lost: dict[Axis, int] = {}
    blocks: dict[Axis, int] = {}
    for group in analysis.groups:
        mask = keep.get(group.name)
        gone = 0 if mask is None else len(mask) - int(np.count_nonzero(mask))
        for member in group.members if gone else ():
            lost[member.axis] = lost.get(member.axis, 0) + gone * member.index.shape[1]
            blocks[member.axis] = member.blocks
    result: dict[str, Sizes] = {}
    for axis, count in lost.items():
        sizes = list(result.get(axis.value, analysis.shapes[axis.value]))
        sizes[axis.position] = (sizes[axis.position] or 0) - count // blocks[axis]
        result[axis.value] = tuple(sizes)
    return result


def sizes_after(shapes: Mapping[str, Sizes], kept: Mapping[Axis, Index]) -> dict[str, Sizes]:
    """`shapes` with the sizes of the resized axes replaced."""
    result = dict(shapes)
    for axis, indices in kept.items():
        if axis.by < 0:
            sizes = list(result[axis.value])
            sizes[axis.position] = len(indices)
            result[axis.value] = tuple(sizes)
    return result


def unit_parameters(model: ir.Model, analysis: Analysis) -> dict[str, float]:
    """Parameters that go with one unit, per group name, as long as nothing else has gone."""
    weights = {name for name, value in constants(model).items() if is_weight(value)}
    return {
        group.name: float(
            sum(
                _per_index(analysis.shapes[member.axis.value], member.axis.position)
                * member.index.shape[1]
                / member.blocks
                for member in group.members
                if member.axis.value in weights
            )
        )
        for group in analysis.groups
    }


def _per_index(sizes: Sizes, position: int) -> int:
    return _count((*sizes[:position], *sizes[position + 1 :]))


def ceiling(model: ir.Model, analysis: Analysis) -> tuple[int, int]:
    """Parameters and MACs left when every group is down to its last unit."""
    keep: dict[str, Mask] = {}
    for group in analysis.groups:
        keep[group.name] = np.arange(group.size) == 0
    keep = completed_keep(analysis, keep)
    after = sizes_after(analysis.shapes, kept_indices(analysis.groups, keep, analysis.shapes))
    return parameters(model, after), macs(model, analysis, after)
