"""Running a model stretch by stretch, for models whose weights should not be in memory at once.

`run_in_parts` computes what one session over the whole model computes: the nodes are divided, in
their order, into stretches with few enough weights, and what one stretch makes is fed to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.model import constant
from onnxprune.runtime.session import Device, Runner
from onnxprune.scopes import subgraphs

__all__ = ["PART", "divided", "run_in_parts"]

PART = 1 << 28  # bytes of weights in one stretch, unless a single node has more


def run_in_parts(
    model: ir.Model, feeds: Mapping[str, Array], *, device: Device | None = None, part: int = PART
) -> dict[str, Array]:
    """All outputs for the arrays in `feeds`, without graph optimizations.

    Args:
        model: not changed.
        feeds: one array per input.
        device: where to run.
        part: bytes of weights in one stretch, unless a single node has more.

    Raises:
        DataError: an array is missing, or has another dtype or shape than the input.
        ModelError: a stretch does not load or run.
    """
    nodes = list(model.graph)
    reads = [list(_read(node)) for node in nodes]
    last = {value.name or "": number for number, values in enumerate(reads) for value in values}
    last |= {value.name or "": len(nodes) for value in model.graph.outputs}
    known: dict[str, Array] = dict(feeds)
    for start, stop in _stretches(reads, part):
        # No session outlives its line: two of them would hold two stretches.
        known |= _run(_cut(model, start, stop, known, last), known, device or Device())
        known = {name: array for name, array in known.items() if last.get(name, -1) >= stop}
    for value in model.graph.outputs:  # those that are constants
        array = constant(value) if value.name not in known else None
        if array is not None and value.name:
            known[value.name] = array
    return {value.name: known[value.name] for value in model.graph.outputs if value.name}


def divided(
    model: ir.Model,
    feeds: Mapping[str, Array],
    stops: Sequence[int],
    *,
    device: Device | None = None,
) -> Iterator[tuple[ir.Model, dict[str, Array]]]:
    """The model as stretches, each with the arrays that it reads.

    Args:
        model: not changed.
        feeds: one array per input.
        stops: number of the node behind the last one of each stretch, ascending; the last stop is
            the number of nodes.
        device: where to run what the next stretch reads.
    """
    nodes = list(model.graph)
    last = {value.name or "": n for n, node in enumerate(nodes) for value in _read(node)}
    last |= {value.name or "": len(nodes) for value in model.graph.outputs}
    known: dict[str, Array] = dict(feeds)
    for start, stop in zip((0, *stops), stops, strict=False):
        stretch = _cut(model, start, stop, known, last)
        yield stretch, {name: known[name] for value in stretch.graph.inputs if (name := value.name)}
        if stop < len(nodes):
            known |= _run(stretch, known, device or Device())


def _run(stretch: ir.Model, feeds: Mapping[str, Array], device: Device) -> dict[str, Array]:
    return Runner(stretch, device=device, optimize=False).run(feeds)


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what its bodies read from around it."""
    yield from (value for value in node.inputs if value is not None)
    for body in subgraphs(node):
        for inner in body.all_nodes():
            yield from (value for value in inner.inputs if value is not None)


def _stretches(reads: Sequence[Sequence[ir.Value]], part: int) -> Iterator[tuple[int, int]]:
    """First node of each stretch, and the node behind its last."""
    start, total = 0, 0
    for number, values in enumerate(reads):
        size = sum(
            value.const_value.nbytes for value in set(values) if value.const_value is not None
        )
        if total and total + size > part:
            yield start, number
            start, total = number, 0
        total += size
    if start < len(reads):
        yield start, len(reads)


def _cut(
    model: ir.Model, start: int, stop: int, known: Mapping[str, Array], last: Mapping[str, int]
) -> ir.Model:
    """A copy with the nodes from `start` to before `stop` only; weights are shared.

    Args:
        model: the whole.
        start: number of the first node that stays.
        stop: number of the first node behind the last that does.
        known: arrays of what was computed before, by name.
        last: number of the last node that reads a value, by name.
    """
    copy = model.clone()
    graph = copy.graph
    nodes = list(graph)
    inside = nodes[start:stop]
    made = [value for node in inside for value in node.outputs if value.name]
    graph.outputs.clear()
    graph.outputs.extend(value for value in made if last.get(value.name or "", -1) >= stop)
    read = {value.name for node in inside for value in _read(node)}
    inputs = [value for value in graph.inputs if value.name in read]
    inputs += [
        _given(value, known[value.name or ""])
        for node in nodes[:start]
        for value in node.outputs
        if value.name in read and value.name in known
    ]
    outside = [*nodes[:start], *nodes[stop:]]
    for node in outside:
        _let_go(node)
    graph.remove(outside, safe=True)
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
    return copy


def _let_go(node: ir.Node) -> None:
    """Let the bodies of a node read nothing any more."""
    for body in subgraphs(node):
        for inner in body.all_nodes():
            for slot in range(len(inner.inputs)):
                inner.replace_input_with(slot, None)


def _given(value: ir.Value, array: Array) -> ir.Value:
    """An input that takes the place of a computed value."""
    dtype = ir.DataType.from_numpy(array.dtype)
    shape = ir.Shape([None] * array.ndim)
    given = ir.Value(name=value.name, type=ir.TensorType(dtype), shape=shape)
    ir.convenience.replace_all_uses_with(value, given)
    return given
