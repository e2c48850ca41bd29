"""What can be removed from a model, what cannot, and why: `inspect`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained
from onnxprune.model import opset, trainable_dtype
from onnxprune.reports import FrozenRow, GroupRow, Inspection
from onnxprune.runtime.session import is_newer
from onnxprune.training.lowering import lower
from onnxprune.training.paths import APART, blocked, described, reaching
from onnxprune.training.problem import read_model, with_sizes

__all__ = ["inspect"]


def inspect(
    model: str | os.PathLike[str],
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    train: str | None = None,
    freeze: str | None = None,
) -> Inspection:
    """Find the groups of a model, the axes that must stay, and the most that can go.

    Args:
        model: path of an ONNX file.
        input_shapes: sizes by input name, for axes the model leaves open.
        train: regular expression; constants it matches are trained as well.
        freeze: regular expression; constants it matches are not trained.

    Raises:
        InvalidModelError: not a valid model.
        ConfigError: an unknown input name, or a pattern that is none.
    """
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
        notes=_notes(graph),
    )


def _notes(graph: ir.Model) -> tuple[str, ...]:
    if not is_newer(graph):
        return ()
    return (
        f"opset {opset(graph)}, IR {graph.ir_version}: newer than onnxruntime-training reads, so "
        "that a lowered copy is trained and evaluated; what is written keeps both",
    )


def _stuck(model: ir.Model, parameters: Sequence[str]) -> dict[str, str]:
    """Parameters that no output can train, with what is in the way."""
    outputs = [value.name or "" for value in model.graph.outputs if trainable_dtype(value.dtype)]
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
    if not outputs:
        return {}
    return {name: found.get(name, APART) for name in parameters if name not in free}
