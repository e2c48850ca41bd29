"""The door to the gradient engine: `differentiate`.

The engine is the GradientGraphBuilder of onnxruntime-training 1.19.2, which builds a graph of
forward and backward nodes that any session can run. Nothing else in onnxprune knows it: callers
find gradients through `GradientGraph.gradients`, never by the engine's names or operators.

Building can abort the whole process, for an AveragePool or a Conv with auto_pad of unknown sizes
and for control flow that captures what is trained; these are lowered before they get here, or
refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.errors import InvariantError, TrainingError
from onnxprune.model import node_key, parse, serialize, trainable_dtype
from onnxprune.runtime.session import check_runtime, engine_failures, first_line
from onnxprune.training.gradient_passes import improve
from onnxprune.training.lowering import expose

__all__ = ["GradientGraph", "differentiate"]

_MISSING = re.compile(r"builder has not been registered: (\w+) for node (\S*)")
_SUFFIX = "_grad"  # the engine's name for the gradient of a value
_NO_GRADIENT = frozenset({"Shape", "Size", "ArgMax", "ArgMin", "NonZero", "OneHot", "Range"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GradientGraph:
    """A graph that computes a loss and its gradients.

    Attributes:
        model: inputs: the forward graph's, then `parameters`, then the keys of `state`. Outputs:
            the forward graph's (the loss first), then one gradient per parameter, in order.
        loss: name of the scalar that is differentiated.
        parameters: what it is differentiated by.
        gradients: name of the gradient per value name, intermediate values included. Those of
            `parameters` are graph outputs.
        state: per input that forward passes update, the output that holds its next value.
        untrained: requested parameters the loss does not depend on in a differentiable way; they
            are constants here.
    """

    model: ir.Model
    loss: str
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    state: Mapping[str, str] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()


def differentiate(
    model: ir.Model,
    *,
    loss: str,
    parameters: Sequence[str],
    state: Mapping[str, str] | None = None,
) -> GradientGraph:
    """The graph that computes `loss` and its gradients by `parameters`.

    Args:
        model: a lowered graph with `loss` among its outputs; left as it is.
        loss: name of a float scalar.
        parameters: names of float initializers; they become inputs.
        state: initializers that forward passes update, with the outputs that hold their next
            values (`TrainingCopy.state`); they become inputs too.

    Raises:
        RuntimeUnavailableError: no onnxruntime that can train is installed.
        TrainingError: the engine has no gradient for an operator, or none of the parameters has
            an influence on the loss.
    """
    check_runtime(training=True)
    state = dict(state or {})
    copy = model.clone()
    _check_initializers(copy.graph, [*parameters, *state])
    trained = _reaching(copy.graph, loss, parameters)
    _check_deadly(copy.graph, trained)
    outputs = [value.name or "" for value in copy.graph.outputs]
    built, trained = _build_without_silent(copy, loss, trained, tuple(state))
    gradients = _gradients(copy.graph, built.graph)
    _order(built.graph, [*outputs, *(gradients[name] for name in trained)])
    improve(built)
    return GradientGraph(
        model=built,
        loss=loss,
        parameters=trained,
        gradients=gradients,
        state=state,
        untrained=tuple(name for name in parameters if name not in trained),
    )


def _build_without_silent(
    model: ir.Model, loss: str, parameters: Sequence[str], state: Sequence[str]
) -> tuple[ir.Model, tuple[str, ...]]:
    """The engine's graph, and the parameters that have a gradient in it.

    Paths that only the engine knows to carry none (into running statistics, say) make it fail with
    the name of one parameter, which is then left out.
    """
    trained = tuple(parameters)
    while trained:
        copy = model.clone()
        expose(copy, [*trained, *state])
        try:
            return _build(copy, loss, trained), trained
        except TrainingError as error:
            silent = _silent(error, trained)
            if silent is None:
                raise
            trained = tuple(name for name in trained if name != silent)
    raise TrainingError(
        f"{loss}: no gradient of any of {len(parameters)} parameters reaches it; "
        "check --train-params, --freeze and --output-name",
        parameters=tuple(parameters),
    )


def _silent(error: TrainingError, parameters: Sequence[str]) -> str | None:
    """The parameter whose gradient the engine did not find, if that is what `error` says."""
    _, found, name = str(error.__cause__).partition("failed to find NodeArg by name: ")
    name = name.strip().removesuffix(_SUFFIX)
    return name if found and name in parameters else None


def _check_initializers(graph: ir.Graph, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in graph.initializers]
    if missing:
        raise TrainingError(
            f"{', '.join(missing)}: not an initializer of the graph to differentiate; "
            "a parameter must be one and must lead to the loss",
            missing=tuple(missing),
        )


def _reaching(graph: ir.Graph, loss: str, parameters: Sequence[str]) -> tuple[str, ...]:
    """Parameters from which a path of differentiable values leads to the loss."""
    target = next((value for value in graph.outputs if value.name == loss), None)
    if target is None:
        raise InvariantError(f"{loss}: the loss is not an output of the graph; report this")
    seen: set[ir.Value] = set()
    waiting = [target]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None and node.op_type not in _NO_GRADIENT:
            waiting += [v for v in node.inputs if v is not None and _may_carry(v)]
    reached = {value.name for value in seen}
    return tuple(name for name in parameters if name in reached)


def _check_deadly(graph: ir.Graph, parameters: Sequence[str]) -> None:
    """Refuse what the engine would abort the process for.

    That is: control flow with a body that captures what a node computes, or that depends on
    `parameters`; and an AveragePool or a Conv with auto_pad that could not be lowered because
    their sizes are unknown.
    """
    moving = {graph.initializers[name] for name in parameters}
    for node in graph:
        captured = _captured(node)
        computed = {value for value in captured if value.producer() is not None}
        if not computed and not moving & (captured | set(node.inputs)):
            continue
        if _bodies(node):
            raise TrainingError(
                f"{node.op_type} ({node_key(node)}): no gradient through control flow that "
                "captures or depends on what is trained; replace it in the model, or train an "
                "output before it",
                operator=node.op_type,
                node=node_key(node),
            )
        if node.op_type == "AveragePool" or _pads_itself(node):
            raise TrainingError(
                f"{node.op_type} ({node_key(node)}): its channels or sizes are unknown, so it has "
                "no gradient; give the input shape with --input-shape",
                operator=node.op_type,
                node=node_key(node),
            )
        moving |= set(node.outputs)


def _pads_itself(node: ir.Node) -> bool:
    auto = node.attributes.get("auto_pad")
    return node.op_type == "Conv" and auto is not None and auto.as_string() != "NOTSET"


def _captured(node: ir.Node) -> set[ir.Value]:
    """Values of the node's own graph that its bodies read."""
    read: set[ir.Value] = set()
    for body in _bodies(node):
        for inner in ir.traversal.RecursiveGraphIterator(body):
            read |= {value for value in inner.inputs if value is not None}
        read |= set(body.outputs)
    return {value for value in read if value.graph is node.graph}


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def _may_carry(value: ir.Value) -> bool:
    return value.dtype is None or trainable_dtype(value.dtype)


