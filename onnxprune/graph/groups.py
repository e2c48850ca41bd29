"""Units and groups: the connected components of a graph's couplings.

`analyze(model, shapes)` is the one entry. All (axis, index) pairs are numbered; couplings are
edges; components without a frozen index that hold a parameter are units; units that occupy the
same axes are a group. Product axes (base.Choice) are resolved here, to a fixpoint, because which of
their atoms can carry units depends on the rest of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.base import (
    Array,
    Axis,
    Choice,
    Consumer,
    Coupling,
    Fact,
    Frozen,
    Group,
    Index,
    Inexact,
    Member,
    Reason,
)
from onnxprune.graph.constants import fold
from onnxprune.graph.couplings import facts
from onnxprune.graph.ends import consumers, inner
from onnxprune.graph.shapes import settle
from onnxprune.model import constants
from onnxprune.ops.control import surroundings
from onnxprune.ops.registry import Sizes, View, arange

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
    """

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    shapes: Mapping[str, Sizes]
    known: Mapping[str, Array]
    alternatives: tuple[tuple[str, int, tuple[int, ...]], ...] = ()

    def group(self, name: str) -> Group:
        """The group called `name`; KeyError when there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


class _Ids:
    """Numbers all indices of all axes of static size > 1."""

    def __init__(self) -> None:
        self.offset: dict[Axis, int] = {}
        self.size: dict[Axis, int] = {}
        self.total = 0

    def add(self, axis: Axis, size: int | None) -> None:
        if size is not None and size > 1 and axis not in self.offset:
            self.offset[axis], self.size[axis] = self.total, size
            self.total += size

    def of(self, axis: Axis) -> Index:
        return arange(self.size.get(axis, 0)) + self.offset.get(axis, 0)


@dataclass(slots=True)
class _Product:
    """An axis, or a window of it, that is a product of atoms (of size > 1), not yet resolved."""

    node: str
    axis: Axis
    atoms: tuple[Axis, ...]
    sizes: tuple[int, ...]
    start: int = 0

    @property
    def positions(self) -> Index:
        """The indices of the axis that the product covers."""
        return arange(int(np.prod(self.sizes, dtype=np.int64))) + self.start

    def index_of(self, atom: int) -> Index:
        """For every position the index of the atom it belongs to."""
        inner = int(np.prod(self.sizes[atom + 1 :], dtype=np.int64))
        return (self.positions - self.start) // inner % self.sizes[atom]


class _Solver:
    """The mutable state of one resolution: edges, freezes, open products."""

    def __init__(self, ids: _Ids) -> None:
        self.ids = ids
        self.left: list[Index] = []
        self.right: list[Index] = []
        self.frozen: list[tuple[Index, Frozen]] = []
        self.open: list[_Product] = []
        self.links: dict[str, list[tuple[Axis, Axis]]] = {}
        self.alternatives: list[tuple[str, int, tuple[int, ...]]] = []

    def couple(self, node: str, left: Axis, right: Axis, a: Index, b: Index) -> None:
        offset = self.ids.offset
        if left in offset and right in offset:
            self.left.append(a + offset[left])
            self.right.append(b + offset[right])
            self.links.setdefault(node, []).append((self._part(left, a, right), right))
            return
        # One index coupled to an axis of size 1 must stay: that axis would run empty.
        for axis, index in ((left, a), (right, b)):
            if axis in offset:
                single = Frozen(axis=axis, reason=Reason.SINGLE, node=node)
                self.frozen.append((index + offset[axis], single))

    def _part(self, axis: Axis, index: Index, atom: Axis) -> Axis:
        """What stands in `links` for a part of an axis that is a product: others lead elsewhere."""
        if not _is_virtual(atom) or len(index) == self.ids.size[axis]:
            return axis
        return Axis(f"{axis.value}\0{int(index[0])}", axis.position)

    def freeze(self, fact: Frozen) -> None:
        if fact.axis in self.ids.offset:
            self.frozen.append((self.ids.of(fact.axis), fact))

    def labels(self) -> Index:
        """Component of every id."""
        left = np.concatenate([*self.left, np.zeros(0, np.int64)])
        right = np.concatenate([*self.right, np.zeros(0, np.int64)])
        edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(self.ids.total,) * 2)
        _, labels = connected_components(edges, directed=False)
        return np.asarray(labels, np.int64)

    def stopped(self, labels: Index) -> Index:
        """Per component the number of the first freeze that stops it, or -1."""
        reason = np.full(int(np.max(labels, initial=-1)) + 1, -1, np.int64)
        for number in range(len(self.frozen) - 1, -1, -1):
            reason[labels[self.frozen[number][0]]] = number
        return reason

    def solve(self) -> tuple[Index, Index]:
        """Resolve all products; returns (component per id, first freeze per component)."""
        while True:
            labels = self.labels()
            stopped = self.stopped(labels)
            if not self.open:
                return labels, stopped
            before = len(self.open)
            self.open = [p for p in self.open if not self._settle(p, labels, stopped)]
            if len(self.open) == before:
                self._choose(labels, stopped)

    def _alive(self, product: _Product, labels: Index, stopped: Index) -> list[int]:
        """Atoms that could still carry units."""
        if (stopped[labels[self._covered(product)]] >= 0).all():
            return []
        alive = []
        for number, atom in enumerate(product.atoms):
            own = labels[self.ids.of(atom)]
            if not (stopped[own] >= 0).all() and (own != own[0]).any():
                alive.append(number)
        return alive

    def _covered(self, product: _Product) -> Index:
        return product.positions + self.ids.offset[product.axis]

    def _settle(self, product: _Product, labels: Index, stopped: Index) -> bool:
        """Resolve `product` if at most one atom is alive."""
        alive = self._alive(product, labels, stopped)
        if len(alive) > 1:
            return False
        self._resolve(product, alive[0] if alive else None)
        return True

    def _resolve(self, product: _Product, chosen: int | None) -> None:
        for number, atom in enumerate(product.atoms):
            if number == chosen:
                index = product.index_of(number)
                self.couple(product.node, product.axis, atom, product.positions, index)
            else:
                self.freeze(_mixed(atom, product))
        if chosen is None:
            self.frozen.append((self._covered(product), _mixed(product.axis, product)))

    def _choose(self, labels: Index, stopped: Index) -> None:
        """Policy: the outermost living atom, for all open products of one form at once."""
        form = self.open[0].sizes
        rest: list[_Product] = []
        for product in self.open:
            if product.sizes != form:
                rest.append(product)
                continue
            alive = self._alive(product, labels, stopped)
            rejected = tuple(product.sizes[number] for number in alive[1:])
            self.alternatives.append((product.node, product.sizes[alive[0]], rejected))
            self._resolve(product, alive[0])
        self.open = rest


def _mixed(axis: Axis, product: _Product) -> Frozen:
    return Frozen(
        axis=axis,
        reason=Reason.MIXED,
        node=product.node,
        detail=f"{product.axis} is a product of {' x '.join(map(str, product.sizes))}",
    )


def analyze(model: ir.Model, shapes: Mapping[str, Sizes] | None = None) -> Analysis:
    """Find the groups of `model`.

    Args:
        model: the user's graph; not changed.
        shapes: static sizes per value name; inferred when not given.
    """
    shapes, known = settle(model) if shapes is None else (shapes, fold(model, shapes))
    collected = list(facts(model, shapes, known))
    ids = _number(collected, shapes)
    solver = _Solver(ids)
    for view, fact in collected:
        _enter(solver, view, fact)
    labels, stopped = solver.solve()
    weights = {name for name, value in constants(model).items() if value.dtype in _PARAMETER_TYPES}
    inexact = [fact.axis for _, fact in collected if isinstance(fact, Inexact)]
    mixing = np.unique(np.concatenate([labels[ids.of(axis)] for axis in inexact] or [arange(0)]))
    groups = _groups(solver, labels, stopped, weights)
    ending = consumers(solver.links, collected, {m.axis for members in groups for m in members})
    within = list(inner(collected))
    names = _names(groups, weights)
    return Analysis(
        groups=tuple(
            _finish(
                name,
                members,
                ending,
                within,
                exact=not np.isin(_own(solver, labels, members), mixing).any(),
            )
            for name, members in zip(names, groups, strict=True)
        ),
        frozen=tuple(_refusals(solver, labels, stopped, weights)),
        shapes=shapes,
        known=known,
        alternatives=tuple(solver.alternatives),
    )


_PARAMETER_TYPES = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
}


def _number(collected: Sequence[tuple[View | None, Fact]], shapes: Mapping[str, Sizes]) -> _Ids:
    """Number the axes in graph order, so that a group's first member is where it begins."""
    ids = _Ids()
    done: set[str] = set()
    for view, fact in collected:
        if view is not None and view.key not in done:
            done.add(view.key)
            for value in surroundings(view.node):
                if value.name and value.name in shapes:
                    for position, size in enumerate(shapes[value.name]):
                        ids.add(Axis(value.name, position), size)
        if isinstance(fact, Choice):
            for number, size in enumerate(fact.sizes):
                ids.add(fact.atom(number), size)
    return ids


