"""The facts of a graph: every operator's rule applied, and what no rule explains frozen.

`facts(model, shapes)` is the one entry. Nothing is resolved here: see `groups`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

import onnx_ir as ir

from onnxprune.base import Array, Axis, Balanced, Choice, Coupling, Fact, Frozen, Reason
from onnxprune.ops.control import surroundings
from onnxprune.ops.registry import COUPLES, Sizes, View
from onnxprune.scopes import nodes, subgraphs

__all__ = ["facts", "raw_facts", "striped", "views"]


def views(
    model: ir.Model,
    shapes: Mapping[str, Sizes],
    known: Mapping[str, Array],
    *,
    making: AbstractSet[str] | None = None,
) -> Iterator[View]:
    """Every node as rules see it, in order; nodes of a body stand before the node it is of.

    Args:
        model: not changed.
        shapes: of its analysis.
        known: likewise.
        making: only nodes that put out one of these values; None for all.
    """
    opsets = model.graph.opset_imports
    for node in nodes(model):
        if making is not None and not any(value.name in making for value in node.outputs):
            continue
        domain = "" if node.domain in ("", "ai.onnx") else node.domain
        yield View(node=node, shapes=shapes, opset=opsets.get(domain, 1), known=known)


Said = tuple["View | None", Fact]  # a fact with the node that yields it; None: the graph itself


def facts(
    model: ir.Model, shapes: Mapping[str, Sizes], known: Mapping[str, Array]
) -> Iterator[Said]:
    """All couplings, choices and freezes, each with the node that yields it (None: the graph).

    Where blocks need only equal counts (`base.Balanced`), what holds of the same members of each.
    """
    return striped(raw_facts(model, shapes, known))


def striped(said: Iterable[Said]) -> Iterator[Said]:
    """The same with every `Balanced` replaced by its stripes."""
    for view, fact in said:
        if isinstance(fact, Balanced):
            yield from ((view, stripe) for stripe in fact.stripes)
        else:
            yield view, fact


def raw_facts(
    model: ir.Model, shapes: Mapping[str, Sizes], known: Mapping[str, Array]
) -> Iterator[Said]:
    """What the rules yield, and what no rule explains frozen."""
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
    values = list(surroundings(view.node))
    rule = COUPLES.find(view.node, view.opset)
    unknown = next((value for value in values if value.name not in view.shapes), None)
    if any(subgraphs(view.node)) and rule is not None:
        unknown = None  # the rule says what to do about it
    if rule is None or unknown is not None:
        reason = Reason.NO_RULE if rule is None else Reason.UNKNOWN_SHAPE
        detail = view.node.op_type + ("" if unknown is None else f": {unknown.name}")
        for value in values:
            yield from _freeze(value, view.shapes, reason, view.key, detail)
        return
    explained: set[Axis] = set()
    for fact in rule(view):
        explained.update(_axes(fact))
        yield fact
    yield from _unexplained(view, values, explained)


def _axes(fact: Fact) -> Sequence[Axis]:
    if isinstance(fact, Balanced):
        return [axis for stripe in fact.stripes for axis in _axes(stripe)]
    if isinstance(fact, Coupling):
        return (fact.left, fact.right)
    if isinstance(fact, Choice):
        return [axis for axis, _ in fact.axes]
    return (fact.axis,)


def _unexplained(view: View, values: Sequence[ir.Value], explained: set[Axis]) -> Iterator[Fact]:
    """Totality: an axis of size > 1 that the rule forgot is frozen."""
    for value in values:
        for position, size in enumerate(view.shapes.get(value.name or "", ())):
            axis = Axis(value.name or "", position)
            if size != 1 and size is not None and axis not in explained:
                yield Frozen(
                    axis=axis,
                    reason=Reason.UNEXPLAINED,
                    node=view.key,
                    detail=view.node.op_type,
                )