def _build(model: ir.Model, loss: str, parameters: Sequence[str]) -> ir.Model:
    """Run the engine."""
    import onnxruntime
    from onnxruntime.capi import _pybind_state as engine

    onnxruntime.set_default_logger_severity(4)  # else every graph transformer logs a line
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    names = set(parameters)
    with serialize(model) as source:
        if not isinstance(source, bytes):
            raise TrainingError(
                "the constants of the training copy exceed 2 GB; train more of the parameters"
            )
        try:
            forward = engine.get_optimized_model(source, names, options)
            builder = engine.GradientGraphBuilder(forward, {loss}, names, loss, options)
            builder.build()
            return parse(builder.get_model())
        except engine_failures() as error:
            raise _refused(error, loss) from error


def _refused(error: BaseException, loss: str) -> TrainingError:
    """The engine's failure in our words where it is the usual one, else its first line."""
    missing = _MISSING.search(str(error))
    if missing is None:
        return TrainingError(
            f"the gradient of {loss} cannot be built: {first_line(error)}; freeze what leads "
            "through the operator at fault with --freeze",
            loss=loss,
        )
    operator, node = missing.groups()
    return TrainingError(
        f"{operator} (node {node}): the engine has no gradient for it; freeze the parameters "
        "before it with --freeze, or replace it in the model",
        loss=loss,
        operator=operator,
        node=node,
    )


def _gradients(forward: ir.Graph, built: ir.Graph) -> dict[str, str]:
    """Gradient name per value of the forward graph that has one."""
    made = {value.name for node in built for value in node.outputs} | set(built.initializers)
    values = ir.convenience.create_value_mapping(forward, include_subgraphs=False)
    return {name: name + _SUFFIX for name in values if name + _SUFFIX in made}


def _order(graph: ir.Graph, names: Sequence[str]) -> None:
    """Make `names` the outputs of `graph`, in this order."""
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
