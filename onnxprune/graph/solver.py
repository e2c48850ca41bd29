"""Resolving a graph's facts: which indices of all axes go or stay together, and which must stay.

All (axis, index) pairs are numbered; couplings are edges; their connected components are what goes
or stays together. Product axes (base.Choice) are resolved here, to a fixpoint, because which of
their atoms can carry units depends on the rest of the graph. `entered(said, shapes)` is the entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.base import Axis, Balanced, Choice, Coupling, Fact, Frozen, Index, Reason
from onnxprune.graph.couplings import Said
from onnxprune.graph.order import Edge
from onnxprune.ops.control import surroundings
from onnxprune.ops.registry import Sizes, arange

__all__ = ["Ids", "Solver", "entered", "is_virtual"]


def entered(said: Sequence[Said], shapes: Mapping[str, Sizes]) -> Solver:
    """A solver that holds all facts, nothing resolved yet; of `Balanced`, the couplings."""
    solver = Solver(_number(said, shapes))
    for view, fact in said:
        _enter(solver, view.key if view is not None else "", fact)
    return solver


def is_virtual(axis: Axis) -> bool:
    """Whether it is an atom, or a part of an axis, that no value has."""
    return "\0" in axis.value


class Ids:
    """Numbers all indices of all axes of static size > 1."""

    def __init__(self) -> None:
        self.offset: dict[Axis, int] = {}
        self.size: dict[Axis, int] = {}
        self.blocks: dict[Axis, int] = {}  # of the axes with `by`
        self.total = 0

    def add(self, axis: Axis, size: int | None) -> None:
        """Number the indices of an axis that is not numbered yet."""
        if size is not None and size > 1 and axis not in self.offset:
            self.offset[axis], self.size[axis] = self.total, size
            self.total += size

    def split(self, axis: Axis, blocks: int, size: int | None) -> None:
        """Add an axis with `by`, of `blocks` blocks of `size`."""
        if size is not None and axis not in self.offset:
            self.blocks[axis] = blocks
            self.add(axis, blocks * size)

    def of(self, axis: Axis) -> Index:
        """The numbers of the indices of an axis."""
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


class Solver:
    """The mutable state of one resolution: edges, freezes, open products."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.left: list[Index] = []
        self.right: list[Index] = []
        self.frozen: list[tuple[Index, Frozen]] = []
        self.open: list[_Product] = []
        self.edges: list[Edge] = []
        self.links: dict[str, list[tuple[Axis, Axis]]] = {}
        self.alternatives: list[tuple[str, int, tuple[int, ...]]] = []
        self.striped: set[str] = set()  # nodes at which the same members of all blocks go

    def couple(self, node: str, left: Axis, right: Axis, a: Index, b: Index) -> None:
        """Let index a[n] of `left` and b[n] of `right` go or stay together."""
        offset = self.ids.offset
        if left in offset and right in offset:
            self.left.append(a + offset[left])
            self.right.append(b + offset[right])
            self.edges.append(Edge(node, left, right, a, b))
            self.links.setdefault(node, []).append((self._part(left, a, right), right))
            return
        # One index coupled to an axis of size 1 must stay: that axis would run empty.
        for axis, index in ((left, a), (right, b)):
            if axis in offset:
                single = Frozen(axis=axis, reason=Reason.SINGLE, node=node)
                self.frozen.append((index + offset[axis], single))

    def ordered(self) -> list[Edge]:
        """All couplings, in the order of the nodes."""
        rank: dict[str, int] = {}
        for axis in self.ids.offset:
            rank.setdefault(axis.value, len(rank))
        return sorted(self.edges, key=lambda edge: rank.get(edge.node, -1))

    def _part(self, axis: Axis, index: Index, atom: Axis) -> Axis:
        """What stands in `links` for a part of an axis that is a product: others lead elsewhere."""
        if not is_virtual(atom) or len(index) == self.ids.size[axis]:
            return axis
        return Axis(f"{axis.value}\0{int(index[0])}", axis.position)

    def freeze(self, fact: Frozen) -> None:
        """Let all indices of an axis stay."""
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
        if chosen != 0:
            self.striped.add(product.node)
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


def _number(said: Sequence[Said], shapes: Mapping[str, Sizes]) -> Ids:
    """Number the axes in graph order, so that a group's first member is where it begins."""
    ids = Ids()
    done: set[str] = set()
    pairs = _pairs(said)
    for view, fact in said:
        if view is not None and view.key not in done:
            done.add(view.key)
            for name in (value.name or "" for value in surroundings(view.node)):
                for position, size in enumerate(shapes.get(name, ())):
                    ids.add(Axis(name, position), size)
                for axis, blocks in pairs.get(name, {}).items():
                    ids.split(axis, blocks, shapes[name][axis.position])
        for choice in (fact, *(fact.couplings if isinstance(fact, Balanced) else ())):
            if isinstance(choice, Choice):
                for number, size in enumerate(choice.sizes):
                    ids.add(choice.atom(number), size)
    return ids


def _pairs(said: Sequence[Said]) -> dict[str, dict[Axis, int]]:
    """Per value the axes with `by` and the number of their blocks."""
    pairs: dict[str, dict[Axis, int]] = {}
    for fact in (fact for _, fact in said if isinstance(fact, Balanced)):
        for axis, blocks in fact.blocks:
            if axis.by >= 0:
                pairs.setdefault(axis.value, {})[axis] = blocks
    return pairs


def _enter(solver: Solver, node: str, fact: Fact) -> None:
    if isinstance(fact, Coupling):
        solver.couple(node, fact.left, fact.right, fact.left_index, fact.right_index)
    elif isinstance(fact, Frozen):
        solver.freeze(fact)
    elif isinstance(fact, Choice):
        _enter_choice(solver, node, fact)
    elif isinstance(fact, Balanced):
        for part in fact.couplings:
            _enter(solver, node, part)
        for axis, blocks in fact.blocks:
            _shadow(solver, node, axis, blocks)


def _shadow(solver: Solver, node: str, axis: Axis, blocks: int) -> None:
    """The two axes of which `axis` holds the pairs carry no units of their own."""
    if axis.by < 0:
        return
    outer = Axis(axis.value, axis.by)
    plain = [Axis(axis.value, axis.position)]
    plain += [outer] if solver.ids.size.get(outer) == blocks else []
    for own in plain:
        solver.freeze(Frozen(axis=own, reason=Reason.MIXED, node=node, detail=f"see {axis}"))


def _enter_choice(solver: Solver, node: str, fact: Choice) -> None:
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
        else:  # an open size that is none of the products of atoms, for all that is known
            for number in real:
                open_size = Frozen(axis=fact.atom(number), reason=Reason.DYNAMIC, node=node)
                solver.freeze(open_size)
