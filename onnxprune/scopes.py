"""Graphs within graphs: the bodies of If, Loop and Scan, and names that differ in all of them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["name_all_values", "nodes", "subgraphs"]

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of an If, Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.type not in _GRAPHS or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        else:
            yield from attribute.as_graphs()


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node in the order of computation; those of a body stand before the node it is of."""
    yield from _nodes(model.graph)


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        for body in subgraphs(node) if node.attributes else ():
            yield from _nodes(body)
        yield node


def name_all_values(model: ir.Model) -> None:
    """Give every value a name of its own, so that everything later can refer to values by name.

    Bodies of an If, Loop or Scan may call different values alike, or like a value outside; what is
    inside a body then gets another name, which nobody outside can see.
    """
    given = (*model.graph.inputs, *model.graph.initializers.values())
    made = (value for node in model.graph for value in node.outputs)
    taken = {value.name or "" for value in (*given, *made)}
    for node in model.graph:
        for position, value in enumerate(node.outputs):
            _name(value, f"{node.op_type}_{position}_{len(taken)}", taken)
    for node in model.graph:
        for body in subgraphs(node):
            _name_inside(body, taken)


def _name(value: ir.Value, name: str, taken: set[str]) -> None:
    """Call a value that has no name `name`; no name means left out, unless somebody reads it."""
    if not value.name and value.uses():
        taken.add(name)
        value.name = name


def _name_inside(body: ir.Graph, taken: set[str]) -> None:
    """Names of a body's values, unlike all those `taken`, which grows."""
    for value in [*body.inputs, *body.initializers.values()]:
        _rename(value, taken)
    for node in body:
        for position, value in enumerate(node.outputs):
            _name(value, f"{node.op_type}_{position}_{len(taken)}", taken)
            _rename(value, taken)
        for inner in subgraphs(node):
            _name_inside(inner, taken)


def _rename(value: ir.Value, taken: set[str]) -> None:
    if not value.name:
        return
    unique, number = value.name, 1
    while unique in taken:
        unique, number = f"{value.name}/{number}", number + 1
    if unique != value.name:
        value.name = unique
    taken.add(unique)
