"""What a method does to training, written into the graphs of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Mask, Observable
from onnxprune.gradients.gradient import GradientGraph
from onnxprune.gradients.plain_recurrent import is_recurrent
from onnxprune.gradients.thinning import Recurrence
from onnxprune.gradients.top_k import gates_counted, sparsified
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.instrument.products import attach_products
from onnxprune.instrument.statistics import Collector
from onnxprune.methods.compose import NOISE, PENALTY, Influence, TopK
from onnxprune.ops.registry import PARAMETERS, Role, Sizes, View
from onnxprune.updates.around import Transform
from onnxprune.updates.transforms import masked, noisy, penalized

__all__ = ["Layers", "preactivations", "scalars", "transforms", "with_products", "with_top_k"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layers:
    """Where sparser back propagation chooses what goes on.

    Attributes:
        products: values in which matrix products and convolutions make units, with their sizes.
        recurrences: per recurrent operator, the axis of its units in one of its outputs.
    """

    products: Mapping[Axis, Sizes]
    recurrences: Mapping[Axis, Recurrence]

    def choices(self, influence: Influence) -> dict[str, TopK]:
        """What `differentiate` has to know of it."""
        if influence.top_k is None:
            return {}
        outputs = (name for found in self.recurrences.values() for name in found.outputs)
        return dict.fromkeys(outputs, influence.top_k)

    def whole(self, influence: Influence, graph: GradientGraph) -> tuple[str, ...]:
        """A note, where there are recurrent operators that send everything back."""
        if influence.top_k is None:
            return ()
        counts = Counter(
            found.op_type
            for found in self.recurrences.values()
            if (found.inner or any(name in graph.gradients for name in found.outputs))
            and not found.slopes(graph.gradients)
        )
        listed = ", ".join(f"{count} {op_type}" for op_type, count in counts.items())
        note = f"in a form without sparser back propagation, units not counted: {listed}"
        return (note,) if counts else ()


def preactivations(model: ir.Model, analysis: Analysis) -> Layers:
    """Where weighted operators make the units.

    Layers whose units may not go, such as the last one, are not among them.
    """
    members = {member.axis for group in analysis.groups for member in group.members}
    products: dict[Axis, Sizes] = {}
    recurrences: dict[Axis, Recurrence] = {}
    for view in views(model, analysis.shapes, analysis.known):
        declared = PARAMETERS.find(view.node, view.opset)
        if declared is None or Role.WEIGHT not in declared().values() or not view.node.outputs:
            continue
        if is_recurrent(view.node):
            recurrences |= _recurrence(view, members, inner=view.node.graph is not model.graph)
            continue
        output = view.node.outputs[0]
        sizes = analysis.shapes.get(output.name or "", ())
        for position in range(len(sizes)):
            axis = Axis(output.name or "", position)
            if axis in members:
                products[axis] = sizes
    return Layers(products=products, recurrences=recurrences)


def _recurrence(view: View, members: Set[Axis], *, inner: bool) -> dict[Axis, Recurrence]:
    """A recurrent operator by the units of its first output that has any."""
    outputs = tuple(value.name for value in view.node.outputs if value.name)
    for value in view.node.outputs:
        sizes = view.shape(value) if value.name else ()
        for by in range(-1, len(sizes) - 1):
            axis, units = Axis(value.name or "", len(sizes) - 1, by), sizes[-1]
            if axis in members and units is not None:
                op_type = view.node.op_type
                return {
                    axis: Recurrence(op_type=op_type, units=units, outputs=outputs, inner=inner)
                }
    return {}


def with_products(
    graph: GradientGraph,
    axes: Iterable[Axis],
    observables: Iterable[Observable],
    ranks: Mapping[str, int],
) -> tuple[GradientGraph, Collector]:
    """`graph` with the products of values and gradients among its outputs, and their collector."""
    model, collector = attach_products(graph.model, graph.gradients, axes, observables, ranks)
    return replace(graph, model=model), collector


def with_top_k(
    graph: GradientGraph, layers: Layers, influence: Influence, *, counted: bool
) -> tuple[GradientGraph, Collector]:
    """`graph` with the method's sparser back propagation, and the collector of its counters.

    Recurrent operators have it already: `graph` was differentiated with `layers.choices`.
    """
    if influence.top_k is None:
        return graph, Collector(outputs={})
    graph, hits = sparsified(graph, layers.products, influence.top_k, counted=counted)
    if not counted:
        return graph, hits
    graph, more = gates_counted(graph, layers.recurrences)
    return graph, hits.joined(more)


def scalars(influence: Influence) -> tuple[str, ...]:
    """What the update graph has to be told step by step."""
    wanted = {PENALTY: bool(influence.penalized), NOISE: influence.noise is not None}
    return tuple(name for name, needed in wanted.items() if needed)


def transforms(
    influence: Influence, masks: Mapping[str, Mask], *, seed: int, step: int
) -> tuple[list[Transform], list[Transform]]:
    """Of gradients and of parameters, for `updates.graph.build_update`.

    Args:
        influence: of the method.
        masks: of single entries that are gone; last in both lists, so that nothing revives them.
        seed: of the run.
        step: with which the round begins; it has a stream of noise for itself.
    """
    gradients: list[Transform] = []
    parameters: list[Transform] = []
    if influence.penalized:
        gradients.append(penalized(influence.penalized, PENALTY))
    if influence.noise is not None:
        stream = int(np.random.SeedSequence([seed, step, len(NOISE)]).generate_state(1)[0])
        parameters.append(noisy(NOISE, live_only=influence.noise == "live", seed=stream))
    if masks:
        gradients.append(masked(masks))
        parameters.append(masked(masks))
    return gradients, parameters
