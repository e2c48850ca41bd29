"""An operator between two convolutions, and random plans on it: how most are tested."""

from __future__ import annotations

import onnx_ir as ir
from checks import agreeing, changed
from graphs import model
from strategies import random_plan

from onnxprune.graph.groups import analyze
from onnxprune.rewrite.reference import reference

# A convolution in front, one behind, and what the family does between them.
FRAME = """(float[%s, 3, 4, 4] x) => (float[%s, 2, H, W] y)
<float[6, 3, 1, 1] w, float[6] b, float[2, %d, 1, 1] v> {
    h = Conv(x, w, b)
    %s
    y = Conv(a, v)
}"""


def frame(
    body: str, width: int = 6, *, batch: str = "N", opset: int = 17, **constants: object
) -> ir.Model:
    return model(FRAME % (batch, batch, width, body), opset=opset, **constants)


def prunes(network: ir.Model, *, tolerance: float = 1e-5) -> ir.Model:
    """Random plans agree with the reference and change the output; the last result."""
    analysis = analyze(network)
    plans = [random_plan(network, analysis, seed) for seed in range(4)]
    plans = [plan for plan in plans if plan.removed()]
    assert plans
    assert any(changed(network, reference(network, analysis, plan)) for plan in plans)
    return [agreeing(network, analysis, plan, tolerance=tolerance) for plan in plans][-1]
