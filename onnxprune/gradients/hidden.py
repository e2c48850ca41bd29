"""Gradients that are ours: nodes the engine differentiates as if they were black boxes.

Before the engine sees a graph, `hide` puts a call of an unknown function in the place of every node
that has a rule under `ops.registry.gradient`; what the node's bodies read from outside becomes an
input of the call. Afterwards `reveal` puts the nodes back, and what their rules write into the
places where the engine called for their slopes.

The black box is the operator `org.pytorch.aten::ATen`, whose gradient can be registered by name and
which takes any inputs; none is left when `reveal` is done.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.engine import BOX, DOMAIN, define
from onnxprune.gradients.slots import attribute, beyond, quantized_source, rewire, wanted
from onnxprune.methods.compose import TopK
from onnxprune.model import constant, node_key, opset, trainable_dtype
from onnxprune.ops.registry import GRADIENTS
from onnxprune.scopes import subgraphs

__all__ = ["Call", "Hidden", "box", "hide", "once", "operator_of", "reveal", "zeros"]

_FORWARD, _BACKWARD = "onnxprune.forward", "onnxprune.backward"

# (body, sources, positions of outputs with slopes, prefix) -> graph of the slopes of `sources`
Differentiate = Callable[[ir.Graph, Sequence[ir.Value], Sequence[int], str], ir.Graph]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Hidden:
    """A node that was hidden.

    Attributes:
        number: tells the hidden nodes of a graph apart.
        node: the node itself, no longer part of a graph.
        captures: what it depends on beside its inputs (its bodies' captures); inputs of the call
            behind the node's own.
    """

    number: int
    node: ir.Node
    captures: tuple[ir.Value, ...]

    @property
    def arity(self) -> tuple[int, int]:
        """How many inputs and outputs the call has."""
        return len(self.node.inputs) + len(self.captures), len(self.node.outputs)

    def name(self, kind: str) -> str:
        """What the black box is called; the engine keeps the first form of a name it is told."""
        inputs, outputs = self.arity
        return f"{kind}.{self.number}.{inputs}.{outputs}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Call:
    """What a gradient rule sees.

    Attributes:
        node: the node, in the finished graph; outputs may be added to it.
        captures: what its bodies read from outside.
        slopes: per output, its slope; None where the loss does not depend on it.
        wanted: per input and then per capture, whether its slope is needed.
        differentiate: the slopes of a body; see `bodies.differentiate_body`.
        provider: what the graph will run on, where a rule may make use of its own kernels; "" else.
        top_k: see `gradient.differentiate`.
    """

    node: ir.Node
    captures: tuple[ir.Value, ...]
    slopes: tuple[ir.Value | None, ...]
    wanted: tuple[bool, ...]
    differentiate: Differentiate
    provider: str = ""
    top_k: Mapping[str, TopK] = field(default_factory=dict)

    def input(self, slot: int) -> ir.Value:
        """An input that is there."""
        value = self.node.inputs[slot]
        assert value is not None
        return value


def zeros(e: Emitter, like: ir.Value | None) -> ir.Value:
    """Float zeros in the shape of `like`."""
    nothing = ir.Tensor(np.zeros(1, dtype=e.dtype.numpy()))
    return e.op("ConstantOfShape", e.op("Shape", like), value=nothing)


def box(operator: str, inputs: Sequence[ir.Value | None], outputs: int) -> ir.Node:
    """A call of the black box."""
    return ir.Node(DOMAIN, BOX, inputs, [ir.AttrString("operator", operator)], num_outputs=outputs)


def operator_of(node: ir.Node) -> str:
    """The name of what a black box calls; "" for every other node."""
    if (node.domain, node.op_type) != (DOMAIN, BOX):
        return ""
    return str(node.attributes["operator"].as_string())


def hide(model: ir.Model, live: Container[ir.Value]) -> list[Hidden]:
    """Hide the nodes of the main graph that have a gradient rule, in place.

    Every QuantizeLinear is: the engine fails on one that it cannot fuse.

    Args:
        model: what will be differentiated.
        live: values on which the loss depends in a differentiable way.
    """
    graph = model.graph
    chosen = [(node, beyond(node)) for node in graph if _is_hidden(model, node, live)]
    found: list[Hidden] = []
    replaced: dict[ir.Value, ir.Value] = {}
    for node, sources in chosen:
        outside = tuple(replaced.get(value, value) for value in sources)
        item = Hidden(number=len(found), node=node, captures=outside)
        call = box(item.name(_FORWARD), [*node.inputs, *outside], len(node.outputs))
        graph.insert_before(node, call)
        for place, (old, new) in enumerate(zip(node.outputs, call.outputs, strict=True)):
            new.name = old.name or f"{item.name(_FORWARD)}/unused_{place}"  # the engine needs one
            new.type, new.shape = old.type or _type_like(node), old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            replaced[old] = new
        graph.remove(node)
        found.append(item)
    if found:
        graph.opset_imports[DOMAIN] = 1
    _register(found)
    return found


def _is_hidden(model: ir.Model, node: ir.Node, live: Container[ir.Value]) -> bool:
    version = model.graph.opset_imports.get(node.domain, opset(model))
    if GRADIENTS.find(node, version) is None or _is_left_to_engine(node, live):
        return False
    return node.op_type == "QuantizeLinear" or any(value in live for value in node.outputs)


def _is_left_to_engine(node: ir.Node, live: Container[ir.Value]) -> bool:
    """Whether the engine's own gradient is right for this one."""
    if node.op_type == "Split":
        return all(value in live for value in node.outputs)
    if node.op_type == "DequantizeLinear":
        return quantized_source(node) is None
    if node.op_type in ("ScatterElements", "ScatterND"):
        return bool(attribute(node, "reduction", "none") == "none")
    if node.op_type == "Concat":
        return not any(_joined_twice(value) for value in node.inputs)
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        same = exponent is not None and node.inputs[0] is not None
        return same and exponent.ndim == 0 and exponent.dtype.kind == "f"  # type: ignore[union-attr]
    return False


def _joined_twice(value: ir.Value | None) -> bool:
    readers = [] if value is None else [use.node for use in value.uses()]
    return sum(node.op_type == "Concat" for node in readers) > 1


def _type_like(node: ir.Node) -> ir.TensorType:
    for value in node.inputs:
        if value is not None and trainable_dtype(value.dtype) and value.dtype is not None:
            return ir.TensorType(value.dtype)
    return ir.TensorType(ir.DataType.FLOAT)


def _register(hidden: Sequence[Hidden]) -> None:
    """Tell the engine the form of the gradient of every call."""
    for item in hidden:
        inputs, outputs = item.arity
        define(
            item.name(_FORWARD),
            item.name(_BACKWARD),
            [f"GO({place})" for place in range(outputs)],
            [f"GI({place})" for place in range(inputs)],
        )


def once(graph: ir.Graph, names: Container[str]) -> None:
    """Let no node read one of `names` at two places: the engine calls both slopes alike."""
    for node in list(graph):
        seen: set[ir.Value] = set()
        for slot, value in enumerate(node.inputs):
            if value is None or not value.name or value.name not in names:
                continue
            if value in seen:
                again = ir.node("Identity", [value])
                copy = again.outputs[0]
                copy.name = f"{value.name}/again_{slot}_of_{node_key(node)}"
                copy.type, copy.shape = value.type, value.shape
                graph.insert_before(node, again)
                node.replace_input_with(slot, copy)
            seen.add(value)


def reveal(
    model: ir.Model,
    hidden: Sequence[Hidden],
    differentiate: Differentiate,
    provider: str = "",
    top_k: Mapping[str, TopK] | None = None,
) -> None:
    """Put the hidden nodes back into `model`, a finished gradient graph, with their gradients."""
    graph, top_k = model.graph, top_k or {}
    calls = {operator_of(node): node for node in graph}
    for item in hidden:
        forward, backward = calls.get(item.name(_FORWARD)), calls.get(item.name(_BACKWARD))
        if forward is None:
            continue
        node, captures = _restored(graph, forward, item)
        if backward is not None:
            _answer(model, backward, node, captures, differentiate, provider, top_k)
    if hidden:
        graph.opset_imports.pop(DOMAIN, None)
        graph.sort()


def _restored(graph: ir.Graph, call: ir.Node, item: Hidden) -> tuple[ir.Node, tuple[ir.Value, ...]]:
    """The hidden node in the place of its call; its bodies read the finished graph's values."""
    own = len(item.node.inputs)
    captures = tuple(value for value in call.inputs[own:] if value is not None)
    renamed = dict(zip(item.captures, captures, strict=True))
    for body in subgraphs(item.node):
        rewire(body, renamed)
    node = item.node
    for slot, value in enumerate(call.inputs[:own]):
        node.replace_input_with(slot, value)
    node.name = call.name  # its own may have been given to another node meanwhile
    graph.insert_before(call, node)
    _hand_over(call.outputs, node.outputs)
    graph.remove(call)
    return node, captures


def _hand_over(old: Sequence[ir.Value], new: Sequence[ir.Value | None]) -> None:
    for before, after in zip(old, new, strict=True):
        if after is None:
            continue
        name = before.name
        after.type = before.type or after.type
        after.shape = after.shape if before.shape is None else before.shape
        before.replace_all_uses_with(after, replace_graph_outputs=True)
        before.name = ""
        after.name = name


def _answer(
    model: ir.Model,
    call: ir.Node,
    node: ir.Node,
    captures: tuple[ir.Value, ...],
    differentiate: Differentiate,
    provider: str,
    top_k: Mapping[str, TopK],
) -> None:
    """What the node's rule writes, in the place of the call for its slopes."""
    graph = model.graph
    inputs: list[ir.Value | None] = [*node.inputs, *captures]
    needed = tuple(
        wanted(slope) and value is not None and trainable_dtype(value.dtype or ir.DataType.FLOAT)
        for slope, value in zip(call.outputs, inputs, strict=True)
    )
    dtype = next((v.dtype for v in inputs if v is not None and trainable_dtype(v.dtype)), None)
    e = Emitter(f"{node_key(node)}/slope", opset=opset(model), dtype=dtype or ir.DataType.FLOAT)
    rule = GRADIENTS.find(node, graph.opset_imports.get(node.domain, opset(model)))
    assert rule is not None
    slopes = rule(
        e,
        Call(
            node=node,
            captures=captures,
            slopes=tuple(_known(graph, value) for value in call.inputs),
            wanted=needed,
            differentiate=differentiate,
            provider=provider,
            top_k=top_k,
        ),
    )
    made: list[ir.Value | None] = []
    for value, slope, need in zip(inputs, slopes, needed, strict=True):
        if not need:
            made.append(None)
        elif slope is None:
            made.append(zeros(e, value))
        elif slope in made or slope.producer() not in e.nodes:
            made.append(e.op("Identity", slope))  # every slope has a name of its own
        else:
            made.append(slope)
    e.add_to(graph, before=call)
    _hand_over(call.outputs, made)
    graph.remove(call, safe=True)


def _known(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """`value`, or None for a slope that the engine names but does not compute."""
    if value is None or not value.name:
        return None
    made = value.producer() is not None or value.is_graph_input() or value.is_initializer()
    return value if made and value.graph is graph else None
