"""How consumers of units hold their weights: what leaves a unit, and who can take over for it."""

from __future__ import annotations

import numpy as np

from onnxprune.base import Consumer, Floats
from onnxprune.ops.edit import Absorber
from onnxprune.ops.registry import ABSORBS, View

__all__ = ["absorber", "outgoing"]


def absorber(view: View, consumer: Consumer) -> Absorber | None:
    """How the consumer can take over constants and duplicates; None when it cannot."""
    rule = ABSORBS.find(view.node, view.opset)
    result: Absorber | None = None if rule is None else rule(view, consumer.slot)
    return result


def outgoing(view: View, how: Absorber) -> Floats:
    """The consumer's weights as (C_in, C_out, rest), one row per index of the units' axis."""
    weight = view.constant(how.slot)
    assert weight is not None
    table = np.moveaxis(weight, (how.in_axis, how.out_axis), (0, 1))
    return table.reshape(*table.shape[:2], -1)
