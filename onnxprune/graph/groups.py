"""Units and groups: the connected components of a graph's couplings.

`analyze(model, shapes)` is the one entry. All (axis, index) pairs are numbered; couplings are
edges; components without a frozen index that hold a parameter are units; units that occupy the
same axes are a group. Product axes (base.Choice) are resolved here, to a fixpoint, because which of
their atoms can carry units depends on the rest of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.base import (
    Array,
    Axis,
    Balance,
    Balanced,
    Choice,
    Consumer,
    Fact,
    Frozen,
    Group,
    Index,
    Inexact,
    Member,
)
from onnxprune.errors import PlanError
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.blocks import balances, mixed
from onnxprune.graph.constants import fold
from onnxprune.graph.couplings import Said, raw_facts, striped
from onnxprune.graph.ends import consumers, inner
from onnxprune.graph.lanes import unfolded
from onnxprune.graph.order import Order, arranged, kept_indices
from onnxprune.graph.shapes import settle
from onnxprune.graph.solver import Solver, entered, is_virtual
from onnxprune.model import constants
from onnxprune.ops.registry import Sizes, arange

__all__ = ["Analysis", "analyze"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Analysis:
    """What can be removed from a model, and what cannot and why.

    Attributes:
        groups: in graph order.
        frozen: per axis of a parameter that is in no group: why.
        shapes: static sizes per value name.
        known: arrays of values that are computed but cannot change.
        alternatives: product axes that could have carried other atoms: node, chosen size, rejected
            sizes.
        balances: blocks of units of which equally many must stay.
        order: what decides in which order indices stand after a removal; None where they keep it.
        names: of the groups, and of those that were there before removals, with their axes.
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    shapes: Mapping[str, Sizes]
    known: Mapping[str, Array]
    alternatives: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    balances: tuple[Balance, ...] = ()
    order: Order | None = None
    names: Mapping[str, frozenset[Axis]] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


def analyze(
    model: ir.Model,
    shapes: Mapping[str, Sizes] | None = None,
    *,
    before: Analysis | None = None,
) -> Analysis:
    """Find the groups of `model`.

    Args:
        model: the user's graph; not changed.
        shapes: static sizes per value name; inferred when not given.
        before: of the model that this one was pruned from; groups keep the names they have there.
    """
    shapes, known = settle(model) if shapes is None else (shapes, fold(model, shapes))
    raw = list(raw_facts(model, shapes, known))
    weights = {name for name, value in constants(model).items() if value.dtype in _PARAMETER_TYPES}
    names = {} if before is None else before.names
    found = _Found(list(striped(raw)), shapes, weights, names)
    order = None
    if any(isinstance(fact, Balanced | Choice) for _, fact in raw):
        uneven = found.solver.striped
        balanced = _balanced(unfolded(raw, shapes, uneven), shapes, weights, names)
        if balanced is not None:
            found, order = balanced
    return Analysis(
        groups=found.groups,
        frozen=tuple(_refusals(found.solver, found.labels, found.stopped, weights)),
        shapes=shapes,
        known=known,
        alternatives=tuple(found.solver.alternatives),
        balances=found.balances,
        order=order,
        names=found.names,
    )


def _balanced(
    said: Sequence[Said] | None,
    shapes: Mapping[str, Sizes],
    weights: set[str],
    names: Mapping[str, frozenset[Axis]],
) -> tuple[_Found, Order] | None:
    """Groups whose blocks have members of their own; None where nothing of the kind holds."""
    if said is None:
        return None
    found = _Found(said, shapes, weights, names)
    shares = balances(said, found.solver, found.groups)
    if not shares:
        return None
    found.balances, ids = shares, found.solver.ids
    order = Order(
        edges=found.solver.ordered(),
        label=found.labels,
        offset=ids.offset,
        size=ids.size,
        blocks=ids.blocks,
        mixed=mixed(found.solver),
    )
    return (found, order) if _holds(found, order, shapes) else None


