"""Units that can go without changing anything: dead, constant and duplicate ones.

`lossless` plans their removal. What a unit does on a sample is evidence only when the sample is
data; on random inputs, units are dead or constant only where their weights prove it:

* no weight that makes the unit differs from zero, so that no input can move it; or
* it is a Relu of a sum that no input can make positive: all weights and the bias are at most 0, and
  what they are multiplied with is never negative, because it comes from another Relu or the like.

Duplicates are equal up to a factor in their weights, and need no sample at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Fold, Group, Mask, Merge, Observable, Observations, Plan
from onnxprune.graph.couplings import views
from onnxprune.graph.ends import consumer_axes
from onnxprune.graph.groups import Analysis
from onnxprune.graph.traces import trace
from onnxprune.graph.weights import weights
from onnxprune.methods.candidates import Folding, Merging, foldings, mergings, readers
from onnxprune.model import constant
from onnxprune.ops.registry import Role
from onnxprune.ops.trace import Kind, Trace

__all__ = ["REQUIRES", "Findings", "dead_units", "lossless", "means", "observed_axes"]

REQUIRES = frozenset({Observable.RANGE, Observable.MEAN, Observable.VARIANCE})
"""What must be observed at `observed_axes`."""

_NEVER_NEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt"}
_PASSES_SIGN = {
    *("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean", "ReduceMax"),
    *("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast"),
}
_PASSES_SIGNS = {"Add", "Concat", "Mul", "Max", "Sum"}  # where all inputs are never negative


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Findings:
    """What can go without a difference.

    Attributes:
        plan: every removal called exact.
        proven: dead and constant units that are so whatever the input.
        observed: dead and constant units that are so on the whole sample.
        duplicates: units that another one takes over.
    """

    plan: Plan
    proven: int
    observed: int
    duplicates: int


def observed_axes(model: ir.Model, analysis: Analysis) -> list[Axis]:
    """Where `lossless` looks: the inputs of the groups' consumers and of their producers."""
    axes = set(consumer_axes(analysis.groups))
    for group in analysis.groups:
        found = trace(model, analysis, group)
        axes.update(found.inputs if found is not None else ())
    return sorted(axes)


def lossless(
    model: ir.Model, analysis: Analysis, seen: Observations, *, trusted: bool
) -> Findings | None:
    """Plan all exact removals of one pass; None when there are none.

    A removal can expose the next one (a duplicate of duplicates), so that callers ask again.

    Args:
        model: the graph with its weights.
        analysis: its groups; those that are not exact, or that nodes use within, are left alone.
        seen: ranges, means and variances on the sample.
        trusted: whether the sample is data, and constant on it means constant.
    """
    by_key = {view.key: view for view in views(model, analysis.shapes, analysis.known)}
    still = _made_of_nothing(model, analysis)
    keep: dict[str, Mask] = {}
    folds: list[Fold] = []
    merges: list[Merge] = []
    proven = observed = 0
    for group in analysis.groups:
        if not group.exact or group.inner or not group.consumers:
            continue
        parts = readers(group, by_key, analysis, seen)
        fold = None if parts is None else foldings(parts, seen)
        merge = None if parts is None else mergings(model, analysis, group, parts, seen)
        sure = still[group.name] | _never_positive(model, trace(model, analysis, group), group)
        dead = dead_units(group, seen)
        constant_units = (dead if fold is None else dead | fold.exact) & (sure | trusted)
        gone = _spare_one(constant_units)
        proven += int((gone & sure).sum())
        observed += int((gone & ~sure).sum())
        if fold is not None:
            folds += _folds(group, fold, gone & ~dead)
        if merge is not None:
            victims = list(_victims(merge, gone))
            merges += [_merge(group, merge, unit) for unit in victims]
            gone[victims] = True
        if gone.any():
            keep[group.name] = ~gone
    if not keep:
        return None
    exact = {name: ~mask for name, mask in keep.items()}
    plan = Plan(keep=keep, folds=tuple(folds), merges=tuple(merges), exact=exact)
    return Findings(plan=plan, proven=proven, observed=observed, duplicates=len(merges))


