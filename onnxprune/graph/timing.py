"""What a model's latency will be after a removal: a table of measured times, as plain data.

A model is divided into stretches of nodes that run one behind another. Each stretch was run at
several widths, and its time is interpolated over its work, the multiplications and values that it
makes; so is the time of the whole model over the sum of its stretches. Who measures is
`training.timing`; nothing here looks at a clock, so that the same table always says the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.base import Floats
from onnxprune.ops.registry import MACS, View

__all__ = ["Curve", "Stretch", "Timing", "multiplies", "rising", "work"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A function through measured points that never falls.

    Attributes:
        at: where it was measured, ascending, at least one.
        value: what was measured there, nanoseconds.
    """

    at: tuple[int, ...]
    value: tuple[int, ...]

    def __call__(self, x: int) -> int:
        """Between points the straight line; beyond the last one in proportion to `x`."""
        if x > self.at[-1] > 0:
            return self.value[-1] * x // self.at[-1]
        return int(np.interp(x, self.at, self.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Nodes that were measured together.

    Attributes:
        nodes: their keys (`View.key`).
        time: nanoseconds by the sum of the nodes' `work`.
    """

    nodes: tuple[str, ...]
    time: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latencies of one model on one device, for one batch.

    Attributes:
        stretches: of the model that was measured.
        whole: nanoseconds of the whole model by the sum of its stretches' times.
        examples: in the batch.
    """

    stretches: tuple[Stretch, ...]
    whole: Curve
    examples: int

    @property
    def start(self) -> int:
        """Nanoseconds of the model that was measured."""
        return self.whole.value[-1]

    @property
    def least(self) -> int:
        """Nanoseconds of the narrowest model that was measured."""
        return self.whole.value[0]


def work(view: View) -> int:
    """What a node does for one example: multiplications, and values of its outputs.

    Dynamic sizes count as 1. Of nodes whose shapes are unknown only what is known counts.
    """
    return _multiplications(view) + sum(
        math.prod(size or 1 for size in view.shapes.get(value.name or "", ()))
        for value in view.node.outputs
    )


def multiplies(view: View) -> bool:
    """Whether the node multiplies."""
    return _multiplications(view) > 0


def _multiplications(view: View) -> int:
    rule = MACS.find(view.node, view.opset)
    values = [v.name for v in (*view.node.inputs, *view.node.outputs) if v is not None and v.name]
    if rule is None or not all(name in view.shapes for name in values):
        return 0
    return rule(view)


def rising(at: Sequence[int], value: Sequence[float]) -> Curve:
    """The curve through points that noise may have put out of order.

    Half way between the lowest curve above all points and the highest one below them.
    """
    order = np.argsort(np.asarray(at), kind="stable")
    xs, ys = np.asarray(at)[order], np.asarray(value, np.float64)[order]
    above = np.maximum.accumulate(ys)
    below: Floats = np.minimum.accumulate(ys[::-1])[::-1]
    middle = (above + below) / 2
    last = np.flatnonzero(np.append(np.diff(xs) > 0, [True]))  # of equal ones, the highest
    return Curve(
        at=tuple(int(x) for x in xs[last]), value=tuple(round(float(y)) for y in middle[last])
    )
