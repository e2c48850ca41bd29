"""The slopes of a body: what the gradients of loops and branches are made of."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.engine import DOMAIN, SUFFIX, attempt, define
from onnxprune.gradients.hidden import box, hide, once, operator_of, reveal, zeros
from onnxprune.gradients.lowering import compose, drop_unused
from onnxprune.gradients.passes import improve
from onnxprune.gradients.paths import live, reaching
from onnxprune.gradients.slots import captured, rewire
from onnxprune.model import tensor_of, trainable_dtype

__all__ = ["differentiate_body"]

_SUM, _SLOPES = "onnxprune.sum", "onnxprune.slopes"  # what a body's outputs lead to
_IR = 10


def differentiate_body(
    body: ir.Graph,
    sources: Sequence[ir.Value],
    sinks: Sequence[int],
    prefix: str,
    *,
    opsets: Mapping[str, int],
    provider: str,
) -> ir.Graph:
    """The slopes of a body: the chain rule through one pass of a loop, or a branch.

    Args:
        body: left as it is.
        sources: inputs of the body, or values it reads from outside.
        sinks: positions of its outputs that have slopes.
        prefix: of all names in the result.
        opsets: of the model.
        provider: what the result will run on.

    Returns:
        A body whose inputs are those of `body` and then one slope per sink, and whose outputs are
        the slopes of `sources`. It reads from outside what `body` does.
    """
    copy = body.clone(allow_outer_scope_values=True)
    inner = [value.name or "" for value in copy.inputs]
    own = dict(zip(body.inputs, copy.inputs, strict=True))
    _take_in(copy)
    stand_ins = {
        value: ir.Value(name=value.name, type=value.type, shape=value.shape)
        for value in captured(copy)
    }
    rewire(copy, stand_ins)
    copy.inputs.extend(stand_ins.values())
    own |= stand_ins
    names = [own[value].name or "" if value in own else "" for value in sources]
    ends = [copy.outputs[number] for number in sinks]
    _sum_up(copy, ends)
    model = ir.Model(copy, ir_version=_IR)
    copy.opset_imports.update({**opsets, DOMAIN: 1})
    compose(model)
    hidden = hide(model, live(copy, _SUM))
    once(copy, frozenset(names))
    reached = reaching(copy, _SUM, [name for name in dict.fromkeys(names) if name])
    define(
        f"{_SUM}.{len(ends)}", _SLOPES, ["GO(0)"], [f"GI({number})" for number in range(len(ends))]
    )
    built, _ = attempt(lambda _: model.clone(), _SUM, reached)
    if built is None:
        built = model.clone()
    slopes = _slopes_in(built.graph, len(ends))
    again = functools.partial(differentiate_body, opsets=opsets, provider=provider)
    reveal(built, hidden, again)
    _outputs_for(built, names, sources, opsets)
    improve(built, provider=provider)
    return _opened(built.graph, inner, slopes, stand_ins, prefix)


def _take_in(body: ir.Graph) -> None:
    """Give `body` the axes, sizes and such that it reads from outside: rules look at them."""
    found: dict[ir.Value, ir.Value] = {}
    for value in captured(body):
        tensor = tensor_of(value)
        if tensor is not None and not trainable_dtype(tensor.dtype):
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
            found[value] = ir.Value(name=value.name, type=kind, shape=shape, const_value=tensor)
    rewire(body, found)
    for value in found.values():
        body.register_initializer(value)


def _sum_up(body: ir.Graph, ends: Sequence[ir.Value]) -> None:
    """One number that depends on `ends` alone, as the body's only output."""
    call = box(f"{_SUM}.{len(ends)}", ends, 1)
    result = call.outputs[0]
    result.name, result.dtype, result.shape = _SUM, ir.DataType.FLOAT, ir.Shape(())
    body.append(call)
    body.outputs.clear()
    body.outputs.append(result)


def _slopes_in(graph: ir.Graph, count: int) -> list[ir.Value]:
    """New inputs in the places where the engine asks for the slopes of the body's outputs."""
    made = [ir.Value(name=f"{_SLOPES}.{number}") for number in range(count)]
    for node in list(graph):
        if operator_of(node) == _SLOPES:
            for old, new in zip(node.outputs, made, strict=True):
                new.type = old.type
                old.replace_all_uses_with(new, replace_graph_outputs=True)
                name, old.name = old.name, ""
                new.name = name or new.name
            graph.remove(node, safe=True)
    graph.inputs.extend(made)
    return made


def _outputs_for(
    model: ir.Model, names: Sequence[str], sources: Sequence[ir.Value], opsets: Mapping[str, int]
) -> None:
    """Let the slopes of `names` be the outputs; zeros where there are none.

    An empty name stands for a source that the body does not read.
    """
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    e = Emitter(_SLOPES, opset=opsets.get("", 1))
    outputs: list[ir.Value] = []
    for name, source in zip(names, sources, strict=True):
        slope = values.get(name + SUFFIX) if name else None
        if slope is None:
            slope = zeros(e, values[name] if name else source)
        elif slope.is_graph_input() or slope in outputs:
            slope = e.op("Identity", slope)
        outputs.append(slope)
    e.add_to(graph)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    drop_unused(graph)


def _opened(
    graph: ir.Graph,
    inner: Sequence[str],
    slopes: Sequence[ir.Value],
    stand_ins: Mapping[ir.Value, ir.Value],
    prefix: str,
) -> ir.Graph:
    """`graph` as a body: what stood in for outer values is read from outside again."""
    inputs = {value.name: value for value in graph.inputs}
    for outer, stand_in in stand_ins.items():
        inputs[stand_in.name].replace_all_uses_with(outer, replace_graph_outputs=True)
    graph.inputs.clear()
    graph.inputs.extend([*(inputs[name] for name in inner), *slopes])
    values = [*graph.inputs, *graph.initializers.values()]
    values += [
        value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs
    ]
    for number, value in enumerate(values):
        if value.name:
            value.name = f"{prefix}/{number}/{value.name}"
    return graph