def _enter(solver: _Solver, view: View | None, fact: Fact) -> None:
    node = view.key if view is not None else ""
    if isinstance(fact, Coupling):
        solver.couple(node, fact.left, fact.right, fact.left_index, fact.right_index)
    elif isinstance(fact, Frozen):
        solver.freeze(fact)
    elif isinstance(fact, Choice):
        _enter_choice(solver, node, fact)


def _enter_choice(solver: _Solver, node: str, fact: Choice) -> None:
    for number in sorted(fact.whole):
        whole = Frozen(axis=fact.atom(number), reason=Reason.POSITIONS, node=node)
        solver.freeze(whole)
    starts = fact.starts or (0,) * len(fact.axes)
    for (axis, numbers), start in zip(fact.axes, starts, strict=True):
        real = tuple(number for number in numbers if fact.sizes[number] > 1)
        if len(real) == 1:
            index = arange(fact.sizes[real[0]])
            solver.couple(node, axis, fact.atom(real[0]), index + start, index)
        elif not real and axis in solver.ids.offset:
            single = Frozen(axis=axis, reason=Reason.SINGLE, node=node)
            solver.frozen.append((arange(1) + start + solver.ids.offset[axis], single))
        elif axis in solver.ids.offset:
            atoms = tuple(fact.atom(number) for number in real)
            sizes = tuple(fact.sizes[number] for number in real)
            solver.open.append(_Product(node, axis, atoms, sizes, start))


