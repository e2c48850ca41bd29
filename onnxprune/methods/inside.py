"""Units that a node uses within itself, such as the hidden state of an LSTM: what removal costs.

Nothing inside the node can take over a constant or a duplicate, so that such a unit can only be
replaced by zero, at every consumer and at the weight through which it is read again. That is exact
for a unit that is zero at every step, the first one included. For all others, the error is that of
one step: what the change of a state does to later states is nowhere bounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.base import Floats, Group, Inexact, Observations
from onnxprune.graph.couplings import facts
from onnxprune.graph.groups import Analysis
from onnxprune.graph.solver import is_virtual
from onnxprune.methods.candidates import Folding, Reader, observed, variance
from onnxprune.ops.registry import PARAMETERS, View

__all__ = ["drops", "seen_together"]


def drops(
    group: Group, parts: Sequence[Reader], views: Mapping[str, View], seen: Observations
) -> Folding | None:
    """Replacing each unit by zero; None where its blocks or weights are not known.

    Args:
        group: with nodes that use its units within themselves.
        parts: its consumers.
        views: of all nodes.
        seen: ranges, means and variances at the consumers.

    Returns:
        Errors and bounds as for a constant; without values, as nothing takes over.
    """
    axes = [consumer.axis for consumer in (*group.consumers, *group.inner)]
    if not parts or any(axis.by >= 0 for axis in axes):
        return None
    error, bound = np.zeros(group.size), np.zeros(group.size)
    exact = np.ones(group.size, np.bool_)
    for part in parts:
        _, square, low, high = (row[part.index] for row in observed(seen, part.consumer.axis))
        size = np.sqrt(part.power) or 1.0
        largest = np.maximum(np.abs(low), np.abs(high))
        error = np.maximum(error, np.sqrt((part.strength**2 * square).sum(axis=1)) / size)
        bound = np.maximum(bound, (part.reach * largest).sum(axis=1) / size)
        exact &= (largest == 0).all(axis=1)
    first = parts[0]
    _, square, low, high = (row[first.index] for row in observed(seen, first.consumer.axis))
    power, largest = square.mean(axis=1), np.maximum(np.abs(low), np.abs(high)).max(axis=1)
    varying = variance(seen, first.consumer.axis, 0.0)[first.index].mean(axis=1)
    for inner in group.inner:
        weight = views[inner.node].constant(inner.slot)
        if weight is None:
            return None
        index = group.member(inner.axis).index
        table = np.moveaxis(weight.astype(np.float64), inner.axis.position, 0)
        strength = np.linalg.norm(table.reshape(len(table), -1), axis=1)[index]
        strength = np.sqrt((strength**2).sum(axis=1))
        size = float(np.sqrt(strength**2 @ varying)) or 1.0
        error = np.maximum(error, strength * np.sqrt(power) / size)
        bound = np.maximum(bound, strength * largest / size)
        exact &= _starts_at_zero(group, views[inner.node])
    return Folding(error=error, bound=bound, exact=exact, values={})


def seen_together(model: ir.Model, analysis: Analysis, group: Group) -> bool:
    """Whether a normalization, a mean or the like sees units of the group as a whole.

    `Group.exact` says so of others; nothing is called exact there that nodes use within.
    """
    own = {member.axis for member in group.members}
    values = {axis.value for axis in own}
    for view, fact in facts(model, analysis.shapes, analysis.known):
        if view is not None and isinstance(fact, Inexact):
            touched = {value.name for value in (*view.node.inputs, *view.node.outputs) if value}
            if fact.axis in own or (is_virtual(fact.axis) and touched & values):
                return True
    return False


def _starts_at_zero(group: Group, view: View) -> bool:
    """Whether what the node is given of its units, other than weights, is nothing or zeros."""
    declared = PARAMETERS.find(view.node, view.opset)
    weights = {} if declared is None else declared()
    own = {member.axis.value for member in group.members}
    for slot in range(len(view.node.inputs)):
        value = view.input(slot)
        if value is None or slot in weights or value.name not in own:
            continue
        array: Floats | None = view.constant(slot)
        if array is None or array.any():
            return False
    return True
