"""Values on which an axis lies folded: a Reshape cut it in two, and another joins it again.

Between the two (a channel shuffle, whose Transpose trades the parts) an index is a pair: which
block, and which member of it. `unfolded` finds such stretches and lets the pairs be coupled one by
one, so that blocks need equally many members and not the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.base import Axis, Balanced, Choice, Coupling, Ends, Fact, Frozen
from onnxprune.graph.couplings import Said, striped
from onnxprune.ops.control import surroundings
from onnxprune.ops.registry import Sizes, View, arange

__all__ = ["unfolded"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Node:
    """A node with its facts and the names of the values around it."""

    view: View
    facts: Sequence[Fact]
    values: frozenset[str]


def unfolded(
    said: Sequence[Said], shapes: Mapping[str, Sizes], uneven: AbstractSet[str]
) -> list[Said] | None:
    """`said` with `Balanced` in the place of every Choice that cuts or joins a folded axis.

    Only where something is gained by it: where no whole block can go.

    Args:
        said: of `couplings.raw_facts`.
        shapes: sizes per value name.
        uneven: nodes whose product axes can lose no outermost atom.

    Returns:
        None where nothing is balanced.
    """
    nodes = _nodes(said)
    around: dict[str, list[_Node]] = {}
    for node in nodes.values():
        for name in node.values:
            around.setdefault(name, []).append(node)
    graph = _Graph(around=around, shapes=shapes, border=_border(said))
    exchanged: dict[int, Balanced] = {}
    extra: list[Said] = []
    for node in nodes.values():
        for fact in node.facts:
            start = _start(node, fact) if isinstance(fact, Choice) else None
            found = None if start is None else _stretch(fact, [start], graph)
            if found is not None and not _keys(found.ends.values()).isdisjoint(uneven):
                exchanged.update(found.ends)
                extra.extend(found.inside)
    torn: list[Balanced] = []
    for _, fact in said:
        if isinstance(fact, Balanced) and not _keys([fact]):
            found = _stretch(fact, _folds(fact), graph)
            if found is None:
                torn.append(fact)
            else:
                exchanged.update(found.ends)
                extra.extend(found.inside)
    if not exchanged and not any(
        isinstance(fact, Balanced) and fact not in torn and _gains(fact, uneven) for _, fact in said
    ):
        return None
    changed = [(view, exchanged.get(id(fact), fact)) for view, fact in said]
    return [*_without(changed, torn), *extra]


def _without(said: Sequence[Said], torn: Sequence[Balanced]) -> Iterator[Said]:
    """`said` with stripes in the place of those in `torn`."""
    for view, fact in said:
        if any(fact is other for other in torn):
            yield from striped([(view, fact)])
        else:
            yield view, fact


def _folds(fact: Balanced) -> list[_Fold]:
    """The folded axes that an operator itself speaks of."""
    return [
        _Fold(outer=Axis(axis.value, axis.by), inner=Axis(axis.value, axis.position))
        for axis, _ in fact.blocks
        if axis.by >= 0
    ]


def _gains(fact: Balanced, uneven: AbstractSet[str]) -> bool:
    """Whether no whole block can go, or less goes at a time with one member of every block."""
    choices = [part for part in fact.stripes if isinstance(part, Choice)]
    fewer = all(part.sizes[0] < max(part.sizes[1:]) for part in choices)
    return fewer or not _keys([fact]).isdisjoint(uneven)


def _keys(facts: Iterable[Balanced]) -> set[str]:
    """The nodes whose choices are stripes of `facts`."""
    return {part.node for fact in facts for part in fact.stripes if isinstance(part, Choice)}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Graph:
    """Nodes by the values around them, sizes, and the values that the graph gives or takes."""

    around: Mapping[str, Sequence[_Node]]
    shapes: Mapping[str, Sizes]
    border: frozenset[str]


def _border(said: Iterable[Said]) -> frozenset[str]:
    return frozenset(
        fact.axis.value for view, fact in said if view is None and isinstance(fact, Frozen)
    )


def _nodes(said: Iterable[Said]) -> dict[str, _Node]:
    collected: dict[str, tuple[View, list[Fact]]] = {}
    for view, fact in said:
        if view is not None:
            collected.setdefault(view.key, (view, []))[1].append(fact)
    result = {}
    for key, (view, facts) in collected.items():
        names = frozenset(value.name for value in surroundings(view.node) if value.name)
        result[key] = _Node(view=view, facts=facts, values=names)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fold:
    """A value on which an axis lies folded: `outer` is the block, `inner` the member."""

    outer: Axis
    inner: Axis

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Blocks and members."""
        return self.outer, self.inner

    @property
    def pair(self) -> Axis:
        """The folded axis itself."""
        return replace(self.inner, by=self.outer.position)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Stretch:
    """What replaces the choices at both ends (by identity), and the couplings between them."""

    ends: dict[int, Balanced]
    inside: list[Said]


