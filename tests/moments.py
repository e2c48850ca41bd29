"""What a pruning method sees, made by hand: observations of random data, and moments of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Floats, Observable, Observations, Plan
from onnxprune.emit import Emitter
from onnxprune.gradients.gradient import differentiate
from onnxprune.gradients.lowering import lower
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.order import kept_indices
from onnxprune.graph.parameters import trained
from onnxprune.instrument.measures import Measurement, attach_measurement
from onnxprune.instrument.statistics import attach
from onnxprune.methods import Limit, Moment, Pruner
from onnxprune.model import constant, constants, set_constant
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.influence import preactivations, with_products, with_top_k

DEVICE = Device(threads=1)


def observe(
    network: ir.Model,
    analysis: Analysis,
    data: Mapping[str, Array],
    axes: Iterable[Axis] | None = None,
    observables: Iterable[Observable] = tuple(Observable),
) -> Observations:
    """Statistics of `data`; of all consumers and all inputs of the network unless `axes` says."""
    if axes is None:
        axes = [consumer.axis for group in analysis.groups for consumer in group.consumers]
        axes += [Axis(value.name or "", 1) for value in network.graph.inputs]
        axes += [member.axis for group in analysis.groups for member in group.members]
    ranks = {name: len(sizes) for name, sizes in analysis.shapes.items()}
    instrumented, collector = attach(network, axes, observables, ranks)
    if not collector.names:
        return {}
    return collector.collect(Runner(instrumented, DEVICE).run(data, collector.names))


def observe_training(
    network: ir.Model, analysis: Analysis, data: Mapping[str, Array], pruner: Pruner
) -> Observations:
    """What a step of training on `data` shows a method; the loss is the mean square of the output.

    Statistics of forward passes, products with gradients and counters of sparser back propagation.
    """
    output = network.graph.outputs[0].name or ""
    copy = lower(network, [output], batch_norm="frozen").model
    e = Emitter("objective", opset=17)
    squares = e.op("Mul", copy.graph.outputs[0], copy.graph.outputs[0])
    loss = e.op("ReduceMean", squares, keepdims=0, name="objective/loss")
    loss.type, loss.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    e.add_to(copy.graph)
    copy.graph.outputs[:] = [loss]
    sites = [c.axis for group in analysis.groups for c in group.consumers]
    sites += [member.axis for group in analysis.groups for member in group.members]
    names = [n for n in trained(network, analysis).parameters if n in copy.graph.initializers]
    arrays = {n: constant(copy.graph.initializers[n]) for n in names}
    ranks = {name: len(sizes) for name, sizes in analysis.shapes.items()}
    instrumented, collector = attach(copy, sites, pruner.requires, ranks)
    influence, layers = pruner.influence(network, analysis), preactivations(network, analysis)
    choices = layers.choices(influence)
    graph = differentiate(instrumented, loss=loss.name or "", parameters=names, top_k=choices)
    graph, products = with_products(graph, sites, pruner.requires, ranks)
    graph, hits = with_top_k(graph, layers, influence, counted=True)
    feeds = {**data, **{n: arrays[n] for n in graph.parameters}}
    results = Runner(graph.model, DEVICE).run(feeds)
    return collector.joined(products).joined(hits).collect(results)


def value_of(network: ir.Model, name: str, data: Mapping[str, Array]) -> Floats:
    """The array of an intermediate value."""
    copy = network.clone()
    if name in {value.name for value in copy.graph.outputs}:
        return Runner(copy, DEVICE, optimize=False).run(data, [name])[name]
    value = next(v for node in copy.graph for v in node.outputs if v.name == name)
    value.dtype = copy.graph.inputs[0].dtype
    copy.graph.outputs.append(value)
    return Runner(copy, DEVICE, optimize=False).run(data, [name])[name]


def moment(
    network: ir.Model,
    data: Mapping[str, Array],
    *,
    step: int = 10,
    steps: int = 100,
    loss: float = 1.0,
    trivial: float = 0.0,
    limit: Limit | None = None,
    analysis: Analysis | None = None,
) -> Moment:
    """A moment of a run that trains `network` on `data`."""
    found = analyze(network) if analysis is None else analysis

    def probe(axes: Iterable[Axis], observables: Iterable[Observable]) -> Observations:
        return observe(network, found, data, axes, observables)

    def measure(write: Measurement, *, examples: int = 256) -> Mapping[str, Floats]:
        measured, outputs = attach_measurement(network, write)
        found = Runner(measured, DEVICE).run(data, list(outputs.values())) if outputs else {}
        return {key: found[name].astype(np.float64) for key, name in outputs.items()}

    def altered(arrays: Mapping[str, Array]) -> Moment:
        copy = network.clone()
        for name, array in arrays.items():
            set_constant(constants(copy)[name], array)
        again = {"step": step, "steps": steps, "loss": loss, "trivial": trivial, "limit": limit}
        return moment(copy, data, analysis=found, **again)  # type: ignore[arg-type]

    return Moment(
        step=step,
        steps=steps,
        model=network,
        analysis=found,
        loss=loss,
        trivial=trivial,
        limit=limit,
        probe=probe,
        measure=measure,
        altered=altered,
        parameters=frozenset(trained(network, found).parameters),
    )


def without_entries(network: ir.Model, plan: Plan) -> ir.Model:
    """The network with zeros where the plan's masks say so."""
    copy = network.clone()
    for name, mask in plan.masks.items():
        value = constants(copy)[name]
        array = constant(value)
        assert array is not None
        set_constant(value, np.where(mask, array, 0).astype(array.dtype))
    return copy


def left(network: ir.Model, analysis: Analysis, plan: Plan, kind: str = "params") -> int:
    """Parameters or MACs that remain after `plan`."""
    kept = kept_indices(analysis.groups, plan.keep, analysis.shapes)
    shapes = cost.sizes_after(analysis.shapes, kept)
    if kind == "macs":
        return cost.macs(network, analysis, shapes)
    return cost.parameters(network, shapes)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Floats:
    """Random float32 numbers."""
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)
