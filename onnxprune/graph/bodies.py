"""Bodies of If, Loop and Scan laid out in the main graph, so that shape inference sees all of it.

`lay_out` puts one step of each body in the place of its node; every value keeps its name and, as
far as that can be known, its sizes, but not what it holds. A size that differs between branches,
or from step to step, is open. Which ones do is found by assuming that none does: `Laid.learn`
compares what came out, and the graph is laid out again until nothing contradicts. What holds then
holds for the first step, and for every step if for the one before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import InvalidModelError
from onnxprune.model import node_key, opset
from onnxprune.ops.control import Body, Tie, bodies, steps
from onnxprune.ops.registry import Sizes
from onnxprune.scopes import nodes, subgraphs

__all__ = ["Laid", "lay_out"]

_Name = str


@dataclass(slots=True)
class Laid:
    """What has been learned about values whose sizes do not follow from those before them.

    Attributes:
        open: positions whose sizes differ, per value name; None: even the rank does.
        counts: how often bodies run, per node key.
        equal: pairs of names that must have equal sizes, the first of which may be open.
        running: per body its node's key, how often it runs if that is written down, and the
            sequences that tell otherwise, each with the position of its steps.
    """

    open: dict[_Name, frozenset[int] | None] = field(default_factory=dict)
    counts: dict[_Name, int] = field(default_factory=dict)
    equal: list[tuple[_Name, _Name]] = field(default_factory=list)
    running: list[tuple[_Name, int | None, list[tuple[_Name, int]]]] = field(default_factory=list)

    def learn(self, shapes: Mapping[str, Sizes]) -> bool:
        """Compare `shapes`, as inferred, with what was assumed; True where the graph must change.

        The number of steps comes first: sizes that hang on it are no contradiction yet.
        """
        counts = dict(self._counted(shapes))
        if counts != self.counts:
            self.counts = counts
            return True
        before = dict(self.open)
        for first, second in self.equal:
            self._compare(first, shapes.get(first), shapes.get(second))
        return self.open != before

    def _counted(self, shapes: Mapping[str, Sizes]) -> Iterator[tuple[_Name, int]]:
        for key, count, sequences in self.running:
            sizes = [shapes[name][step] for name, step in sequences if shapes.get(name)]
            known = [size for size in (count, *sizes) if size is not None]
            if known:
                yield key, known[0]

    def _compare(self, name: str, here: Sizes | None, there: Sizes | None) -> None:
        known = self.open.get(name, frozenset())
        if known is None:
            return
        if here is None or there is None or len(here) != len(there):
            self.open[name] = None
            return
        differing = frozenset(
            place for place, (a, b) in enumerate(zip(here, there, strict=True)) if a != b
        )
        if differing - known:
            self.open[name] = known | differing


def lay_out(model: ir.Model, learned: Laid) -> None:
    """Do so in place.

    Raises:
        InvalidModelError: two values are called alike; `model.load` gives names that differ.
    """
    learned.equal.clear()
    learned.running.clear()
    if next(_running(model), None) is None:
        return
    _check_names(model)
    while (node := next(_running(model), None)) is not None:
        _Layout(model, node, learned).write()


def _check_names(model: ir.Model) -> None:
    made = [value.name for node in nodes(model) for value in node.outputs if value.name]
    for body in (body for node in nodes(model) for body in subgraphs(node)):
        given = (*body.inputs, *body.initializers.values())
        made += [value.name for value in given if value.name]
    made += list(model.graph.initializers)
    twice = sorted(name for name, count in Counter(made).items() if count > 1)
    if twice:
        raise InvalidModelError(
            f"{', '.join(twice[:5])}: values of several bodies are called so, expected names of "
            "their own; read the file with onnxprune.load, which gives them",
            names=twice,
        )


def _running(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if any(subgraphs(node)))


class _Layout:
    """One node that is replaced by its bodies."""

    def __init__(self, model: ir.Model, node: ir.Node, learned: Laid) -> None:
        self.model, self.node, self.learned = model, node, learned
        self.key = node_key(node)
        self.e = Emitter(f"{self.key}/laid_out", opset=opset(model))
        self.found = bodies(node, opset(model))
        self.count = 0
        self.stood: dict[ir.Value, ir.Value] = {}

    def write(self) -> None:
        """Put the nodes of all bodies in front of the node, and remove it."""
        parts = self.found or tuple(Body(graph) for graph in subgraphs(self.node))
        made, *_ = [self._body(body, first=number == 0) for number, body in enumerate(parts)]
        for value in self.node.outputs:
            if value.name and value not in [output for output, _ in made]:
                made.append((value, self._unknown()))
        for value, source in made:
            self._stand_in(value, source)
        self.e.add_to(self.model.graph, before=self.node)
        self.model.graph.remove(self.node)

    def _body(self, body: Body, *, first: bool) -> list[tuple[ir.Value, ir.Value]]:
        """Lay out one body; the values that its node's outputs are, if it is the first."""
        sequences = [
            (tie.outer.name or "", tie.step) for tie in body.enters if tie.step is not None
        ]
        self.learned.running.append((self.key, steps(self.node, body, {}), sequences))
        given = {tie.inner: tie for tie in body.enters}
        for value in list(body.graph.inputs):
            tie = given.get(value)
            source = self._alone(value) if tie is None else self._step(tie)
            self._stand_in(value, self._opened(source, value.name or ""))
        self.e.add_to(self.model.graph, before=self.node)
        self.e = Emitter(f"{self.key}/laid_out_{len(self.learned.running)}", opset=self.e.opset)
        made: list[tuple[ir.Value, ir.Value]] = []
        for tie in body.leaves:
            name, inner = tie.outer.name or "", self.stood.get(tie.inner, tie.inner)
            if first:
                made.append((tie.outer, self._opened(self._collected(tie, inner), name)))
            if tie.step is None:
                self.learned.equal.append((name, inner.name or ""))
        for pair in body.carried:
            left, taken = (self.stood.get(value, value) for value in pair)
            self.learned.equal.append((taken.name or "", left.name or ""))
        _move(self.model.graph, self.node, body.graph)
        return made

    def _stand_in(self, value: ir.Value, source: ir.Value) -> None:
        """Let `source` be what `value` was, under its name."""
        self.stood[value] = source
        ir.convenience.replace_all_uses_with(value, source, replace_graph_outputs=True)
        name, value.name = value.name, None
        source.name = name

    def _step(self, tie: Tie) -> ir.Value:
        if tie.step is None:
            return self.e.op("Neg", tie.outer)  # the same sizes, but no constant any more
        return self.e.op("Gather", tie.outer, self._given([], ir.DataType.INT64), axis=tie.step)

    def _collected(self, tie: Tie, inner: ir.Value) -> ir.Value:
        """What the node puts out of what comes out of its body."""
        if tie.step is None:
            return self.e.op("Neg", inner)
        count = self.learned.counts.get(self.key)
        which = self._given([count], ir.DataType.INT64)
        if self.e.opset >= 13:
            longer = self.e.op("Unsqueeze", inner, self.e.integers(tie.step))
        else:
            longer = self.e.op("Unsqueeze", inner, axes=[tie.step])
        return self.e.op("Gather", longer, which, axis=tie.step)

    def _opened(self, source: ir.Value, name: str) -> ir.Value:
        """`source` with the sizes open that are known to differ."""
        places = self.learned.open.get(name, frozenset())
        if places is None:
            return self._unknown()
        for place in sorted(places):
            which = self._given([None], ir.DataType.INT64)
            source = self.e.op("Gather", source, which, axis=place)
        return source

    def _alone(self, value: ir.Value) -> ir.Value:
        """An input of the body that nothing outside ends in: the number of the step, mostly."""
        if self.found is None:
            return self._unknown()
        return self._given([], value.dtype or ir.DataType.INT64)

    def _given(self, sizes: list[int | None], dtype: ir.DataType) -> ir.Value:
        value = self._unknown()
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(sizes)
        return value

    def _unknown(self) -> ir.Value:
        """A further input of the graph, of no known rank."""
        self.count += 1
        value = ir.Value(name=f"{self.key}/unknown_{self.count}")
        value.type = ir.TensorType(ir.DataType.FLOAT)
        self.model.graph.inputs.append(value)
        return value


def _move(graph: ir.Graph, node: ir.Node, body: ir.Graph) -> None:
    """Put the nodes and constants of `body` into `graph`, in front of `node`."""
    inner = list(body)
    constants = dict(body.initializers)
    body.outputs.clear()
    for name, value in constants.items():
        body.initializers.pop(name)
        graph.register_initializer(value)
    body.remove(inner)
    graph.insert_before(node, inner)
