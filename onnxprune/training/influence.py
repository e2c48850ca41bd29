"""What a method does to training, written into the graphs of a round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Mask, Observable
from onnxprune.gradients.gradient import GradientGraph
from onnxprune.gradients.top_k import sparsified
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.instrument.products import attach_products
from onnxprune.instrument.statistics import Collector
from onnxprune.methods.compose import NOISE, PENALTY, Influence
from onnxprune.ops.registry import PARAMETERS, Role, Sizes
from onnxprune.updates.graph import Transform
from onnxprune.updates.transforms import masked, noisy, penalized

__all__ = ["preactivations", "scalars", "transforms", "with_products", "with_top_k"]


def preactivations(model: ir.Model, analysis: Analysis) -> dict[Axis, Sizes]:
    """The values in which weighted operators make the units, with their sizes.

    Layers whose units may not go, such as the last one, are not among them.
    """
    members = {member.axis for group in analysis.groups for member in group.members}
    found: dict[Axis, Sizes] = {}
    for view in views(model, analysis.shapes, analysis.known):
        declared = PARAMETERS.find(view.node, view.opset)
        if declared is None or Role.WEIGHT not in declared().values() or not view.node.outputs:
            continue
        output = view.node.outputs[0]
        sizes = analysis.shapes.get(output.name or "", ())
        for position in range(len(sizes)):
            axis = Axis(output.name or "", position)
            if axis in members:
                found[axis] = sizes
    return found


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
    graph: GradientGraph, layers: Mapping[Axis, Sizes], influence: Influence, *, counted: bool
) -> tuple[GradientGraph, Collector]:
    """`graph` with the method's sparser back propagation, and the collector of its counters."""
    if influence.top_k is None:
        return graph, Collector(outputs={})
    return sparsified(graph, layers, influence.top_k, counted=counted)


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
