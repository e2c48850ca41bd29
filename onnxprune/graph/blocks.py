"""Which units lie in blocks that must keep equal counts: `balances`, from a solved graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnxprune.base import Axis, Balance, Balanced, Fact, Group, Index
from onnxprune.graph.couplings import Said
from onnxprune.graph.order import Edge
from onnxprune.graph.solver import Solver

__all__ = ["balances", "mixed"]


def mixed(solver: Solver) -> dict[Axis, Axis]:
    """Per axis that a shuffle makes, the pairs that it interleaves there."""
    found = {}
    for edge in solver.edges:
        if edge.right.by >= 0 and edge.left.by < 0 and not np.array_equal(edge.a, edge.b):
            found[edge.left] = edge.right
    return found


def balances(
    said: Iterable[Said], solver: Solver, groups: Sequence[Group]
) -> tuple[Balance, ...] | None:
    """Every set of blocks that must stay equal; None where units lie in several blocks of a set.

    Where an axis whose blocks must be equal stands in the order that a shuffle gave it, they stay
    in one piece only if equally many go of every part that a block of the shuffle has in a block
    of the axis; the parts are balanced then.
    """
    owner = _owners(solver, groups)
    source = _sources(solver)
    found: dict[tuple[tuple[str, bytes], ...], Balance] = {}
    for axis, count in _sites(fact for _, fact in said):
        if axis not in solver.ids.offset:
            continue
        ids = solver.ids.of(axis)
        block = _refined(np.repeat(np.arange(count), len(ids) // count), source.get(axis))
        if not _is_even(owner[ids], block):
            return None
        balance = _balance(owner[ids], block, groups)
        if balance.block:
            key = tuple((name, own.tobytes()) for name, own in balance.block.items())
            found.setdefault(key, balance)
    return tuple(found.values())


def _sites(said: Iterable[Fact]) -> Iterator[tuple[Axis, int]]:
    for fact in said:
        if isinstance(fact, Balanced):
            yield from fact.blocks


def _owners(solver: Solver, groups: Sequence[Group]) -> Index:
    """The number of the unit that owns each index, counted over all groups; -1 for none."""
    owner = np.full(solver.ids.total, -1, np.int64)
    first = 0
    for group in groups:
        for member in group.members:
            units = np.arange(group.size)[:, None] + first
            owner[solver.ids.offset[member.axis] + member.index] = units
        first += group.size
    return owner


def _sources(solver: Solver) -> dict[Axis, Index]:
    """Per axis in an order that shuffles gave: the shuffle and block each index comes from."""
    source: dict[Axis, Index] = {}
    exits = mixed(solver)
    for number, (axis, pairs) in enumerate(exits.items()):
        blocks = solver.ids.blocks[pairs]
        source[axis] = number * 10_000 + np.arange(solver.ids.size[axis]) % blocks
    changed = True
    while changed:
        changed = False
        for edge in solver.edges:
            if exits.get(edge.left) != edge.right:
                for back in (False, True):
                    changed |= _flow(edge, source, solver.ids.size, exits, back=back)
    return source


def _flow(
    edge: Edge,
    source: dict[Axis, Index],
    sizes: Mapping[Axis, int],
    exits: Mapping[Axis, Axis],
    *,
    back: bool,
) -> bool:
    _, left, right, a, b = edge
    if back:
        left, right, a, b = right, left, b, a
    if left not in source or right in exits:
        return False
    known = source.get(right)
    known = np.full(sizes[right], -1, np.int64) if known is None else known
    given = source[left][a]
    new = (given >= 0) & (known[b] < 0)
    if not new.any():
        return False
    known = known.copy()
    known[b[new]] = given[new]
    source[right] = known
    return True


def _refined(block: Index, source: Index | None) -> Index:
    """`block`, divided further where parts of one shuffle lie in several blocks."""
    if source is None:
        return block
    shuffle = np.where(source >= 0, source // 10_000, -1)
    for number in np.unique(shuffle[shuffle >= 0]):
        inside = shuffle == number
        if len(np.unique(block[inside])) > 1:
            pairs = np.stack([block, np.where(inside, source, -1)])
            _, block = np.unique(pairs, axis=1, return_inverse=True)
            block = block.reshape(-1).astype(np.int64)
    return block


def _is_even(owner: Index, block: Index) -> bool:
    """Whether every unit lies in one block, all units with equally many indices."""
    mine = owner >= 0
    if not mine.any():
        return True
    pairs, counts = np.unique(np.stack([owner[mine], block[mine]]), axis=1, return_counts=True)
    return len(np.unique(pairs[0])) == pairs.shape[1] and len(np.unique(counts)) == 1


def _balance(owner: Index, block: Index, groups: Sequence[Group]) -> Balance:
    total = sum(group.size for group in groups)
    of_unit = np.full(total, -1, np.int64)
    of_unit[owner[owner >= 0]] = block[owner >= 0]
    units = int(np.count_nonzero(of_unit >= 0))
    each = int(np.count_nonzero(owner >= 0)) // units if units else 1  # indices of one unit
    found: dict[str, Index] = {}
    first = 0
    for group in groups:
        own = of_unit[first : first + group.size]
        first += group.size
        if (own >= 0).any():
            found[group.name] = own
    return Balance(sizes=np.bincount(block) // each, block=found)
