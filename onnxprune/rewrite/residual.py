"""Shortcuts that need not lose the same channels as the blocks they pass.

An Add ties the channels of its operands, and with them those of all blocks of a stage. `decoupled`
puts a product with the identity matrix on every shortcut: what goes into it and what comes out are
units of their own then, so that the output of each block can be pruned by itself. A channel of the
sum stays as long as it is read, whichever operands still have it. `settled` writes what is left of
those products as index operators: the channels that both sides kept are gathered, zeros stand where
the shortcut has none.

This is how the code of Demon Pruning treats shortcuts (Dufort-Labbe et al. 2024, arXiv 2403.07688:
a 1x1 convolution of zeros and ones); the index operators are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Consumer
from onnxprune.emit import Emitter
from onnxprune.graph.groups import Analysis
from onnxprune.graph.shapes import dtypes
from onnxprune.model import constant, is_constant, list_initializers, node_key, opset

__all__ = ["RESIDUALS", "SHORTCUT", "decoupled", "faster", "settled"]

RESIDUALS = ("coupled", "decouple", "decouple-always")
"""What `--residual` takes: "decouple" keeps the faster of both forms."""

_SUFFIX = "/shortcut_identity"
SHORTCUT = rf"{_SUFFIX}(_\d+)?$"
"""A pattern of the names of the matrices, which nobody trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shortcut:
    """An operand of an addition: the node's key, the slot, the axis of its units, and its sizes."""

    node: str
    slot: int
    axis: int
    size: int
    rank: int


def decoupled(model: ir.Model, analysis: Analysis) -> tuple[ir.Model, frozenset[str]]:
    """A copy with a product with the identity on every shortcut, and the names of the matrices.

    Args:
        model: the graph; not changed.
        analysis: of this very graph.

    Returns:
        The copy, which computes the same; `model` itself and no names where there is no shortcut.
    """
    found = list(_shortcuts(model, analysis))
    if not found:
        return model, frozenset()
    types = dtypes(model)
    copy = model.clone()
    nodes = {node_key(node): node for node in copy.graph}
    names = []
    for shortcut in found:
        node = nodes[shortcut.node]
        value = node.inputs[shortcut.slot]
        assert value is not None
        dtype = types.get(value.name or "", ir.DataType.FLOAT).numpy()
        names.append(_insert(copy, node, value, shortcut, np.eye(shortcut.size, dtype=dtype)))
    list_initializers(copy)
    return copy, frozenset(names)


def _shortcuts(model: ir.Model, analysis: Analysis) -> Iterator[_Shortcut]:
    """Operands of additions that hold what another node reads too, one of each addition."""
    known = _Held(analysis)
    for node in model.graph:
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
            continue
        for slot, value in enumerate(node.inputs):
            axis = None if value is None else known.axis(value)
            if value is None or axis is None or not known.is_passed_on(value):
                continue
            sizes = analysis.shapes[value.name or ""]
            yield _Shortcut(
                node=node_key(node), slot=slot, axis=axis, size=sizes[axis] or 0, rank=len(sizes)
            )
            break


class _Held:
    """Which values hold units, on which axes and of which groups."""

    def __init__(self, analysis: Analysis) -> None:
        self.shapes = analysis.shapes
        self.ends = {consumer for group in analysis.groups for consumer in group.consumers}
        self.groups: dict[str, dict[int, set[int]]] = {}
        for number, group in enumerate(analysis.groups):
            for member in group.members:
                axes = self.groups.setdefault(member.axis.value, {})
                axes.setdefault(member.axis.position, set()).add(number)

    def axis(self, value: ir.Value) -> int | None:
        """The one axis that carries units, where a product can stand: channels or features."""
        axes = list(self.groups.get(value.name or "", ()))
        rank = len(self.shapes.get(value.name or "", ()))
        fits = len(axes) == 1 and (axes[0] == rank - 1 or (axes[0] == 1 and rank >= 3))
        return axes[0] if fits and not is_constant(value) else None

    def is_passed_on(self, value: ir.Value) -> bool:
        """Whether the units of `value` come from a value that has other readers as well."""
        waiting, seen = [value], set()
        while waiting:
            current = waiting.pop()
            if len(current.uses()) > 1:
                return True
            seen.add(current)
            waiting.extend(source for source in self._sources(current) if source not in seen)
        return False

    def _sources(self, value: ir.Value) -> Iterator[ir.Value]:
        """Values around its producer that hold some of its units and do not end there."""
        node, own = value.producer(), self._of(value)
        for slot, source in enumerate(() if node is None else node.inputs):
            if node is None or source is None or is_constant(source):
                continue
            axes = self.groups.get(source.name or "", {})
            places = {Consumer(node_key(node), slot, Axis(source.name or "", p)) for p in axes}
            if own & self._of(source) and not places & self.ends:
                yield source

    def _of(self, value: ir.Value) -> set[int]:
        return set().union(*self.groups.get(value.name or "", {}).values())


