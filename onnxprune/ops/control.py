"""Control flow: If, Loop and Scan, whose bodies are graphs of their own.

A body is no special case for the other operators: what its nodes read from outside are values like
any others. What the rules here say is how the inputs and outputs of a body and of its node belong
together. An If whose condition cannot change, and functions of the model, are written into the
graph before it is analyzed (`rewrite.inline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.base import Fact, Reason
from onnxprune.model import constant
from onnxprune.ops.registry import MACS, Sizes, View, couples, macs
from onnxprune.scopes import subgraphs

__all__ = ["Body", "Tie", "bodies", "steps", "surroundings"]


@dataclass(frozen=True, slots=True)
class Tie:
    """Two values of which one is the other.

    Attributes:
        outer: an input or output of the node.
        inner: an input or output of the body.
        step: position of the axis of `outer` that `inner` has not: it is one step of it.
    """

    outer: ir.Value
    inner: ir.Value
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """One body of a node.

    Attributes:
        graph: the body.
        enters: what comes in.
        leaves: what comes out; all named, as an output that is left out ties nothing.
        carried: pairs (output, input) of the body: what one step hands to the next.
    """

    graph: ir.Graph
    enters: tuple[Tie, ...] = ()
    leaves: tuple[Tie, ...] = ()
    carried: tuple[tuple[ir.Value, ir.Value], ...] = ()


def bodies(node: ir.Node, opset: int) -> tuple[Body, ...] | None:
    """How the bodies of a node hang together with it; None where that is not known.

    Scan of opset 8, with its axis of examples, and operators of other domains are not known.
    """
    if node.domain not in ("", "ai.onnx") or any(a.is_ref() for a in node.attributes.values()):
        return None
    if node.op_type == "If":
        return tuple(
            Body(node.attributes[name].as_graph(), leaves=_leaving(node, name))
            for name in ("then_branch", "else_branch")
        )
    if node.op_type == "Loop":
        return (_loop(node),)
    return (_scan(node),) if node.op_type == "Scan" and opset >= 9 else None


def _leaving(node: ir.Node, name: str) -> tuple[Tie, ...]:
    pairs = zip(node.outputs, node.attributes[name].as_graph().outputs, strict=True)
    return tuple(Tie(outer, inner) for outer, inner in pairs if outer.name)


def _loop(node: ir.Node) -> Body:
    """Inputs of the body: number, condition, states; outputs: condition, states, one per step."""
    graph = node.attributes["body"].as_graph()
    outer, inner, made = list(node.inputs[1:]), list(graph.inputs[1:]), list(graph.outputs)
    states = len(inner)
    leaves = [
        Tie(value, source, None if number < states - 1 else 0)
        for number, (value, source) in enumerate(zip(node.outputs, made[1:], strict=True))
        if value.name
    ]
    return Body(
        graph,
        enters=tuple(Tie(a, b) for a, b in zip(outer, inner, strict=False) if a is not None),
        leaves=tuple(leaves),
        carried=tuple(zip(made[:states], inner, strict=True)),
    )


def _scan(node: ir.Node) -> Body:
    """Inputs of the body: states, then one step of each sequence; outputs alike."""
    graph = node.attributes["body"].as_graph()
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    across = [list(_integers(node, f"scan_{side}_axes")) for side in ("input", "output")]
    tied: list[tuple[Tie, ...]] = []
    for axes, outer, inner in zip(
        across, (node.inputs, node.outputs), (graph.inputs, graph.outputs), strict=True
    ):
        places = [None] * states + (axes or [0] * (len(outer) - states))
        pairs = zip(outer, inner, places, strict=True)
        tied.append(tuple(Tie(a, b, place) for a, b, place in pairs if a is not None and a.name))
    carried = zip(graph.outputs[:states], graph.inputs[:states], strict=True)
    return Body(graph, enters=tied[0], leaves=tied[1], carried=tuple(carried))


def _integers(node: ir.Node, name: str) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def steps(node: ir.Node, body: Body, shapes: Mapping[str, Sizes]) -> int | None:
    """How often the body runs; None where that is not known in advance."""
    if node.op_type == "Scan":
        for tie in body.enters:
            sizes = shapes.get(tie.outer.name or "")
            if tie.step is not None and sizes:
                return sizes[tie.step]
        return None
    if node.op_type != "Loop" or not _never_stops(node, body):
        return None
    count = constant(node.inputs[0])
    return None if count is None else int(count.reshape(-1)[0])


def _never_stops(node: ir.Node, body: Body) -> bool:
    """Whether the condition of a Loop is true before and after every step."""
    handed, given = body.carried[0][0], body.graph.inputs[1]
    while (maker := handed.producer()) is not None and maker.op_type == "Identity":
        source = maker.inputs[0]
        assert source is not None
        handed = source
    stays = handed is given or _is_true(handed)
    first = node.inputs[1] if len(node.inputs) > 1 else None
    return stays and (first is None or _is_true(first))


def _is_true(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and bool(array.all())


@couples("If", "Loop", "Scan")
def control(view: View) -> Iterator[Fact]:
    """Couple the inputs and outputs of each body with those of the node, and from step to step.

    Forward:  If: y = outputs of one of two bodies.  Loop: states = body(number, condition, states),
              Scan: states = body(states, step of each sequence), y = the last states and what the
              body put out at each step, one behind the other
    Couples:  what a body takes or gives <-> what the node takes or gives, axis by axis; the output
              of a step <-> the input of the next; steps keep their number
    """
    found = bodies(view.node, view.opset)
    if found is None:
        for value in surroundings(view.node):
            if value.name in view.shapes:
                positions = range(len(view.shape(value)))
                yield from view.fixed(value, *positions, reason=Reason.SUBGRAPH)
        return
    for body in found:
        for tie in (*body.enters, *body.leaves):
            yield from _tied(view, tie.outer, tie.inner, tie.step)
        for given, taken in body.carried:
            yield from _tied(view, given, taken, None)


def surroundings(node: ir.Node) -> Iterator[ir.Value]:
    """What goes in and out of a node and of its bodies, as far as it has a name."""
    inside = [(*body.inputs, *body.outputs) for body in subgraphs(node)]
    for value in (*node.inputs, *node.outputs, *(value for values in inside for value in values)):
        if value is not None and value.name:
            yield value


def _tied(view: View, outer: ir.Value, inner: ir.Value, step: int | None) -> Iterator[Fact]:
    """Axis by axis; where a rank is not known everything keeps its size."""
    known = [value for value in (outer, inner) if value.name in view.shapes]
    ranks = [len(view.shape(value)) for value in known]
    if len(known) < 2 or ranks[0] != ranks[1] + (step is not None):
        for value in known:
            positions = range(len(view.shape(value)))
            yield from view.fixed(value, *positions, reason=Reason.UNKNOWN_SHAPE)
        return
    places = list(range(ranks[0]))
    if step is not None:
        yield from view.fixed(outer, places.pop(step))
    for position, place in enumerate(places):
        yield from view.equal(view.axis(outer, place), view.axis(inner, position))


@macs("If", "Loop", "Scan")
def control_macs(view: View) -> int:
    """The more expensive branch; the body as often as it runs, once where that is not known."""
    found = bodies(view.node, view.opset) or ()
    costs = [
        (steps(view.node, body, view.shapes) or 1) * _body_macs(view, body.graph) for body in found
    ]
    return max(costs, default=0)


def _body_macs(view: View, graph: ir.Graph) -> int:
    total = 0
    for node in graph:
        opset = view.opset if node.domain in ("", "ai.onnx") else 1
        rule = MACS.find(node, opset)
        values = {value.name for value in (*node.inputs, *node.outputs) if value is not None}
        if rule is not None and values - {""} <= view.shapes.keys():
            total += rule(View(node=node, shapes=view.shapes, opset=opset, known=view.known))
    return total
