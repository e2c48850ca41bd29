"""From which values a differentiable path leads to the loss, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import InvariantError
from onnxprune.gradients.differentiable import ENGINE, FLAT, LOSSES
from onnxprune.gradients.slots import attribute, beyond
from onnxprune.model import node_key, trainable_dtype
from onnxprune.ops.registry import GRADIENTS, LOWERS
from onnxprune.scopes import subgraphs

__all__ = ["APART", "blocked", "described", "live", "reaching"]

APART = "the loss does not depend on it"
"""Why a parameter without a path to the loss is not trained."""

_STANDARD = ("", "ai.onnx")
_EXTREMES = ("mul", "max", "min")  # reductions of Scatter operators
_ANY = 1_000  # an opset: rules are for all of them


def live(graph: ir.Graph, loss: str) -> set[ir.Value]:
    """Values from which a path of differentiable values leads to the loss."""
    target = next((value for value in graph.outputs if value.name == loss), None)
    if target is None:
        raise InvariantError(f"{loss}: the loss is not an output of the graph; report this")
    return _before([target])


def _before(targets: Sequence[ir.Value]) -> set[ir.Value]:
    seen: set[ir.Value] = set()
    waiting = list(targets)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None and node.op_type not in FLAT:
            waiting += _sources(node)
    return seen


def _sources(node: ir.Node) -> Iterator[ir.Value]:
    """What `node` reads that may have a slope."""
    for value in (*node.inputs, *beyond(node)):
        if value is not None and (value.dtype is None or trainable_dtype(value.dtype)):
            yield value


def reaching(graph: ir.Graph, loss: str, parameters: Sequence[str]) -> tuple[str, ...]:
    """Those of `parameters` from which a differentiable path leads to the loss."""
    reached = {value.name for value in live(graph, loss)}
    return tuple(name for name in parameters if name in reached)


def blocked(graph: ir.Graph, loss: str) -> Mapping[str, ir.Node]:
    """Initializers with a path to the loss through a node without a gradient, with that node.

    They cannot be trained: without that path their slope would be wrong.

    Args:
        graph: lowered.
        loss: name of an output.
    """
    found: dict[str, ir.Node] = {}
    alive = live(graph, loss)
    for node in graph:
        if not any(value in alive for value in node.outputs) or not _is_obstacle(node):
            continue
        for value in _before(list(_sources(node))):
            if value.is_initializer() and value.name:
                found.setdefault(value.name, node)
    return found


def _is_obstacle(node: ir.Node) -> bool:
    """Whether there is no gradient for a node of a lowered graph.

    The engine has one for a Conv with auto_pad, but it would abort the process; and it takes every
    BatchNormalization for one that normalizes by the batch.
    """
    if attribute(node, "reduction", "") in _EXTREMES:
        return True
    if GRADIENTS.find(node, _ANY) is not None:
        return any(map(_obstructs, subgraphs(node)))
    if node.domain not in _STANDARD or node.op_type not in ENGINE | FLAT | LOSSES:
        return True
    if node.op_type == "BatchNormalization":
        return not attribute(node, "training_mode", 0)
    return node.op_type == "Conv" and attribute(node, "auto_pad", "NOTSET") != "NOTSET"


def _obstructs(body: ir.Graph) -> bool:
    """Whether a node without a gradient leads to an output of a body, which is not lowered yet."""
    alive = _before([v for v in body.outputs if v.dtype is None or trainable_dtype(v.dtype)])
    return any(
        LOWERS.find(node, _ANY) is None and _is_obstacle(node)
        for node in body
        if any(value in alive for value in node.outputs)
    )


def described(node: ir.Node) -> str:
    """Why what stands in front of `node` is not trained."""
    return f"no gradient through {node.op_type} ({node_key(node)})"
