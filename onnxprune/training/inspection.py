"""What can be removed from a model, what cannot, and why: `inspect`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.data.synthetic import synthetic
from onnxprune.errors import ConfigError, DataError, ModelError, RuntimeUnavailableError
from onnxprune.gradients.lowering import lower
from onnxprune.gradients.paths import APART, blocked, described, reaching
from onnxprune.graph import cost
from onnxprune.graph.batch import fixed_batches, opened
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained
from onnxprune.model import PROTOBUF_LIMIT, nbytes, opset, trainable_dtype
from onnxprune.reports import FrozenRow, GroupRow, Inspection
from onnxprune.runtime.batches import PROVING, is_same
from onnxprune.runtime.session import Device, check_runtime, is_newer
from onnxprune.training.problem import read_model, with_sizes

__all__ = ["inspect"]


def inspect(
    model: str | os.PathLike[str],
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    train: str | None = None,
    freeze: str | None = None,
    provider: str = "cpu",
    threads: int | None = None,
) -> Inspection:
    """Find the groups of a model, the axes that must stay, and the most that can go.

    Args:
        model: path of an ONNX file.
        input_shapes: sizes by input name, for axes the model leaves open.
        train: regular expression; constants it matches are trained as well.
        freeze: regular expression; constants it matches are not trained.
        provider: where a model is run that takes batches of one size only; others are not run.
        threads: of the runtime there.

    Raises:
        InvalidModelError: not a valid model.
        ConfigError: an unknown input name, a pattern that is none, or a provider that the
            installed runtime does not have.
    """
    device = Device(provider=provider, threads=threads)
    if provider != Device().provider:
        device.providers()
    graph = with_sizes(read_model(model), input_shapes or {})
    analysis = analyze(graph)
    weights = cost.unit_parameters(graph, analysis)
    parameters, macs = cost.parameters(graph), cost.macs(graph, analysis)
    least = cost.ceiling(graph, analysis)
    moved = trained(graph, analysis, train=train, freeze=freeze)
    stuck = _stuck(graph, moved.parameters)
    return Inspection(
        groups=tuple(
            GroupRow(
                name=group.name,
                units=group.size,
                parameters=round(weights[group.name] * group.size),
                axes=tuple(str(member.axis) for member in group.members),
                exact=group.exact,
                reason="" if group.exact else "crosses a normalization or reduction over its axis",
            )
            for group in analysis.groups
        ),
        frozen=tuple(
            FrozenRow(
                axis=str(fact.axis),
                size=analysis.shapes[fact.axis.value][fact.axis.position],
                reason=fact.reason.value,
                node=fact.node,
                detail=fact.detail,
            )
            for fact in analysis.frozen
        ),
        parameters=parameters,
        macs=macs,
        removable_parameters=parameters - least[0],
        removable_macs=macs - least[1],
        trained=tuple(name for name in moved.parameters if name not in stuck),
        untrained=(*moved.others, *stuck.items()),
        notes=_notes(graph, device),
    )


def _notes(graph: ir.Model, device: Device) -> tuple[str, ...]:
    notes = _batch_notes(graph, device)
    if is_newer(graph):
        notes += (
            f"opset {opset(graph)}, IR {graph.ir_version}: newer than onnxruntime-training reads, "
            "so that a lowered copy is trained and evaluated; what is written keeps both",
        )
    return notes


def _batch_notes(graph: ir.Model, device: Device) -> tuple[str, ...]:
    """How a model is trained that takes batches of one size; tried on made-up inputs."""
    fixed = fixed_batches(graph)
    sizes = set(fixed.values())
    if not sizes:
        return ()
    if len(sizes) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in fixed.items())
        return (f"inputs have different batch sizes ({listed}): cannot be trained",)
    (own,) = sizes
    takes, count = f"takes batches of {own} only", PROVING * own
    if nbytes(graph) > PROTOBUF_LIMIT:
        return (takes,)
    try:
        check_runtime(training=False)
        copy = opened(graph, own)
        feeds = {} if copy is None else synthetic(copy, np.random.default_rng(0), examples=count)
    except (RuntimeUnavailableError, ConfigError, DataError):
        return (takes,)
    if copy is not None and is_same(graph, copy, feeds, own, device=device):
        return (f"{takes}; a copy that takes any gives the same results, and is what is trained",)
    return (f"{takes}, and no copy that takes others was found: trained in such batches",)


def _stuck(model: ir.Model, parameters: Sequence[str]) -> dict[str, str]:
    """Parameters that no output can train, with what is in the way."""
    outputs = [value.name or "" for value in model.graph.outputs if trainable_dtype(value.dtype)]
    if not outputs:
        return {}
    try:
        graph = lower(model, outputs, batch_norm="frozen", dropout=False).model.graph
    except ModelError:
        return {}  # what cannot be lowered is told when training begins
    free: set[str] = set()
    found: dict[str, str] = {}
    for output in outputs:
        obstacles = blocked(graph, output)
        free.update(set(reaching(graph, output, parameters)) - set(obstacles))
        found.update({name: described(node) for name, node in obstacles.items()})
    return {name: found.get(name, APART) for name in parameters if name not in free}