def _start(node: _Node, choice: Choice) -> _Fold | None:
    """The folded axis of the output of a node that cuts an axis of its input in two."""
    made = {value.name for value in node.view.node.outputs}
    single = {atoms[0]: axis for axis, atoms in _real(choice) if len(atoms) == 1}
    for axis, atoms in _real(choice):
        if axis.value not in made and len(atoms) == 2 and set(atoms) <= single.keys():
            fold = _Fold(outer=single[atoms[0]], inner=single[atoms[1]])
            if fold.outer.value == fold.inner.value and fold.inner.value in made:
                return fold
    return None


def _real(choice: Choice) -> Iterator[tuple[Axis, tuple[int, ...]]]:
    for axis, atoms in choice.axes:
        yield axis, tuple(atom for atom in atoms if choice.sizes[atom] > 1)


def _stretch(cut: Fact, starts: Sequence[_Fold], graph: _Graph) -> _Stretch | None:
    """Follow folded axes until every reader has joined them again; None where one does not."""
    folds = {start.pair: start for start in starts}
    ends: dict[int, Balanced] = {}
    inside: list[Said] = []
    waiting = list(folds.values())
    while waiting:
        fold = waiting.pop()
        if fold.inner.value in graph.border:
            return None
        sizes = tuple(graph.shapes[axis.value][axis.position] or 0 for axis in fold.axes)
        for reader in graph.around[fold.inner.value]:
            if _is_silent(reader, fold):
                continue
            joined = _joined(reader, fold, sizes)
            ends.update(joined)
            reached = [] if joined else _passed(reader, fold, graph.shapes)
            if not (joined or reached) or any(_clashes(other, folds) for other in reached):
                return None
            for other in reached:
                inside.append((reader.view, _between(fold, other, sizes)))
                if other.pair not in folds:
                    folds[other.pair] = other
                    waiting.append(other)
    return _Stretch(ends=ends, inside=inside) if id(cut) in ends else None


def _is_silent(node: _Node, fold: _Fold) -> bool:
    """Whether a node asks for sizes alone."""
    said = [fact for fact in node.facts if set(fold.axes) & set(_mentioned(fact))]
    return bool(said) and all(isinstance(fact, Ends) and not fact.reads for fact in said)


def _clashes(fold: _Fold, folds: Mapping[Axis, _Fold]) -> bool:
    """Whether its value is folded in another way already."""
    return any(other.inner == fold.inner and other.outer != fold.outer for other in folds.values())


def _between(fold: _Fold, other: _Fold, sizes: tuple[int, ...]) -> Balanced:
    """The pairs of one value are those of the other."""
    every = arange(sizes[0] * sizes[1])
    same = Coupling(left=fold.pair, right=other.pair, left_index=every, right_index=every)
    return Balanced(blocks=((other.pair, sizes[0]),), couplings=(same,), stripes=())


