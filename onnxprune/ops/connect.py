"""Single connections of weighted operators: the language of `@connects`.

A connection is what one input unit contributes to one output unit: an entry of a matrix, or a whole
kernel of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.base import Array, Axis
from onnxprune.emit import Emitter

__all__ = ["Connections", "Spread"]

Spread = Callable[[Emitter, ir.Value, Array], ir.Value]
"""(emitter, data (N, G * I, positions), kernels (G, I, O, K)) -> (N, G * I * O, positions): what
every kernel alone makes of its input, without bias."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Connections:
    """Where an operator keeps its connections; G groups of I inputs and O outputs each.

    Attributes:
        data, out: the axes on which input and output units lie; index g * I + i, and g * O + o.
        slot: input that holds the weight.
        table: weight, or any array of its shape, -> (G, I, O, K), K entries per connection.
        bias: node and input slot of a bias per output; None where there is none.
        scale, bias_scale: factors of the weight and of the bias.
        spread: of operators with kernels; None where a connection is one product.
    """

    data: Axis
    out: Axis
    slot: int
    table: Callable[[Array], Array]
    bias: tuple[ir.Node, int] | None = None
    scale: float = 1.0
    bias_scale: float = 1.0
    spread: Spread | None = None