def _groups(
    solver: _Solver, labels: Index, stopped: Index, weights: set[str]
) -> list[tuple[Member, ...]]:
    """Components without a freeze that hold a parameter, collected by the axes they occupy."""
    axes = list(solver.ids.offset)
    number = np.repeat(arange(len(axes)), [solver.ids.size[axis] for axis in axes])
    real = np.array([not _is_virtual(axis) for axis in axes], np.bool_)
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


def _is_virtual(axis: Axis) -> bool:
    return "\0" in axis.value


def _members(
    solver: _Solver, table: Index, axes: Sequence[Axis], pattern: Index
) -> tuple[Member, ...]:
    """One member per axis from the ids (U, L) of all units and the axis number of each column."""
    return tuple(
        Member(axes[which], table[:, pattern == which] - solver.ids.offset[axes[which]])
        for which in np.unique(pattern)
    )


def _own(solver: _Solver, labels: Index, members: tuple[Member, ...]) -> Index:
    """The component of each unit."""
    first = members[0]
    return labels[solver.ids.offset[first.axis] + first.index[:, 0]]


def _names(groups: Sequence[tuple[Member, ...]], weights: set[str]) -> Iterator[str]:
    """The first parameter of each group, numbered where groups share it."""
    used: dict[str, int] = {}
    for members in groups:
        name = next(member.axis.value for member in members if member.axis.value in weights)
        used[name] = used.get(name, 0) + 1
        yield name if used[name] == 1 else f"{name}#{used[name]}"


def _finish(
    name: str,
    members: tuple[Member, ...],
    ending: Sequence[Consumer],
    used: Sequence[Consumer],
    *,
    exact: bool,
) -> Group:
    axes = {member.axis for member in members}
    within = tuple(consumer for consumer in used if consumer.axis in axes)
    return Group(
        name=name,
        size=len(members[0].index),
        members=members,
        consumers=tuple(consumer for consumer in ending if consumer.axis in axes),
        inner=within,
        exact=exact and not within,
    )


def _refusals(
    solver: _Solver, labels: Index, stopped: Index, weights: set[str]
) -> Iterator[Frozen]:
    """Every parameter axis that carries no unit at all, with the freeze that stops it."""
    for axis in solver.ids.offset:
        if axis.value in weights:
            first = stopped[labels[solver.ids.of(axis)]]
            if (first >= 0).all():
                why = solver.frozen[int(first[0])][1]
                yield Frozen(axis=axis, reason=why.reason, node=why.node, detail=why.detail)