def _insert(
    model: ir.Model, node: ir.Node, value: ir.Value, shortcut: _Shortcut, matrix: Array
) -> str:
    """Multiply an operand with the identity; returns the name of the matrix."""
    by_channel = shortcut.axis != shortcut.rank - 1
    if by_channel:
        matrix = matrix.reshape(*matrix.shape, *[1] * (shortcut.rank - 2))
    name, number = f"{value.name}{_SUFFIX}", 1
    while name in model.graph.initializers:
        name, number = f"{value.name}{_SUFFIX}_{number}", number + 1
    eye = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.from_numpy(matrix.dtype)),
        shape=ir.Shape(matrix.shape),
        const_value=ir.Tensor(matrix, name=name),
    )
    model.graph.register_initializer(eye)
    made = ir.node("Conv" if by_channel else "MatMul", [value, eye])
    made.outputs[0].name = f"{name}/passed"
    model.graph.insert_before(node, made)
    node.replace_input_with(shortcut.slot, made.outputs[0])
    return name


def settled(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy with index operators in the place of what is left of the products.

    A product that has taken over something else (another unit's share) stays as it is.

    Args:
        model: as pruned; not changed.
        names: of the matrices, as `decoupled` returned them.
    """
    wanted = set(names) & set(model.graph.initializers)
    if not wanted:
        return model
    copy = model.clone()
    for name in sorted(wanted):
        matrix = copy.graph.initializers[name]
        for node in [use.node for use in matrix.uses()]:
            parameters = node.inputs[1:]
            _settle(copy, node, matrix)
            _drop_unused(copy, parameters)
    list_initializers(copy)
    return copy


def _drop_unused(model: ir.Model, values: Iterable[ir.Value | None]) -> None:
    graph = model.graph
    for value in values:
        if value is not None and value.is_initializer() and not value.uses():
            graph.initializers.pop(value.name or "")
            graph.inputs[:] = [given for given in graph.inputs if given is not value]


def _settle(model: ir.Model, node: ir.Node, matrix: ir.Value) -> None:
    """Take what the rows of zeros and ones take, by index."""
    array, data, old = constant(matrix), node.inputs[0], node.outputs[0]
    assert array is not None
    by_channel = node.op_type == "Conv"
    table = array.reshape(array.shape[:2]) if by_channel else array.T
    missing = ~table.any(axis=1)
    if not np.isin(table, (0, 1)).all() or (table.sum(axis=1) > 1).any() or data is None:
        return
    if missing.any() and not by_channel:
        return  # the rank is not known here
    e = Emitter(f"{matrix.name}/settled", opset=opset(model))
    taken = np.where(missing, table.shape[1], table.argmax(axis=1)).astype(np.int64)
    result = data
    if missing.any():
        result = _with_zero(e, data, array.ndim)
    if not np.array_equal(taken, np.arange(table.shape[1])):
        axis = 1 if by_channel else -1
        result = e.op("Gather", result, e.constant(taken), axis=axis)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        numbers = constant(bias)
        assert numbers is not None
        shape = (1, -1, *[1] * (array.ndim - 2))
        result = e.op("Add", result, e.constant(numbers.reshape(shape)))
    e.add_to(model.graph, before=node)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def faster(coupled: float, loose: float) -> tuple[bool, str]:
    """Whether the decoupled form is faster, and a sentence about it.

    Args:
        coupled: milliseconds per run of the coupled form.
        loose: of the other, measured side by side.
    """
    wins = loose < coupled
    verdict = "shortcuts are decoupled" if wins else "shortcuts stay coupled"
    return wins, f"{verdict}: {loose:.3g} ms decoupled against {coupled:.3g} ms coupled"


def _with_zero(e: Emitter, data: ir.Value, rank: int) -> ir.Value:
    """One more channel, of zeros, behind the others."""
    pads = [0] * (2 * rank)
    pads[rank + 1] = 1
    if e.opset < 11:
        return e.op("Pad", data, pads=pads)
    return e.op("Pad", data, e.constant(np.array(pads, np.int64)))
