"""Apply a plan: the smaller model, and the moments that go with it.

`prune(model, analysis, plan)` is pure: the model given stays as it is, an empty plan gives it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Index, Plan
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.graph.order import arranged, kept_indices
from onnxprune.model import constants, keep, list_initializers, set_constant, tensor_of
from onnxprune.ops.edit import Edit, names_made
from onnxprune.ops.registry import RESIZES, View
from onnxprune.rewrite.compensate import check, compensate, substitutes
from onnxprune.scopes import nodes, subgraphs
from onnxprune.tensors import numbers

__all__ = ["Pruned", "prune", "take", "take_moments"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pruned:
    """The model after a plan, and the kept indices per resized axis in the old numbering.

    They stand in the order in which they stand afterwards; of an axis with `by`, one row per block.
    """

    model: ir.Model
    kept: Mapping[Axis, Index]


def prune(model: ir.Model, analysis: Analysis, plan: Plan) -> Pruned:
    """Remove the units that `plan` does not keep.

    Args:
        model: the graph; not changed.
        analysis: of this very graph.
        plan: masks per group, folds and merges.

    Raises:
        PlanError: the plan does not fit the groups, or asks a consumer to absorb what it cannot.
    """
    check(analysis, plan)
    kept = kept_indices(analysis.groups, plan.keep, analysis.shapes)
    if not kept:
        return Pruned(model=model, kept={})
    kept = arranged(analysis.order, kept)
    clone = model.clone()
    shapes = dict(analysis.shapes)
    edit = partial(Edit, kept=kept, shapes=shapes, graph=clone.graph, taken=names_made(clone))
    by_key = {view.key: view for view in views(clone, shapes, analysis.known)}
    for consumer, substitute in substitutes(analysis.groups, plan).items():
        compensate(edit(view=by_key[consumer.node]), consumer, substitute)
    slice_constants(clone, kept)
    _resize(list(views(clone, shapes, analysis.known)), kept, edit)
    _forget_shapes(clone, kept)
    list_initializers(clone)
    return Pruned(model=clone, kept=kept)


def slice_constants(model: ir.Model, kept: Mapping[Axis, Index]) -> None:
    """Take the kept indices of every initializer and Constant node of `model`, in place."""
    for name, value in constants(model).items():
        rank = len(tensor_of(value).shape)
        if any(Axis(name, *pair) in kept for pair in itertools.permutations(range(rank), 2)):
            set_constant(value, take(name, numbers(tensor_of(value)), kept))
            continue
        axes = {position: Axis(name, position) for position in range(rank)}
        here = {position: kept[axis] for position, axis in axes.items() if axis in kept}
        if here:
            keep(value, here)


def take(name: str, array: Array, kept: Mapping[Axis, Index]) -> Array:
    """`array`, the value `name`, with the kept indices of its resized axes; itself if none is."""
    for position, by in itertools.permutations(range(array.ndim), 2):
        rows = kept.get(Axis(name, position, by))
        if rows is not None:
            array = _take_by_block(array, position, by, rows)
    for position in range(array.ndim):
        indices = kept.get(Axis(name, position))
        if indices is not None:
            array = np.take(array, indices, axis=position)
    return array


def _take_by_block(array: Array, position: int, by: int, rows: Index) -> Array:
    """Of block b of axis `by`, the indices rows[b] of axis `position`; rows: (blocks, K)."""
    front = np.moveaxis(array, (by, position), (0, 1))
    blocks = np.split(front, len(rows))
    taken = [np.take(block, kept, axis=1) for block, kept in zip(blocks, rows, strict=True)]
    return np.ascontiguousarray(np.moveaxis(np.concatenate(taken), (0, 1), (by, position)))


def _resize(seen: Sequence[View], kept: Mapping[Axis, Index], edit: Callable[..., Edit]) -> None:
    resized = {axis.value for axis in kept}
    for view in seen:
        rule = RESIZES.find(view.node, view.opset)
        values = (*view.node.inputs, *view.node.outputs)
        if rule is not None and any(v is not None and v.name in resized for v in values):
            rule(edit(view=view))


def _forget_shapes(model: ir.Model, kept: Mapping[Axis, Index]) -> None:
    """Drop what the file claimed about intermediate values: runtimes refuse stale sizes.

    What goes in and out of a body keeps its type, which some runtimes want there.
    """
    keeping = set(model.graph.outputs)
    for body in (body for node in nodes(model) for body in subgraphs(node)):
        for value in (*body.inputs, *body.outputs):
            keeping.add(value)
            _resize_claim(value, kept)
    for value in (value for node in nodes(model) for value in node.outputs):
        if value not in keeping:
            value.shape, value.type = None, None


def _resize_claim(value: ir.Value, kept: Mapping[Axis, Index]) -> None:
    if value.shape is not None and value.const_value is None:
        axes = [Axis(value.name or "", position) for position in range(len(value.shape))]
        sizes = zip(value.shape, axes, strict=True)
        value.shape = ir.Shape([len(kept[a]) if a in kept else size for size, a in sizes])


def take_moments(
    moments: Mapping[str, Mapping[str, Array]],
    kept: Mapping[Axis, Index],
    parameters: Mapping[str, Array],
) -> dict[str, dict[str, Array]]:
    """Optimizer moments for the parameters after a removal.

    Args:
        moments: per slot and parameter, before.
        kept: as `prune` returned it.
        parameters: after; new ones (biases that took over a constant) start at zero.
    """
    return {
        slot: {
            name: take(name, by_name[name], kept) if name in by_name else np.zeros_like(array)
            for name, array in parameters.items()
        }
        for slot, by_name in moments.items()
    }
