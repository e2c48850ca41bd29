"""From which values a differentiable path leads to the loss, and what stands in the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import InvariantError
from onnxprune.model import node_key, trainable_dtype
from onnxprune.ops.registry import GRADIENTS
from onnxprune.training.differentiable import ENGINE, FLAT, LOSSES
from onnxprune.training.slots import attribute, beyond

__all__ = ["APART", "blocked", "described", "live", "reaching"]

APART = "the loss does not depend on it"
"""Why a parameter without a path to the loss is not trained."""

_STANDARD = ("", "ai.onnx")


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

    The engine has one for a Conv with auto_pad, but it would abort the process.
    """
    if GRADIENTS.find(node, 1_000) is not None:
        return False
    if node.domain not in _STANDARD or node.op_type not in ENGINE | FLAT | LOSSES:
        return True
    return node.op_type == "Conv" and attribute(node, "auto_pad", "NOTSET") != "NOTSET"


def described(node: ir.Node) -> str:
    """Why what stands in front of `node` is not trained."""
    return f"no gradient through {node.op_type} ({node_key(node)})"
