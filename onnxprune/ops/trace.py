"""What a unit's value is as a function of the parameters that come in: the language of `@traces`.

A trace has one row per unit of a group. Two units with equal rows compute the same value; what more
can be said depends on the functions between the rows and the value (the kind).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.base import Axis, Floats, Index

__all__ = ["Kind", "Trace", "TraceView"]


class Kind(enum.IntEnum):
    """How the value of a unit depends on its row u; ordered from most to least known."""

    LINEAR = 0  # value = u . z for some z that is the same for all units
    HOMOGENEOUS = 1  # value(c u) = c value(u) for c >= 0, 1-Lipschitz in u . z
    ODD = 2  # value(-u) = -value(u), Lipschitz in u . z (tanh)
    SIGMOID = 3  # value(-u) = 1 - value(u), Lipschitz in u . z
    SMOOTH = 4  # Lipschitz in u . z, without any symmetry (GELU, SiLU)
    EQUAL = 5  # equal rows have equal values, nothing more


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trace:
    """What the units of a group compute.

    Attributes:
        rows: (U, D) one per unit.
        kind: how the value depends on the row.
        inputs: the data axes that the producers read.
        slope: the most that the value changes when u . z changes by 1; nothing where only equal
            rows say anything.
    """

    rows: Floats
    kind: Kind
    inputs: tuple[Axis, ...] = ()
    slope: float = 1.0

    def then(self, kind: Kind, slope: float = 1.0) -> Trace:
        """Behind an activation of `kind` whose derivative is at most `slope`."""
        known = self.kind is Kind.LINEAR or kind is self.kind is Kind.HOMOGENEOUS
        return replace(self, kind=kind, slope=slope) if known else replace(self, kind=Kind.EQUAL)

    def plus(self, columns: Floats) -> Trace:
        """With `columns` (U, k) added to the value, as constants of each unit."""
        kind = self.kind if self.kind <= Kind.HOMOGENEOUS else Kind.EQUAL
        return replace(self, kind=kind, rows=np.concatenate([self.rows, columns], axis=1))

    def times(self, factor: Floats) -> Trace:
        """Each unit's value times `factor` (U, k); k > 1 differs by position."""
        if factor.shape[1] == 1 and (
            self.kind is Kind.LINEAR
            or (self.kind is Kind.HOMOGENEOUS and bool((factor >= 0).all()))
        ):
            return replace(self, rows=self.rows * factor)
        return replace(self, kind=Kind.EQUAL, rows=np.concatenate([self.rows, factor], axis=1))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TraceView:
    """What a `@traces` rule sees: the traces of its inputs and the units' indices around it.

    Attributes:
        inputs: per input slot the trace of the data there; None for constants and foreign data.
        index: (axis) -> (U, k) indices of the units on that axis, or None.
    """

    inputs: Sequence[Trace | None]
    index: Callable[[Axis], Index | None]


def combined(traces: Sequence[Trace]) -> Trace:
    """The trace of a sum of values that all have traces."""
    kind = max(trace.kind for trace in traces)
    if kind > Kind.HOMOGENEOUS and len(traces) > 1:
        kind = Kind.EQUAL
    inputs = tuple(dict.fromkeys(axis for trace in traces for axis in trace.inputs))
    return Trace(
        rows=np.concatenate([trace.rows for trace in traces], axis=1),
        kind=kind,
        inputs=inputs,
        slope=max(trace.slope for trace in traces),
    )
