"""Training through QuantizeLinear and DequantizeLinear: straight through, within the range.

Rounding has no slope that helps, so a pair of the two passes slopes on as if it only limited its
input (Bengio et al. 2013, arXiv 1308.3432, the straight-through estimator). Weights that are stored
as integers stay what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.hidden import Call
from onnxprune.gradients.slots import optional_input, quantized_source
from onnxprune.model import constant
from onnxprune.ops.registry import gradient, lowers

__all__: list[str] = []

_RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


@gradient("DequantizeLinear")
def straight_through(e: Emitter, call: Call) -> Sequence[ir.Value | None]:  # noqa: ARG001
    """The slope itself, for what was quantized."""
    return [*[None] * len(call.node.inputs), call.slopes[0]]


@gradient("QuantizeLinear")
def integers(e: Emitter, call: Call) -> Sequence[ir.Value | None]:  # noqa: ARG001
    """Integers have no slope."""
    return [None] * len(call.wanted)


@lowers("QuantizeLinear")
def within_range(e: Emitter, node: ir.Node) -> ir.Value | None:
    """Limit the input to what the integers hold, so that nothing beyond has a slope."""
    x, scale, zero = (optional_input(node, slot) for slot in range(3))
    step, shift = constant(scale), constant(zero)
    before = None if x is None else x.producer()
    readers = [use.node for use in node.outputs[0].uses()]
    if step is None or step.size != 1 or (before is not None and before.op_type == "Clip"):
        return None
    if not any(quantized_source(reader) is x for reader in readers):
        return None
    name = "uint8" if shift is None else shift.dtype.name
    if name not in _RANGES:
        return None
    offset = 0 if shift is None else int(shift.reshape(-1)[0])
    low, high = (float(step.reshape(-1)[0]) * (bound - offset) for bound in _RANGES[name])
    clipped = e.op("Clip", x, e.scalar(low), e.scalar(high))
    options = {name: attribute.value for name, attribute in node.attributes.items()}
    return e.op("QuantizeLinear", clipped, *node.inputs[1:], **options)