def dead_units(group: Group, seen: Observations) -> Mask:
    """(U,) zero at all consumers on the whole sample: nothing has to take over."""
    dead = np.ones(group.size, np.bool_)
    for consumer in group.consumers:
        window = seen.get(consumer.axis)
        if window is None or window.low is None or window.high is None:
            return np.zeros(group.size, np.bool_)
        zero = (window.low == 0) & (window.high == 0)
        dead &= zero[group.member(consumer.axis).index].all(axis=1)
    return dead


def _made_of_nothing(model: ir.Model, analysis: Analysis) -> dict[str, Mask]:
    """Per group (U,): whether all weights that make the unit are zero, and there are some."""
    held = weights(model, analysis)
    result: dict[str, Mask] = {}
    for group in analysis.groups:
        still = np.zeros(group.size, np.bool_)
        found = False
        for member in group.members:
            weight = held.get(member.axis)
            if weight is None or not weight.incoming or weight.role != Role.WEIGHT:
                continue
            array = weight.array
            others = tuple(axis for axis in range(array.ndim) if axis != weight.position)
            zero = (array == 0).all(axis=others)[member.index].all(axis=1)
            still = zero & (still | (not found))
            found = True
        result[group.name] = still
    return result


def _never_positive(model: ir.Model, found: Trace | None, group: Group) -> Mask:
    """(U,) whether the sum before the activation can only be zero or less.

    A unit that was zero on a sample as well is then a Relu, and zero always.
    """
    if found is None or found.kind > Kind.HOMOGENEOUS or not found.inputs:
        return np.zeros(group.size, np.bool_)
    values = {value.name: value for node in model.graph for value in node.outputs}
    if not all(_is_never_negative(values.get(axis.value)) for axis in found.inputs):
        return np.zeros(group.size, np.bool_)
    return np.asarray((found.rows <= 0).all(axis=1))


def _is_never_negative(value: ir.Value | None) -> bool:
    array = constant(value)
    if array is not None:
        return bool((array >= 0).all())
    node = None if value is None else value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in _PASSES_SIGN:
        return _is_never_negative(node.inputs[0])
    if node.op_type in _PASSES_SIGNS:
        return all(_is_never_negative(operand) for operand in node.inputs)
    return node.op_type in _NEVER_NEGATIVE


def _spare_one(gone: Mask) -> Mask:
    gone = gone.copy()
    if gone.all():
        gone[0] = False
    return gone


def means(
    model: ir.Model, analysis: Analysis, keep: Mapping[str, Mask], seen: Observations
) -> tuple[Fold, ...]:
    """Folds that replace removed units by their means, where all consumers can take that over.

    The constant that changes the consumers least, in squares; zero is what stands there otherwise.

    Args:
        model: the graph.
        analysis: its groups.
        keep: (U,) bool per group name.
        seen: ranges, means and variances at the consumers, on data.
    """
    by_key = {view.key: view for view in views(model, analysis.shapes, analysis.known)}
    folds: list[Fold] = []
    for group in analysis.groups:
        parts = readers(group, by_key, analysis, seen) if group.name in keep else None
        if parts is not None:
            folds += _folds(group, foldings(parts, seen), ~keep[group.name])
    return tuple(folds)


def _folds(group: Group, fold: Folding, units: Mask) -> Iterator[Fold]:
    for unit in map(int, np.flatnonzero(units)):
        values = {axis: means[unit] for axis, means in fold.values.items()}
        yield Fold(group=group.name, unit=unit, values=values)


def _victims(merge: Merging, gone: Mask) -> Iterator[int]:
    """Duplicates whose survivors stay; a survivor may take over several."""
    removed, survivors = set(np.flatnonzero(gone).tolist()), set[int]()
    for unit in map(int, np.flatnonzero(merge.exact)):
        survivor = int(merge.survivor[unit])
        if unit not in removed | survivors and survivor not in removed:
            removed.add(unit)
            survivors.add(survivor)
            yield unit


def _merge(group: Group, merge: Merging, unit: int) -> Merge:
    return Merge(
        group=group.name,
        victim=unit,
        survivor=int(merge.survivor[unit]),
        scale=float(merge.scale[unit]),
        offset=float(merge.offset[unit]),
    )