def _joined(node: _Node, fold: _Fold, sizes: tuple[int, ...]) -> dict[int, Balanced]:
    """What replaces the choice of a node that joins the two axes of `fold` to one, if it does."""
    for fact in node.facts:
        if isinstance(fact, Balanced) and any(axis == fold.pair for axis, _ in fact.blocks):
            return {id(fact): fact}
        if not isinstance(fact, Choice):
            continue
        real = dict(_real(fact))
        outer, inner = real.get(fold.outer, ()), real.get(fold.inner, ())
        if not len(outer) == len(inner) == 1:
            continue
        order = (*outer, *inner)
        joins = [axis for axis, parts in real.items() if set(order) <= set(parts)]
        if len(joins) == 1 and len(real[joins[0]]) == 2:
            contiguous = real[joins[0]] == order
            rest = _rest(fact, (joins[0], *fold.axes), order)
            return {id(fact): _end(fact, joins[0], fold, sizes, rest, contiguous=contiguous)}
    return {}


def _rest(choice: Choice, gone: Sequence[Axis], atoms: Sequence[int]) -> tuple[Choice, ...]:
    """A choice without the axes `gone`; atoms of theirs, which other axes may share, stay whole."""
    starts = choice.starts or (0,) * len(choice.axes)
    pairs = zip(choice.axes, starts, strict=True)
    left = [(entry, start) for entry, start in pairs if entry[0] not in gone]
    if not left:
        return ()
    axes, starts = zip(*left, strict=True)
    whole = choice.whole | frozenset(atoms)
    return (replace(choice, axes=axes, starts=starts, whole=whole),)


def _end(
    choice: Choice,
    axis: Axis,
    fold: _Fold,
    sizes: tuple[int, ...],
    rest: tuple[Choice, ...],
    *,
    contiguous: bool,
) -> Balanced:
    """The joined axis, coupled pair by pair; the rest of the choice remains."""
    outer, inner = sizes
    every = arange(outer * inner)
    pairs = every if contiguous else (every % outer) * inner + every // outer
    between = Coupling(left=axis, right=fold.pair, left_index=every, right_index=pairs)
    blocks = ((axis, outer),) if contiguous else ()
    return Balanced(
        blocks=(*blocks, (fold.pair, outer)), couplings=(between, *rest), stripes=(choice,)
    )


def _passed(node: _Node, fold: _Fold, shapes: Mapping[str, Sizes]) -> list[_Fold]:
    """The folded axes of other values around a node that leaves the pairs as they are.

    Nothing when a value shares the members but not the blocks. Pairs of two values that are
    contracted block by block (queries and keys) end there, and are the same.
    """
    links: dict[Axis, set[Axis]] = {}
    for fact in node.facts:
        if isinstance(fact, Coupling) and _is_identity(fact, shapes):
            links.setdefault(fact.left, set()).add(fact.right)
            links.setdefault(fact.right, set()).add(fact.left)
        elif fold.inner in _mentioned(fact) or fold.outer in _mentioned(fact):
            return []
    outer, inner = _closure(links, fold.outer), _closure(links, fold.inner)
    blocks = {axis.value: axis for axis in outer}
    if not {axis.value for axis in inner} <= blocks.keys():
        return []
    return [_Fold(outer=blocks[axis.value], inner=axis) for axis in sorted(inner - {fold.inner})]


def _mentioned(fact: Fact) -> tuple[Axis, ...]:
    if isinstance(fact, Coupling):
        return (fact.left, fact.right)
    if isinstance(fact, Choice):
        return tuple(axis for axis, _ in fact.axes)
    if isinstance(fact, Balanced):
        return tuple(axis for stripe in fact.stripes for axis in _mentioned(stripe))
    return (fact.axis,)


def _is_identity(coupling: Coupling, shapes: Mapping[str, Sizes]) -> bool:
    """Whether both axes are the same, index by index, from end to end."""
    sizes = {shapes[axis.value][axis.position] for axis in (coupling.left, coupling.right)}
    same = np.array_equal(coupling.left_index, coupling.right_index)
    return same and sizes == {len(coupling.left_index)}


def _closure(links: Mapping[Axis, set[Axis]], axis: Axis) -> set[Axis]:
    found, frontier = {axis}, [axis]
    while frontier:
        more = links.get(frontier.pop(), set()) - found
        found |= more
        frontier.extend(more)
    return found
