"""Agreement of a pruned model with the reference: the master property, in one call."""

from __future__ import annotations

import onnx_ir as ir
from graphs import feeds

from onnxprune.base import Plan
from onnxprune.graph.groups import Analysis
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.session import Device
from onnxprune.runtime.verify import compare

DEVICE = Device(threads=1)


def agreeing(
    network: ir.Model, analysis: Analysis, plan: Plan, *, tolerance: float, batch: int = 5
) -> ir.Model:
    """The pruned model, after it was found equal to the reference.

    Args:
        tolerance: relative to the largest magnitude of each output.
        batch: examples to compare on.
    """
    smaller = prune(network, analysis, plan).model
    expected = reference(network, analysis, plan)
    data = feeds(network, batch=batch)
    result = compare(expected, smaller, data, device=DEVICE, tolerance=tolerance)
    assert result.holds, f"pruned and reference differ by {result.relative:.2e}"
    return smaller


def changed(network: ir.Model, other: ir.Model) -> bool:
    """Whether two models differ by more than noise."""
    return not compare(network, other, feeds(network), device=DEVICE, tolerance=1e-3).holds
