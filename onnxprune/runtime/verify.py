"""Whether two models compute the same: the check behind every removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.emit import Emitter
from onnxprune.model import constants, node_key, opset
from onnxprune.ops.random import draws, typical
from onnxprune.runtime.parts import run_in_parts
from onnxprune.runtime.session import Device, Runner
from onnxprune.scopes import nodes

__all__ = ["TOLERANCE", "Agreement", "agreement", "compare", "is_random", "stilled", "tolerance_of"]

TOLERANCE = 1e-4  # of the largest magnitude in an output; float32 sums in another order stay below
_HALF_TOLERANCE = 5e-3  # where float16 or bfloat16 weights take part
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def tolerance_of(model: ir.Model) -> float:
    """What rounding may do to the outputs of `model`, by the types of its weights."""
    half = any(value.dtype in _HALVES for value in constants(model).values())
    return _HALF_TOLERANCE if half else TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two models' outputs are apart on one batch.

    Attributes:
        error: largest absolute difference over all outputs.
        relative: largest of (difference / largest magnitude of that output, at least 1e-6).
        tolerance: what `relative` may be.
    """

    error: float
    relative: float
    tolerance: float = TOLERANCE

    @property
    def allowed(self) -> float:
        """What `error` might have been, in the outputs' unit."""
        return self.tolerance * (self.error / self.relative if self.relative else 1.0)

    @property
    def holds(self) -> bool:
        """Whether the models agree within the tolerance."""
        return self.relative <= self.tolerance


def compare(
    expected: ir.Model,
    actual: ir.Model,
    feeds: Mapping[str, Array],
    *,
    device: Device | None = None,
    tolerance: float = TOLERANCE,
    parts: bool = False,
) -> Agreement:
    """Run both models on one batch, without graph optimizations, and compare all outputs.

    What a Sigmoid makes is compared before it: where it saturates, everything looks the same, or
    the rounding of the operator, which does not shrink with its result, looks like a difference.

    Nodes that draw random numbers are given the same ones in both (`stilled`).

    Args:
        expected: one model.
        actual: another with the same inputs and outputs.
        feeds: one array per input.
        device: where to run.
        tolerance: relative to the largest magnitude of each output.
        parts: whether to run them stretch by stretch, for models that are too large for memory.

    Raises:
        ModelError: a model does not load or run.
    """
    where = device or Device()
    expected, actual = stilled(expected), stilled(actual)
    if parts:
        first = run_in_parts(expected, feeds, device=where)
        second = run_in_parts(actual, feeds, device=where)
    else:
        squashed = _squashed(expected) & _squashed(actual)
        first = _run(expected, squashed, feeds, where)
        second = _run(actual, squashed, feeds, where)
    return agreement(first, second, tolerance=tolerance)


def is_random(model: ir.Model) -> bool:
    """Whether the outputs of `model` may be others each time."""
    return any(draws(node) for node in nodes(model))


def stilled(model: ir.Model) -> ir.Model:
    """A copy in which what draws random numbers has typical ones; `model` itself if none does."""
    if not is_random(model):
        return model
    copy = model.clone()
    for node in list(nodes(copy)):
        e = Emitter(node_key(node), opset=opset(copy))
        made = typical(e, node) if draws(node) else None
        holder = node.graph
        if made is None or not isinstance(holder, ir.Graph):
            continue
        e.add_to(holder, before=node)
        for old, value in zip(node.outputs, made, strict=False):
            name, old.name = old.name, None
            value.name, value.type, value.shape = name or value.name, old.type, old.shape
            old.replace_all_uses_with(value, replace_graph_outputs=True)
        holder.remove(node, safe=True)
    return copy


def _squashed(model: ir.Model) -> frozenset[str]:
    """Names of the outputs that a Sigmoid makes of a value inside the graph."""
    found = set()
    ends = {*model.graph.inputs, *model.graph.outputs}
    for value in model.graph.outputs:
        node = value.producer()
        if node is not None and (node.domain, node.op_type) == ("", "Sigmoid"):
            entering = node.inputs[0]
            if entering is not None and entering.producer() is not None and entering not in ends:
                found.add(value.name or "")
    return frozenset(found)


def _run(
    model: ir.Model, squashed: frozenset[str], feeds: Mapping[str, Array], device: Device
) -> dict[str, Any]:
    """The outputs by name, those of `squashed` before their Sigmoid."""
    if not squashed:
        return Runner(model, device=device, optimize=False).run(feeds)
    probe = model.clone()
    names: dict[str, str] = {}
    for position, value in enumerate(probe.graph.outputs):
        node = value.producer()
        if value.name in squashed and node is not None and node.inputs[0] is not None:
            entering = node.inputs[0]
            entering.type, entering.shape = value.type, value.shape
            probe.graph.outputs[position] = entering
            names[entering.name or ""] = value.name or ""
    found = Runner(probe, device=device, optimize=False).run(feeds)
    return {names.get(name, name): array for name, array in found.items()}


def agreement(
    expected: Mapping[str, Any], actual: Mapping[str, Any], *, tolerance: float = TOLERANCE
) -> Agreement:
    """The largest difference between two sets of outputs; shapes or kinds that differ are infinite.

    Integer outputs (labels) follow from real ones and flip on ties, so that they are not compared
    where there are real ones. Elsewhere both numbers of the result are the share of entries that
    differ; those of 8 bits, which rounding may move, by more than one.
    """
    arrays = {name: array for name, array in expected.items() if isinstance(array, np.ndarray)}
    real = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    error = relative = 0.0
    for name, array in (real or arrays).items():
        other = actual.get(name)
        if other is None or other.shape != array.shape:
            return Agreement(error=float("inf"), relative=float("inf"), tolerance=tolerance)
        difference, scale = _distance(array, other) if real else (_differing(array, other), 1.0)
        error = max(error, difference)
        relative = max(relative, difference / max(scale, 1e-6))
    return Agreement(error=error, relative=relative, tolerance=tolerance)


def _distance(array: Array, other: Array) -> tuple[float, float]:
    """Largest difference and largest finite magnitude; NaN and Inf must be in the same places."""
    finite = np.isfinite(array)
    same = np.array_equal(array[~finite], other[~finite], equal_nan=True)
    if not same or not np.isfinite(other[finite]).all():
        return float("inf"), 1.0
    if not finite.any():
        return 0.0, 1.0
    a, b = array[finite].astype(np.float64), other[finite].astype(np.float64)
    return float(np.abs(a - b).max()), float(np.abs(a).max())


def _differing(array: Array, other: Array) -> float:
    """The share of entries that are others, in [0, 1]."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 1:
        differs = np.abs(array.astype(np.int64) - other.astype(np.int64)) > 1
    else:
        differs = np.asarray(array != other)
    return float(differs.mean()) if differs.size else 0.0
