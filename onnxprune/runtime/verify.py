"""Whether two models compute the same: the check behind every removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.model import constants
from onnxprune.runtime.parts import run_in_parts
from onnxprune.runtime.session import Device, Runner

__all__ = ["TOLERANCE", "Agreement", "agreement", "compare", "tolerance_of"]

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
    if parts:
        first = run_in_parts(expected, feeds, device=where)
        second = run_in_parts(actual, feeds, device=where)
    else:
        first = Runner(expected, device=where, optimize=False).run(feeds)
        second = Runner(actual, device=where, optimize=False).run(feeds)
    return agreement(first, second, tolerance=tolerance)


def agreement(
    expected: Mapping[str, Any], actual: Mapping[str, Any], *, tolerance: float = TOLERANCE
) -> Agreement:
    """The largest difference between two sets of outputs; shapes or kinds that differ are infinite.

    Integer outputs (labels) follow from real ones and flip on ties, so that they are not compared.
    """
    error = relative = 0.0
    for name, array in expected.items():
        other = actual.get(name)
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            continue
        if other is None or other.shape != array.shape:
            return Agreement(error=float("inf"), relative=float("inf"), tolerance=tolerance)
        difference, scale = _distance(array, other)
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
