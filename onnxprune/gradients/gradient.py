"""The door to the gradient engine: `differentiate`.

The engine is the GradientGraphBuilder of onnxruntime-training 1.19.2, which builds a graph of
forward and backward nodes that any session can run. Nothing else in onnxprune knows it: callers
find gradients through `GradientGraph.gradients`, never by the engine's names or operators.

What the engine has no gradient for is hidden from it and differentiated by rules of ours
(`training.hidden`), the bodies of loops by `training.bodies`. Building can abort the whole process,
for an AveragePool or a Conv with auto_pad of unknown sizes; these are lowered before they get here,
or what is in front of them is not trained.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxprune.errors import TrainingError
from onnxprune.gradients.bodies import differentiate_body
from onnxprune.gradients.engine import SUFFIX, attempt
from onnxprune.gradients.hidden import hide, once, reveal
from onnxprune.gradients.lowering import expose
from onnxprune.gradients.passes import improve
from onnxprune.gradients.paths import APART, blocked, described, live, reaching
from onnxprune.gradients.thinning import gates_of
from onnxprune.methods.compose import TopK
from onnxprune.model import node_key
from onnxprune.runtime.session import check_runtime

__all__ = ["GradientGraph", "differentiate"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GradientGraph:
    """A graph that computes a loss and its gradients.

    Attributes:
        model: inputs: the forward graph's, then `parameters`, then the keys of `state`. Outputs:
            the forward graph's (the loss first), then one gradient per parameter, in order.
        loss: name of the scalar that is differentiated.
        parameters: what it is differentiated by.
        gradients: name of the gradient per value name, intermediate values included. Those of
            `parameters` are graph outputs. Beside these, of the gates of the recurrent operators
            that `top_k` named, under `thinning.gates_of` (output, direction): what goes on.
        state: per input that forward passes update, the output that holds its next value.
        untrained: requested parameters the loss does not depend on in a differentiable way, or
            that lie in front of an operator without a gradient; they are constants here.
        reasons: per untrained parameter, which of both.
    """

    model: ir.Model
    loss: str
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    state: Mapping[str, str] = field(default_factory=dict)
    untrained: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)


def differentiate(
    model: ir.Model,
    *,
    loss: str,
    parameters: Sequence[str],
    state: Mapping[str, str] | None = None,
    provider: str = "cpu",
    top_k: Mapping[str, TopK] | None = None,
) -> GradientGraph:
    """The graph that computes `loss` and its gradients by `parameters`.

    Args:
        model: a lowered graph with `loss` among its outputs; left as it is.
        loss: name of a float scalar.
        parameters: names of float initializers; they become inputs.
        state: initializers that forward passes update, with the outputs that hold their next
            values (`TrainingCopy.state`); they become inputs too.
        provider: what the graph will run on; it is made faster for that.
        top_k: which slopes of its gates a recurrent operator sends on, by the name of one of its
            outputs. Only those whose slopes are swept over the steps (`plain_recurrent`) follow
            it. Products and convolutions are treated behind this (`top_k.sparsified`).

    Raises:
        RuntimeUnavailableError: no onnxruntime that can train is installed.
        TrainingError: an operator without a gradient is behind all parameters, or none of them has
            an influence on the loss.
    """
    check_runtime(training=True)
    state = dict(state or {})
    copy = model.clone()
    _check_initializers(copy.graph, [*parameters, *state])
    outputs = [value.name or "" for value in copy.graph.outputs]
    names = tuple(ir.convenience.create_value_mapping(copy.graph, include_subgraphs=False))
    obstacles = blocked(copy.graph, loss)
    hidden = hide(copy, live(copy.graph, loss))
    once(copy.graph, frozenset(parameters))
    trained = _not_in_the_way(obstacles, reaching(copy.graph, loss, parameters))

    def exposed(names: Sequence[str]) -> ir.Model:
        again = copy.clone()
        expose(again, [*names, *state])
        return again

    built, trained = attempt(exposed, loss, trained)
    if not trained:
        raise TrainingError(
            f"{loss}: no gradient of any of {len(parameters)} parameters reaches it; "
            "check --train-params, --freeze and --output-name",
            parameters=tuple(parameters),
        )
    assert built is not None
    inner = functools.partial(differentiate_body, opsets=model.opset_imports, provider=provider)
    reveal(built, hidden, inner, provider, top_k)
    gates = [gates_of(name, direction) for name in top_k or () for direction in (0, 1)]
    gradients = _gradients((*names, *gates), built.graph)
    _order(built.graph, [*outputs, *(gradients[name] for name in trained)])
    improve(built, provider=provider)
    return GradientGraph(
        model=built,
        loss=loss,
        parameters=trained,
        gradients=gradients,
        state=state,
        untrained=tuple(name for name in parameters if name not in trained),
        reasons={
            name: described(obstacles[name]) if name in obstacles else APART
            for name in parameters
            if name not in trained
        },
    )


def _check_initializers(graph: ir.Graph, names: Iterable[str]) -> None:
    missing = [name for name in names if name not in graph.initializers]
    if missing:
        raise TrainingError(
            f"{', '.join(missing)}: not an initializer of the graph to differentiate; "
            "a parameter must be one and must lead to the loss",
            missing=tuple(missing),
        )


def _not_in_the_way(obstacles: Mapping[str, ir.Node], parameters: Sequence[str]) -> tuple[str, ...]:
    """The parameters that can be trained.

    Raises:
        TrainingError: an operator without a gradient leaves none of them.
    """
    free = tuple(name for name in parameters if name not in obstacles)
    if parameters and not free:
        node = obstacles[parameters[0]]
        raise TrainingError(
            f"{node.op_type} ({node_key(node)}): it has no gradient, or none for sizes that are "
            "unknown, and all parameters are in front of it; replace it in the model, give the "
            "input shape with --input-shape, or train an output before it",
            operator=node.op_type,
            node=node_key(node),
        )
    return free


def _gradients(names: Iterable[str], built: ir.Graph) -> dict[str, str]:
    """Gradient name per value of the forward graph that has one."""
    made = {value.name for node in built for value in node.outputs} | set(built.initializers)
    return {name: name + SUFFIX for name in names if name + SUFFIX in made}


def _order(graph: ir.Graph, names: Sequence[str]) -> None:
    """Make `names` the outputs of `graph`, in this order; the engine may have folded some."""
    for name in names:
        folded = graph.initializers.pop(name, None)
        if folded is not None:
            node = ir.node("Identity", [folded], name=f"{name}/folded")
            folded.name, node.outputs[0].name = f"{name}/constant", name
            node.outputs[0].type, node.outputs[0].shape = folded.type, folded.shape
            graph.register_initializer(folded)
            graph.append(node)
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