def _holds(found: _Found, order: Order, shapes: Mapping[str, Sizes]) -> bool:
    """Whether plans that keep the blocks equal can be carried out: a few random ones are tried."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        keep = {group.name: rng.random(group.size) < 0.5 for group in found.groups}
        for mask in keep.values():
            mask[int(rng.integers(len(mask)))] = True
        keep = completed_keep(found, keep)
        try:
            arranged(order, kept_indices(found.groups, keep, shapes))
        except PlanError:
            return False
    return True


class _Found:
    """The groups that facts lead to."""

    def __init__(
        self,
        said: Sequence[Said],
        shapes: Mapping[str, Sizes],
        weights: set[str],
        names: Mapping[str, frozenset[Axis]],
    ) -> None:
        self.balances: tuple[Balance, ...] = ()
        self.solver = solver = entered(said, shapes)
        self.labels, self.stopped = solver.solve()
        parts = [(view, part) for view, fact in said for part in _parts(fact)]
        mixing = np.zeros(len(self.stopped), np.bool_)
        for axis in {fact.axis for _, fact in parts if isinstance(fact, Inexact)}:
            mixing[self.labels[solver.ids.of(axis)]] = True
        members = _groups(solver, self.labels, self.stopped, weights)
        wanted = {member.axis for group in members for member in group}
        ending = _by_axis(consumers(solver.links, parts, wanted))
        within = _by_axis(inner(parts))
        self.names = _names(members, weights, names)
        self.groups = tuple(
            _finish(
                name,
                group,
                ending,
                within,
                exact=not mixing[_own(solver, self.labels, group)].any(),
            )
            for name, group in zip(self.names, members, strict=False)
        )


def _parts(fact: Fact) -> tuple[Fact, ...]:
    return fact.couplings if isinstance(fact, Balanced) else (fact,)


_PARAMETER_TYPES = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
}


def _groups(
    solver: Solver, labels: Index, stopped: Index, weights: set[str]
) -> list[tuple[Member, ...]]:
    """Components without a freeze that hold a parameter, collected by the axes they occupy."""
    axes = list(solver.ids.offset)
    number = np.repeat(arange(len(axes)), [solver.ids.size[axis] for axis in axes])
    real = np.array([not is_virtual(axis) for axis in axes], np.bool_)
    holds = np.array([axis.value in weights for axis in axes], np.bool_)
    live = np.flatnonzero((stopped[labels] < 0) & real[number]) if len(axes) else arange(0)
    order = live[np.argsort(labels[live], kind="stable")]
    tables = [table for table in _tables(order, labels, number) if holds[number[table[0]]].any()]
    # By the axes alone, so that groups of one parameter keep their order when units go.
    tables.sort(key=lambda table: number[table[0]].tolist())
    return [_members(solver, table, axes, number[table[0]]) for table in tables if len(table) > 1]


def _tables(order: Index, labels: Index, number: Index) -> Iterator[Index]:
    """The ids (U, L) of components that occupy the same axes, in the order of their first.

    Args:
        order: ids by component, ascending in each, so that they lie in the order of the axes.
        labels: component per id.
        number: axis per id.
    """
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    for length in np.unique(lengths):
        first = starts[lengths == length]
        units = order[first[:, None] + arange(length)]
        units = units[np.argsort(units[:, 0])]
        found, width = number[units].tobytes(), units.itemsize * int(length)
        patterns: dict[bytes, list[int]] = {}
        for row in range(len(units)):
            patterns.setdefault(found[row * width : (row + 1) * width], []).append(row)
        for rows in patterns.values():
            yield units[rows]


def _members(
    solver: Solver, table: Index, axes: Sequence[Axis], pattern: Index
) -> tuple[Member, ...]:
    """One member per axis from the ids (U, L) of all units and the axis number of each column."""
    return tuple(
        Member(
            axes[which],
            table[:, pattern == which] - solver.ids.offset[axes[which]],
            solver.ids.blocks.get(axes[which], 1),
        )
        for which in np.unique(pattern)
    )


def _own(solver: Solver, labels: Index, members: tuple[Member, ...]) -> Index:
    """The component of each unit."""
    first = members[0]
    return labels[solver.ids.offset[first.axis] + first.index[:, 0]]


def _names(
    groups: Sequence[tuple[Member, ...]],
    weights: set[str],
    before: Mapping[str, frozenset[Axis]],
) -> dict[str, frozenset[Axis]]:
    """The first parameter of each group, numbered where groups share it, with the group's axes.

    A group that was there before keeps its name, by which it is known in plans and records: its
    axes are the same, or a removal added some, or made some too short to count. Names that are
    free again are not given to others, and follow behind those of the groups.
    """
    patterns = [frozenset(member.axis for member in members) for members in groups]
    known: dict[int, str] = {}
    free = dict(before)
    for same in (frozenset.__eq__, frozenset.issuperset, frozenset.intersection):
        for number, axes in enumerate(patterns):
            fitting = [] if number in known else [n for n, own in free.items() if same(axes, own)]
            if fitting:
                known[number] = max(fitting, key=lambda name: len(axes & before[name]))
                del free[known[number]]
    found: dict[str, frozenset[Axis]] = {}
    for number, members in enumerate(groups):
        name = known.get(number) or _new_name(members, weights, found.keys() | before.keys())
        found[name] = patterns[number]
    return found | {name: axes for name, axes in before.items() if name not in found}


def _new_name(members: tuple[Member, ...], weights: set[str], taken: AbstractSet[str]) -> str:
    first = next(member.axis.value for member in members if member.axis.value in weights)
    name, number = first, 1
    while name in taken:
        number += 1
        name = f"{first}#{number}"
    return name


_Ending = Mapping[Axis, Sequence[tuple[int, Consumer]]]  # per axis, numbered in graph order


def _by_axis(ending: Iterable[Consumer]) -> _Ending:
    found: dict[Axis, list[tuple[int, Consumer]]] = {}
    for number, consumer in enumerate(ending):
        found.setdefault(consumer.axis, []).append((number, consumer))
    return found


def _finish(
    name: str,
    members: tuple[Member, ...],
    ending: _Ending,
    used: _Ending,
    *,
    exact: bool,
) -> Group:
    within = _of(members, used)
    return Group(
        name=name,
        size=len(members[0].index),
        members=members,
        consumers=_of(members, ending),
        inner=within,
        exact=exact and not within,
    )


def _of(members: tuple[Member, ...], ending: _Ending) -> tuple[Consumer, ...]:
    """Those of the axes of `members`, in graph order."""
    found = sorted(entry for member in members for entry in ending.get(member.axis, ()))
    return tuple(consumer for _, consumer in found)


def _refusals(solver: Solver, labels: Index, stopped: Index, weights: set[str]) -> Iterator[Frozen]:
    """Every parameter axis that carries no unit at all, with the freeze that stops it."""
    shadowed = {Axis(axis.value, axis.position) for axis in solver.ids.blocks}
    for axis in solver.ids.offset:
        if axis.value in weights and axis.by < 0 and axis not in shadowed:
            first = stopped[labels[solver.ids.of(axis)]]
            if (first >= 0).all():
                why = solver.frozen[int(first[0])][1]
                yield Frozen(axis=axis, reason=why.reason, node=why.node, detail=why.detail)
