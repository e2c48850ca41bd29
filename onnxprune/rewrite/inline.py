"""Structure that only hides operators, written out: functions of the model, settled conditions.

Exporters leave both behind: local functions hold whole layers, and an If whose condition follows
from static shapes has one branch that never runs. Rules see the operators inside only when these
stand in the main graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.base import Array
from onnxprune.graph.shapes import settle
from onnxprune.model import constant, evaluate, list_initializers, node_key
from onnxprune.ops.random import draws
from onnxprune.ops.registry import Sizes

__all__ = ["inline"]

_STANDARD = ("", "ai.onnx")
_LONGEST = 100  # nodes that a condition may be computed by
_NEVER = {"If", "Loop", "Scan"}  # cannot be settled in advance


def inline(model: ir.Model) -> ir.Model:
    """A copy without local functions and without Ifs that always take the same branch.

    `model` itself when it has neither; what cannot be written out stays as it is.
    """
    if not model.functions and not any(_ifs(model)):
        return model
    copy = _without_functions(model)
    changed = copy is not model
    copy = copy if changed else model.clone()
    while settled := _settled(copy):
        for node, branch in settled:
            _write_out(copy.graph, node, branch)
        changed = True
    list_initializers(copy)
    return copy if changed else model


def _without_functions(model: ir.Model) -> ir.Model:
    """A copy with all functions inlined; `model` itself where one of them needs other opsets."""
    if not model.functions:
        return model
    copy = model.clone()
    try:
        passes.InlinePass()(copy)
    except (ir.passes.PassError, ValueError):
        return model
    return copy


def _ifs(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type == "If" and node.domain in _STANDARD)


def _settled(model: ir.Model) -> list[tuple[ir.Node, ir.Graph]]:
    """The Ifs whose condition cannot change, each with the branch it takes."""
    found = list(_ifs(model))
    shapes = settle(model)[0] if found else {}
    result = []
    for node in found:
        condition = _evaluated(model, node.inputs[0], shapes)
        if condition is not None and condition.size == 1:
            name = "then_branch" if condition.reshape(-1)[0] else "else_branch"
            result.append((node, node.attributes[name].as_graph()))
    return result


def _evaluated(
    model: ir.Model, value: ir.Value | None, shapes: Mapping[str, Sizes]
) -> Array | None:
    """The array behind `value` when it follows from constants and static sizes; else None.

    Sizes count one by one: a shape may hold dynamic ones too, and a number that happens to come
    out equal for two batch sizes is no constant.
    """
    feeds: dict[str, Array] = {}
    members: set[ir.Node] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current is None or not current.name or current.name in feeds:
            continue
        known = constant(current)
        known = _size(current, shapes) if known is None else known
        producer = current.producer()
        if known is not None:
            feeds[current.name] = known
        elif producer is None or _is_open(producer) or len(members) >= _LONGEST:
            return None
        elif producer not in members:
            members.add(producer)
            stack.extend(producer.inputs)
    name = "" if value is None else value.name or ""
    if name in feeds:
        return feeds[name]
    chain = [node for node in model.graph if node in members]
    return evaluate(model, chain, feeds, [name]).get(name)


def _is_open(node: ir.Node) -> bool:
    return node.op_type in _NEVER or draws(node)


def _size(value: ir.Value, shapes: Mapping[str, Sizes]) -> Array | None:
    """Static sizes, where `value` is a shape or what a Gather takes from one."""
    node, taken = value.producer(), None
    if node is not None and node.op_type == "Gather":
        taken = constant(node.inputs[1])
        node = None if taken is None or node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "Shape" or node.inputs[0] is None or node.attributes:
        return None
    sizes = shapes.get(node.inputs[0].name or "")
    if sizes is None:
        return None
    listed = np.array([-1 if size is None else size for size in sizes], np.int64)
    result: Array = listed if taken is None else np.take(listed, taken)
    return None if (result < 0).any() else result


def _write_out(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> None:
    """Put the operators of `branch` in the place of the If `node`."""
    taken = {value.name for other in graph for value in other.outputs} | set(graph.initializers)
    taken |= {value.name for value in graph.inputs}
    inner = list(branch)
    for value in [*branch.initializers.values(), *(v for n in inner for v in n.outputs)]:
        if value.name in taken:
            value.name = _fresh(f"{node_key(node)}/{value.name}", taken)
        taken.add(value.name)
    for value in list(branch.initializers.values()):
        branch.initializers.pop(value.name or "")
        graph.register_initializer(value)
    results = list(branch.outputs)
    branch.outputs.clear()
    branch.remove(inner)
    graph.insert_before(node, inner)
    for output, result in zip(node.outputs, results, strict=True):
        made = ir.node("Identity", [result])
        graph.insert_before(node, made)
        name = output.name
        made.outputs[0].type, made.outputs[0].shape = output.type, output.shape
        ir.convenience.replace_all_uses_with(output, made.outputs[0], replace_graph_outputs=True)
        output.name, made.outputs[0].name = None, name
    graph.remove(node, safe=True)


def _fresh(name: str, taken: set[str | None]) -> str:
    unique, number = name, 1
    while unique in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique
