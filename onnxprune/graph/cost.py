"""What a model costs: parameters and multiply-accumulates, before and after a removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Group, Index, Mask
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.model import constants, tensor_of
from onnxprune.ops.registry import MACS, Sizes

__all__ = ["ceiling", "kept_indices", "macs", "parameters", "sizes_after", "unit_parameters"]


def parameters(model: ir.Model, shapes: Mapping[str, Sizes] | None = None) -> int:
    """Number of floating-point (or quantized) weights that the file holds.

    Args:
        model: counted are initializers and Constant nodes of rank >= 1.
        shapes: other sizes than the file's, to count what would be left.
    """
    return sum(
        int(np.prod([size or 1 for size in _shape(name, value, shapes)], dtype=np.int64))
        for name, value in constants(model).items()
        if is_weight(value)
    )


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

    Args:
        model: the graph.
        analysis: its static shapes.
        shapes: other sizes, to count what would be left.
    """
    total = 0
    for view in views(model, shapes or analysis.shapes, analysis.known):
        if view.node.graph is not model.graph:
            continue  # the node that runs the body counts what is in it
        rule = MACS.find(view.node, view.opset)
        values = (*view.node.inputs, *view.node.outputs)
        names = {value.name for value in values if value is not None and value.name}
        if rule is not None and names <= view.shapes.keys():
            total += rule(view)
    return total


def kept_indices(
    groups: Sequence[Group], keep: Mapping[str, Mask], shapes: Mapping[str, Sizes]
) -> dict[Axis, Index]:
    """Ascending kept indices of every axis that loses some.

    Args:
        groups: all groups that `keep` may name.
        keep: (U,) bool per group name; absent groups keep everything.
        shapes: sizes before.
    """
    alive: dict[Axis, Mask] = {}
    for group in groups:
        mask = keep.get(group.name)
        if mask is None or mask.all():
            continue
        for member in group.members:
            size = shapes[member.axis.value][member.axis.position]
            here = alive.setdefault(member.axis, np.ones(size or 0, np.bool_))
            here[member.index[~mask].reshape(-1)] = False
    return {axis: np.flatnonzero(mask) for axis, mask in alive.items()}


def sizes_after(shapes: Mapping[str, Sizes], kept: Mapping[Axis, Index]) -> dict[str, Sizes]:
    """`shapes` with the sizes of the resized axes replaced."""
    result = dict(shapes)
    for axis, indices in kept.items():
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
                for member in group.members
                if member.axis.value in weights
            )
        )
        for group in analysis.groups
    }


def _per_index(sizes: Sizes, position: int) -> int:
    rest = [size or 1 for place, size in enumerate(sizes) if place != position]
    return int(np.prod(rest, dtype=np.int64))


def ceiling(model: ir.Model, analysis: Analysis) -> tuple[int, int]:
    """Parameters and MACs left when every group is down to its last unit."""
    keep: dict[str, Mask] = {}
    for group in analysis.groups:
        keep[group.name] = np.arange(group.size) == 0
    after = sizes_after(analysis.shapes, kept_indices(analysis.groups, keep, analysis.shapes))
    return parameters(model, after), macs(model, analysis, after)
