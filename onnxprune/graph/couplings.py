"""The facts of a graph: every operator's rule applied, and what no rule explains frozen.

`facts(model, shapes)` is the one entry. Nothing is resolved here: see `groups`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxprune.base import Array, Axis, Choice, Coupling, Fact, Frozen, Reason
from onnxprune.ops.registry import COUPLES, Sizes, View

__all__ = ["facts", "views"]


def views(
    model: ir.Model, shapes: Mapping[str, Sizes], known: Mapping[str, Array]
) -> Iterator[View]:
    """Every node of the main graph, in order, as rules see it."""
    opsets = model.graph.opset_imports
    for node in model.graph:
        domain = "" if node.domain in ("", "ai.onnx") else node.domain
        yield View(node=node, shapes=shapes, opset=opsets.get(domain, 1), known=known)


def facts(
    model: ir.Model, shapes: Mapping[str, Sizes], known: Mapping[str, Array]
) -> Iterator[tuple[View | None, Fact]]:
    """All couplings, choices and freezes, each with the node that yields it (None: the graph)."""
    for fact in _borders(model, shapes):
        yield None, fact
    for view in views(model, shapes, known):
        for fact in _node_facts(view):
            yield view, fact


def _borders(model: ir.Model, shapes: Mapping[str, Sizes]) -> Iterator[Fact]:
    """Graph inputs and outputs keep their sizes."""
    for values, reason in (
        ([v for v in model.graph.inputs if not v.is_initializer()], Reason.GRAPH_INPUT),
        (model.graph.outputs, Reason.GRAPH_OUTPUT),
    ):
        for value in values:
            yield from _freeze(value, shapes, reason, "")


def _freeze(
    value: ir.Value | None, shapes: Mapping[str, Sizes], reason: Reason, node: str, detail: str = ""
) -> Iterator[Fact]:
    if value is not None and value.name and value.name in shapes:
        for position in range(len(shapes[value.name])):
            yield Frozen(axis=Axis(value.name, position), reason=reason, node=node, detail=detail)


def _node_facts(view: View) -> Iterator[Fact]:
    node = view.node
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    for captured in _captured(node):
        yield from _freeze(captured, view.shapes, Reason.SUBGRAPH, view.key, node.op_type)
    rule = COUPLES.find(node, view.opset)
    unknown = next((value for value in values if value.name not in view.shapes), None)
    if rule is None or unknown is not None:
        reason = Reason.NO_RULE if rule is None else Reason.UNKNOWN_SHAPE
        detail = node.op_type if unknown is None else f"{node.op_type}: {unknown.name}"
        for value in values:
            yield from _freeze(value, view.shapes, reason, view.key, detail)
        return
    explained: set[Axis] = set()
    for fact in rule(view):
        explained.update(_axes(fact))
        yield fact
    yield from _unexplained(view, values, explained)


def _axes(fact: Fact) -> Sequence[Axis]:
    if isinstance(fact, Coupling):
        return (fact.left, fact.right)
    if isinstance(fact, Choice):
        return [axis for axis, _ in fact.axes]
    return (fact.axis,)


def _unexplained(view: View, values: Sequence[ir.Value], explained: set[Axis]) -> Iterator[Fact]:
    """Totality: an axis of size > 1 that the rule forgot is frozen."""
    for value in values:
        for position, size in enumerate(view.shapes[value.name or ""]):
            axis = Axis(value.name or "", position)
            if size != 1 and size is not None and axis not in explained:
                yield Frozen(
                    axis=axis,
                    reason=Reason.UNEXPLAINED,
                    node=view.key,
                    detail=view.node.op_type,
                )


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Outer values that the bodies of an If, Loop or Scan read."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            for inner in graph.all_nodes():
                for value in inner.inputs:
                    if value is not None and value.graph is not graph:
                        yield value
