"""Which parameters hold the units of a group: what makes them, and what reads them.

`weights(model, analysis)` looks at what enters the operators' slots, so that a weight counts as it
is used: dequantized, transposed, normalized, where the file computes it from other constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Choice, Coupling, Fact
from onnxprune.graph.constants import fixed_values
from onnxprune.graph.couplings import facts
from onnxprune.graph.groups import Analysis
from onnxprune.model import constant, constants, evaluate, tensor_of
from onnxprune.ops.registry import DEQUANTIZES, PARAMETERS, Role, View
from onnxprune.scopes import nodes

__all__ = ["Weight", "weights"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Weight:
    """A parameter at the slot of an operator, seen from one of its axes.

    Attributes:
        read: gives its numbers; where they lie in a file, they are in memory as long as the array.
        op_type, slot: the operator that takes it, and where.
        role: of the slot (`ops.registry.Role`); AFFINE where the operator declares none.
        position: the axis of the array on which the units lie. Of an axis with `by` the array is
            folded, so that its first axis holds the blocks one behind another.
        incoming: whether indices of the axis are made here (a filter) or read here (the column of
            a weight that meets the unit in the next layer).
    """

    read: Callable[[], Array]
    op_type: str
    slot: int
    role: str
    position: int
    incoming: bool

    @property
    def array(self) -> Array:
        """Its numbers."""
        return self.read()


def weights(model: ir.Model, analysis: Analysis) -> dict[Axis, Weight]:
    """The parameters of all groups, by the axis on which units lie; of several readers the maker.

    Args:
        model: not changed.
        analysis: of this very graph.
    """
    blocks = {m.axis: m.blocks for group in analysis.groups for m in group.members}
    by_value: dict[str, list[Axis]] = {}
    for axis in blocks:
        by_value.setdefault(axis.value, []).append(axis)
    fixed = fixed_values(model)
    found: dict[Axis, tuple[View, int, bool]] = {}
    for view, node_facts in _by_node(model, analysis):
        if all(value.name in fixed for value in view.node.outputs):
            continue
        made = _made(node_facts, {value.name or "" for value in view.node.outputs})
        for slot in range(len(view.node.inputs)):
            value = view.input(slot)
            name = "" if value is None else value.name or ""
            for axis in by_value.get(name, ()) if name in fixed else ():
                incoming = replace(axis, by=-1) in made
                if axis not in found or incoming:
                    found[axis] = (view, slot, incoming)
    arrays = _arrays(model, fixed, {axis.value for axis in found})
    result: dict[Axis, Weight] = {}
    for axis, (view, slot, incoming) in found.items():
        real = _dequantized(view, slot)
        read = arrays.get(axis.value) if real is None else real
        if read is None:
            continue
        result[axis] = Weight(
            read=read if axis.by < 0 else partial(_folded, read, axis, blocks[axis]),
            op_type=view.node.op_type,
            slot=slot,
            role=_role(view, slot) if real is None else Role.WEIGHT,
            position=axis.position if axis.by < 0 else 0,
            incoming=incoming,
        )
    return result


def _folded(read: Callable[[], Array], axis: Axis, blocks: int) -> Array:
    """(blocks * size, rest): what stands at index i of block b of `axis`, at b * size + i."""
    front = np.moveaxis(read(), (axis.by, axis.position), (0, 1))
    size = front.shape[1]
    parts = front.reshape(blocks, -1, size, *front.shape[2:])
    return np.moveaxis(parts, 2, 1).reshape(blocks * size, -1)


def _dequantized(view: View, slot: int) -> Callable[[], Array] | None:
    """What gives the real numbers behind a constant of integers; None where that is not known."""
    rule = DEQUANTIZES.find(view.node, view.opset)
    return None if rule is None else rule(view, slot)


def _by_node(model: ir.Model, analysis: Analysis) -> Iterator[tuple[View, Sequence[Fact]]]:
    collected: list[Fact] = []
    current: View | None = None
    for view, fact in facts(model, analysis.shapes, analysis.known):
        if view is not current:
            if current is not None:
                yield current, collected
            current, collected = view, []
        collected.append(fact)
    if current is not None:
        yield current, collected


def _made(node_facts: Sequence[Fact], outputs: set[str]) -> set[Axis]:
    """Axes that a node links to one of its outputs.

    A product axis that was reached through one atom passes on to axes with the same atom only: the
    group and the member of a group of a convolution are different things.
    """
    direct: dict[Axis, set[Axis]] = {}
    atoms: dict[Axis, set[tuple[int, int]]] = {}
    holders: dict[tuple[int, int], set[Axis]] = {}
    for number, fact in enumerate(node_facts):
        if isinstance(fact, Coupling):
            direct.setdefault(fact.left, set()).add(fact.right)
            direct.setdefault(fact.right, set()).add(fact.left)
        elif isinstance(fact, Choice):
            for axis, parts in fact.axes:
                for atom in parts:
                    if fact.sizes[atom] > 1:
                        atoms.setdefault(axis, set()).add((number, atom))
                        holders.setdefault((number, atom), set()).add(axis)
    seen: set[tuple[Axis, tuple[int, int] | None]] = {
        (axis, None) for axis in {*direct, *atoms} if axis.value in outputs
    }
    frontier = list(seen)
    while frontier:
        axis, via = frontier.pop()
        reached = {(other, None) for other in direct.get(axis, ())}
        through = atoms.get(axis, set()) if via is None else {via}
        steps = reached | {(other, atom) for atom in through for other in holders[atom]}
        frontier.extend(steps - seen)
        seen |= steps
    return {axis for axis, _ in seen}


def _counts(dtype: np.dtype[Any]) -> bool:
    """Floating point, or int8 (whose zero point is 0 for weights); other integers are positions."""
    return dtype.kind not in "biu" or dtype == np.int8


def _role(view: View, slot: int) -> str:
    declared = PARAMETERS.find(view.node, view.opset)
    return (declared() if declared is not None else {}).get(slot, Role.AFFINE)


def _arrays(model: ir.Model, fixed: set[str], wanted: set[str]) -> dict[str, Callable[[], Array]]:
    """What gives the numbers behind constants, and behind what is computed from constants."""
    known = constants(model)
    arrays: dict[str, Callable[[], Array]] = {
        name: partial(_array, known[name])
        for name in wanted
        if name in known and _counts(tensor_of(known[name]).dtype.numpy())
    }
    chain = _chain(model, fixed, wanted - set(known))
    if chain:
        feeds = {
            value.name: _array(known[value.name])
            for node in chain
            for value in node.inputs
            if value is not None and value.name in known
        }
        made = evaluate(model, chain, feeds, sorted(wanted - set(known)))
        for name, array in made.items():
            if _counts(array.dtype):
                arrays[name] = partial(np.asarray, array)
    return arrays


def _chain(model: ir.Model, fixed: set[str], wanted: set[str]) -> list[ir.Node]:
    """The nodes that compute `wanted` from constants, in order."""
    needed, chain = set(wanted), []
    for node in reversed(list(nodes(model))):
        names = {value.name for value in node.outputs}
        if names & needed and names <= fixed and node.op_type != "Constant":
            chain.append(node)
            needed |= {value.name for value in node.inputs if value is not None and value.name}
    return chain[::-1]


def _array(value: ir.Value) -> Array:
    array = constant(value)
    assert array is not None
    return array
