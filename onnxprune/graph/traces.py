"""What each unit of a group computes, as rows of numbers: which units are copies of each other.

`trace(model, analysis, group)` walks from where the group's axes begin to its consumers and
composes the `@traces` rules on the way. Where a rule is missing, nothing is claimed.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from onnxprune.base import Axis, Group, Index
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.model import is_constant
from onnxprune.ops.registry import TRACES, View
from onnxprune.ops.trace import Kind, Trace, TraceView, combined
from onnxprune.scopes import nodes, subgraphs

__all__ = ["trace"]


def trace(model: ir.Model, analysis: Analysis, group: Group) -> Trace | None:
    """One row per unit at the group's consumers; None when an operator on the way is unknown.

    Two units with equal rows are interchangeable at every consumer. With several consumers the rows
    are put side by side and the kind is the weakest.
    """
    if not group.consumers:
        return None
    index = {member.axis: member.index for member in group.members}
    values = {axis.value for axis in index}
    # What a body is handed differs from step to step.
    handed = [value for node in nodes(model) for body in subgraphs(node) for value in body.inputs]
    found: dict[str, Trace | None] = dict.fromkeys(value.name or "" for value in handed)
    for view in views(model, analysis.shapes, analysis.known, making=values):
        names = {value.name for value in view.node.outputs if not is_constant(value)}
        if names & values and not names <= set(found):
            result = _apply(view, found, index)
            found.update({name or "": result for name in names if name in values})
    ends = dict.fromkeys(consumer.axis.value for consumer in group.consumers)
    traces = [found.get(name) for name in ends]
    if any(item is None for item in traces):
        return None
    return _side_by_side([item for item in traces if item is not None])


def _side_by_side(traces: list[Trace]) -> Trace:
    distinct = {id(item.rows): item for item in traces}
    if len(distinct) == 1:
        slope = max(item.slope for item in traces)
        return replace(traces[0], kind=_weakest({item.kind for item in traces}), slope=slope)
    return combined(list(distinct.values()))


def _weakest(kinds: set[Kind]) -> Kind:
    """What holds of every value at once: tanh and relu of one z have no symmetry in common."""
    symmetric = {Kind.LINEAR, Kind.HOMOGENEOUS}, {Kind.LINEAR, Kind.ODD}
    agree = len(kinds) == 1 or any(kinds <= pair for pair in symmetric)
    return max(kinds) if agree else Kind.EQUAL


def _apply(view: View, found: dict[str, Trace | None], index: dict[Axis, Index]) -> Trace | None:
    rule = TRACES.find(view.node, view.opset)
    if rule is None:
        return None
    inputs: list[Trace | None] = []
    for slot in range(len(view.node.inputs)):
        value = view.input(slot)
        inside = value is not None and value.name in found
        if inside and found[value.name or ""] is None:  # type: ignore[union-attr]
            return None
        inputs.append(found[value.name or ""] if inside else None)  # type: ignore[union-attr]
    result: Trace | None = rule(view, TraceView(inputs=inputs, index=index.get))
    return result
