"""In which order indices stand after a removal, where it is not the one from before.

A channel shuffle interleaves blocks. When blocks keep different members, the k-th that is left of
every block stands where the k-th of every block stood: what comes out is in another order, and
whatever is coupled with it (weights, statistics, other operands) has to follow. `arranged` finds
that order; where two places ask for different ones it raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxprune.base import Axis, Group, Index, Mask
from onnxprune.errors import PlanError
from onnxprune.ops.registry import Sizes

__all__ = ["Edge", "Order", "arranged", "kept_indices"]


class Edge(NamedTuple):
    """Index `a[n]` of `left` and `b[n]` of `right` are one, because of `node`."""

    node: str
    left: Axis
    right: Axis
    a: Index
    b: Index


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Order:
    """All couplings of a graph, in graph order, with what numbers their indices.

    Attributes:
        edges: the couplings.
        label: (I,) component of every index of every axis.
        offset, size: where the indices of an axis begin, and how many there are.
        blocks: of the axes with `by`.
        mixed: per axis that a shuffle makes: the pairs that it interleaves.
    """

    edges: Sequence[Edge]
    label: Index
    offset: Mapping[Axis, int]
    size: Mapping[Axis, int]
    blocks: Mapping[Axis, int]
    mixed: Mapping[Axis, Axis]


def kept_indices(
    groups: Sequence[Group], keep: Mapping[str, Mask], shapes: Mapping[str, Sizes]
) -> dict[Axis, Index]:
    """Ascending kept indices of every axis that loses some.

    Beside an axis with `by` stands the plain one with indices that say how many are left, no more.

    Args:
        groups: all groups that `keep` may name.
        keep: (U,) bool per group name; absent groups keep everything.
        shapes: sizes before.
    """
    alive: dict[Axis, Mask] = {}
    for group in groups:
        mask = keep.get(group.name)
        if mask is None or mask.all():
            continue
        for member in group.members:
            size = shapes[member.axis.value][member.axis.position]
            here = alive.setdefault(member.axis, np.ones((size or 0) * member.blocks, np.bool_))
            here[member.index[~mask].reshape(-1)] = False
    kept = {axis: np.flatnonzero(mask) for axis, mask in alive.items()}
    for axis, mask in alive.items():
        if axis.by >= 0:  # a stand-in, of the size that is left
            size = shapes[axis.value][axis.position] or 1
            left = np.count_nonzero(mask) // (len(mask) // size)
            kept[Axis(axis.value, axis.position)] = np.arange(left, dtype=np.int64)
    return kept


def arranged(order: Order | None, kept: Mapping[Axis, Index]) -> dict[Axis, Index]:
    """`kept` in the order in which the indices stand afterwards.

    Args:
        order: of the analysis; None leaves all as it is.
        kept: ascending kept indices per axis that loses some.

    Returns:
        The same indices; those of an axis with `by` as (blocks, K), one row per block, and beside
        them 0 .. K - 1 for the plain axis, which has that size afterwards.

    Raises:
        PlanError: blocks keep unequal numbers, or no order serves all places.
    """
    if order is None:
        return dict(kept)
    work = _Work(order, kept)
    work.run()
    result: dict[Axis, Index] = {}
    for axis, current in work.current.items():
        if "\0" in axis.value or np.array_equal(current, np.arange(order.size[axis])):
            continue
        if axis.by < 0:
            result.setdefault(axis, current)
            continue
        rows = work.rows(axis)
        result[axis] = rows - np.arange(len(rows))[:, None] * (order.size[axis] // len(rows))
        result[Axis(axis.value, axis.position)] = np.arange(rows.shape[1], dtype=np.int64)
    return result


class _Work:
    """The orders while they spread from the shuffles."""

    def __init__(self, order: Order, kept: Mapping[Axis, Index]) -> None:
        self.order = order
        self.alive = self._alive(kept)
        self.current = {axis: np.flatnonzero(self._mask(axis)) for axis in order.offset}
        self.fixed: dict[Axis, Mask] = {}

    def _alive(self, kept: Mapping[Axis, Index]) -> Mask:
        gone = np.zeros(int(self.order.label.max(initial=-1)) + 1, np.bool_)
        for axis, indices in kept.items():
            mask = np.ones(self.order.size[axis], np.bool_)
            mask[indices] = False
            gone[self.order.label[np.flatnonzero(mask) + self.order.offset[axis]]] = True
        return ~gone[self.order.label]

    def _mask(self, axis: Axis) -> Mask:
        start = self.order.offset[axis]
        return self.alive[start : start + self.order.size[axis]]

    def run(self) -> None:
        """Spread all orders until nothing changes; every change fixes a place, so that it ends."""
        there_and_back = [*self.order.edges, *reversed(self.order.edges)]
        changed = True
        while changed:
            changed = False
            for edge in there_and_back:
                changed = self._edge(edge) or changed
        for axis in self.order.blocks:
            self.rows(axis)

    def rows(self, axis: Axis) -> Index:
        """(blocks, K) what is left of each block, in order."""
        blocks, current = self.order.blocks[axis], self.current[axis]
        inner = self.order.size[axis] // blocks
        counts = np.bincount(current // inner, minlength=blocks)
        if (counts != counts[0]).any():
            raise PlanError(
                f"plan: blocks of {axis} would keep {_few(counts)} indices; "
                "equally many of each must stay",
                axis=axis,
            )
        if (np.diff(current // inner) < 0).any():
            raise PlanError(f"plan: blocks of {axis} would be torn apart", axis=axis)
        return current.reshape(blocks, -1)

    def _edge(self, edge: Edge) -> bool:
        if self.order.mixed.get(edge.left) == edge.right:
            return self._interleave(edge)
        forward = self._spread(edge.left, edge.right, edge.a, edge.b)
        return self._spread(edge.right, edge.left, edge.b, edge.a) or forward

    def _interleave(self, edge: Edge) -> bool:
        """The k-th left of every block, then the next of every block."""
        rows = self.rows(edge.right)
        place = np.argsort(edge.b, kind="stable")  # of each pair on the axis that is made
        return self._impose(edge.left, edge.a[place][rows.T.reshape(-1)], force=True)

    def _spread(self, source: Axis, target: Axis, a: Index, b: Index) -> bool:
        """Let the indices of `target` stand as their partners in `source` do."""
        fixed = self.fixed.get(source)
        if fixed is None or not fixed[a].any():
            return False
        by_target = np.argsort(b, kind="stable")
        if (np.diff(b[by_target]) == 0).any() or (np.diff(a[by_target]) < 0).any():
            raise PlanError(f"plan: {target} cannot follow the order of {source}", axis=target)
        place = np.full(self.order.size[source], -1, np.int64)
        place[self.current[source]] = np.arange(len(self.current[source]))
        alive = by_target[place[a[by_target]] >= 0]
        follow = b[alive][np.argsort(place[a[alive]], kind="stable")]
        return self._impose(target, follow, force=False)

    def _impose(self, axis: Axis, wanted: Index, *, force: bool) -> bool:
        """Put `wanted` into the places where these indices stand now, in this order."""
        current = self.current[axis]
        slots = np.isin(current, wanted)
        before = current[slots]
        fixed = self.fixed.setdefault(axis, np.zeros(self.order.size[axis], np.bool_))
        same = np.array_equal(before, wanted)
        if same and (fixed[wanted].all() or (force and (np.diff(wanted) > 0).all())):
            return False
        if not same and fixed[wanted].any():
            raise PlanError(f"plan: {axis} would need two orders at once", axis=axis)
        after = current.copy()
        after[slots] = wanted
        self.current[axis] = after
        fixed[wanted] = True
        return True


def _few(counts: Index) -> str:
    text = ", ".join(str(count) for count in counts[:6])
    return text + (", ..." if len(counts) > 6 else "")
