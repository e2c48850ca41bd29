"""Where units end: the inputs of nodes at which their axes are coupled to no axis of an output.

`consumers` finds those of data, `inner` the weights through which nodes use units within
themselves; `consumer_axes` lists where the units of groups end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnxprune.base import Axis, Consumer, Ends, Fact, Group, Inner
from onnxprune.ops.registry import View
from onnxprune.scopes import subgraphs

__all__ = ["Links", "consumer_axes", "consumers", "inner"]

Links = Mapping[str, Sequence[tuple[Axis, Axis]]]  # per node, the axes that it couples


def consumers(
    links: Links, collected: Iterable[tuple[View | None, Fact]], wanted: set[Axis]
) -> list[Consumer]:
    """Where axes of data end: inputs that no coupling of their node links to an output."""
    silent = {
        (view.key, fact.axis)
        for view, fact in collected
        if view is not None and isinstance(fact, Ends) and not fact.reads
    }
    split: dict[str, list[Axis]] = {}
    for axis in wanted:
        if axis.by >= 0:
            split.setdefault(axis.value, []).append(axis)
    result: list[Consumer] = []
    seen: set[str] = set()
    for view, _ in collected:
        if view is not None and view.key not in seen:
            seen.add(view.key)
            found = _ending(links, view, wanted, split)
            result.extend(c for c in found if (c.node, c.axis) not in silent)
    return result


def consumer_axes(groups: Iterable[Group]) -> list[Axis]:
    """The axes on which units of `groups` end; sorted, each once."""
    return sorted({consumer.axis for group in groups for consumer in group.consumers})


def inner(collected: Iterable[tuple[View | None, Fact]]) -> Iterator[Consumer]:
    """Weights through which nodes use units within themselves, with their slots."""
    for view, fact in collected:
        if view is not None and isinstance(fact, Inner):
            for slot in range(len(view.node.inputs)):
                value = view.input(slot)
                if value is not None and value.name == fact.axis.value:
                    yield Consumer(node=view.key, slot=slot, axis=fact.axis)


def _ending(
    links: Links, view: View, wanted: set[Axis], split: Mapping[str, Sequence[Axis]]
) -> Iterator[Consumer]:
    # A body goes on with what it is given.
    given = [value for body in subgraphs(view.node) for value in body.inputs]
    outputs = {value.name for value in (*view.node.outputs, *given)}
    reached = _reached(links.get(view.key, ()), outputs)
    for slot in range(len(view.node.inputs)):
        value = view.input(slot)
        if value is None or value.name not in view.shapes or view.is_constant(slot):
            continue
        plain = [view.axis(value, position) for position in range(len(view.shape(value)))]
        for axis in (*plain, *split.get(value.name or "", ())):
            if axis in wanted and axis not in reached:
                yield Consumer(node=view.key, slot=slot, axis=axis)


def _reached(links: Iterable[tuple[Axis, Axis]], outputs: set[str | None]) -> set[Axis]:
    """Axes that a node links to one of its outputs, directly or through atoms."""
    neighbours: dict[Axis, set[Axis]] = {}
    for left, right in links:
        neighbours.setdefault(left, set()).add(right)
        neighbours.setdefault(right, set()).add(left)
    found = {axis for axis in neighbours if axis.value in outputs}
    frontier = list(found)
    while frontier:
        for axis in neighbours[frontier.pop()] - found:
            found.add(axis)
            frontier.append(axis)
    return found
