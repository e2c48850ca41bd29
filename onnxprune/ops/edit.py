"""Changing a node after a removal: what `@resizes` and `@shifts` rules work with.

The only mutation in the operator files happens through an `Edit`, on the clone that a rewrite owns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Floats, Index
from onnxprune.model import constant, is_constant, set_constant
from onnxprune.ops.registry import Facet, Sizes, View, arange
from onnxprune.scopes import nodes

__all__ = ["SHIFTS", "Absorber", "Edit", "names_made", "positions_after", "shifts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorber:
    """Where a consumer keeps the weights of its input units.

    Attributes:
        slot: input slot of the constant that is contracted with the data.
        in_axis: axis of the weight that meets the units; index i there is index i of the input.
        out_axis: axis of the weight that becomes the consumer's output axis.
        padded: whether zeros enter beside the data, so that a constant unit is not constant there.
    """

    slot: int
    in_axis: int
    out_axis: int
    padded: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Edit:
    """One node of the clone that is being rewritten.

    Attributes:
        view: the node with the shapes *before* the removal.
        kept: kept indices per resized axis, in the old numbering, ascending; grows with the values
            that edits add.
        shapes: sizes before the removal, per value name; grows likewise.
        graph: the main graph, which holds new constants wherever the node stands.
        taken: names of the values that nodes make (`names_made`), shared by the edits of one
            rewrite, which add theirs.
    """

    view: View
    kept: dict[Axis, Index]
    shapes: dict[str, Sizes]
    graph: ir.Graph
    taken: set[str | None]

    @property
    def around(self) -> ir.Graph:
        """The graph in which the node stands: the main one or a body."""
        graph = self.view.node.graph
        return graph if isinstance(graph, ir.Graph) else self.graph

    def kept_at(self, value: ir.Value | None, position: int) -> Index | None:
        """Kept old indices of an axis; None when it keeps its size."""
        return None if value is None else self.kept.get(self.view.axis(value, position))

    def size_after(self, value: ir.Value, position: int) -> int | None:
        """Size of an axis after the removal; None when dynamic."""
        kept = self.kept_at(value, position)
        return self.view.size(self.view.axis(value, position)) if kept is None else len(kept)

    def write(
        self, slot: int, array: Array, *, role: str, along: Mapping[int, Axis] | None = None
    ) -> ir.Value:
        """Make `array` the constant at input `slot`, leaving other readers of the old one alone.

        Args:
            slot: input of the node; added when the node has fewer.
            array: with the sizes *before* the removal where `along` or the old constant says so.
            role: a new constant is named after the node and this.
            along: which axes of a new constant will be resized like which axis.
        """
        node = self.view.node
        old = self.view.input(slot)
        if old is not None and len(old.uses()) == 1 and self._writable(old):
            set_constant(old, array)
            return old
        value = self.initializer(f"{self.view.key}/{role}", array)
        while len(node.inputs) <= slot:
            node.resize_inputs(len(node.inputs) + 1)
        node.replace_input_with(slot, value)
        if old is not None and is_constant(old):
            along = {position: Axis(old.name or "", position) for position in range(array.ndim)}
        self.resized(value, along or {})
        return value

    def resized(self, value: ir.Value, along: Mapping[int, Axis]) -> None:
        """Let the axes of a new value be resized like the given ones."""
        for position, axis in along.items():
            if axis in self.kept:
                self.kept[Axis(value.name or "", position)] = self.kept[axis]

    @staticmethod
    def _writable(value: ir.Value) -> bool:
        producer = value.producer()
        own = producer is None or producer.op_type == "Constant"
        return own and is_constant(value) and not value.is_graph_output()

    def initializer(self, name: str, array: Array) -> ir.Value:
        """A new initializer named `name`, or `name` with a number when that is taken."""
        unique = self.fresh(name)
        value = ir.Value(
            name=unique,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.Tensor(array, name=unique),
        )
        self.graph.register_initializer(value)
        self.shapes[unique] = array.shape
        return value

    def fresh(self, name: str) -> str:
        """`name`, or `name` with a number where an earlier removal has made that value already."""
        unique, number = name, 1
        while unique in self.taken or unique in self.graph.initializers:
            unique, number = f"{name}_{number}", number + 1
        self.taken.add(unique)
        return unique

    def insert_before(
        self, slot: int, op_type: str, *extra: ir.Value, role: str, **attributes: int
    ) -> ir.Value:
        """Put `op_type(input, *extra)` in front of input `slot`."""
        node = self.view.node
        made = ir.node(op_type, [node.inputs[slot], *extra], attributes=attributes)
        made.outputs[0].name = self.fresh(f"{self.view.key}/{role}")
        self.around.insert_before(node, made)
        node.replace_input_with(slot, made.outputs[0])
        return made.outputs[0]

    def replace_output(
        self, output: int, op_type: str, *inputs: ir.Value, **attributes: int
    ) -> None:
        """Let `op_type(*inputs)` make an output, under the same name, instead of the node."""
        value = self.view.node.outputs[output]
        made = ir.node(op_type, list(inputs), attributes=attributes)
        self.around.insert_before(self.view.node, made)
        ir.convenience.replace_all_uses_with(value, made.outputs[0], replace_graph_outputs=True)
        made.outputs[0].name, value.name = value.name, self.fresh(f"{value.name}/unused")
        made.outputs[0].type, made.outputs[0].shape = value.type, value.shape

    def moved(self, value: ir.Value, position: int, wanted: Index, out: Index | None) -> Index:
        """New positions of indices of an axis, in the order in which an output holds them.

        Args:
            value: an input of the node.
            position: an axis of it.
            wanted: old indices that the output takes, in its old order; those that go are left out.
            out: kept indices of the output's axis, in their order; None where it keeps its size.
        """
        kept = self.kept_at(value, position)
        size = self.view.shape(value)[position] or 0
        places = positions_after(arange(size) if kept is None else kept, size)
        found = places[wanted if out is None else wanted[out]]
        return found[found >= 0]

    def add_behind(self, array: Array, *, axis: int) -> None:
        """Add a constant to output 0, which keeps its name at the far end.

        Args:
            array: broadcasts to the output; its units lie on axis `axis` of the output.
            axis: from the front.
        """
        node = self.view.node
        value, name = node.outputs[0], node.outputs[0].name or ""
        constant_value = self.initializer(f"{name}/bias", array)
        self.resized(constant_value, {axis - len(self.shapes[name]) + array.ndim: Axis(name, axis)})
        made = ir.node("Add", [value, constant_value])
        self.around.insert_after(node, made)
        ir.convenience.replace_all_uses_with(value, made.outputs[0], replace_graph_outputs=True)
        made.replace_input_with(0, value)
        made.outputs[0].name, value.name = name, self.fresh(f"{name}/unshifted")
        made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
        self.shapes[value.name] = self.shapes[name]
        self.resized(value, {p: Axis(name, p) for p in range(len(self.shapes[name]))})

    def sizes(self, slot: int, *, output: int = 0, role: str = "shape") -> None:
        """Mend the shape at input `slot`: entries of resized axes of the output get new sizes.

        The shape is aligned with the last axes of the output.
        """
        value = self.view.output(output)
        rank, length = len(self.view.shape(value)), self._length(slot)
        skipped = rank - (rank if length is None else length)
        resized = {
            position - skipped: len(kept)
            for position in range(max(skipped, 0), rank)
            if (kept := self.kept_at(value, position)) is not None
        }
        self.entries(slot, resized, role=role)

    def entries(self, slot: int, numbers: Mapping[int, int], *, role: str) -> None:
        """Put `numbers` at those positions of the vector of integers at input `slot`.

        Entries 0 (copy) and -1 (infer) adapt by themselves. A computed vector gets one
        `Where(mask, numbers, vector)` in front of the node.
        """
        if not numbers:
            return
        vector = self.view.constant(slot)
        if vector is not None:
            mended = np.array(vector)
            for position, number in numbers.items():
                if mended[position] > 0:
                    mended[position] = number
            if not np.array_equal(mended, vector):
                self.write(slot, mended, role=role)
            return
        length = self._length(slot)
        assert length is not None
        mask = np.zeros(length, np.bool_)
        given = np.ones(length, np.int64)
        for position, number in numbers.items():
            mask[position], given[position] = True, number
        self._where(slot, mask, given, role)

    def _length(self, slot: int) -> int | None:
        """Entries of the vector at input `slot`, of which earlier edits kept the number."""
        value = self.view.input(slot)
        while value is not None and value.name not in self.shapes:
            producer = value.producer()
            value = None if producer is None else producer.inputs[-1]
        return None if value is None else self.shapes[value.name or ""][0]

    def _where(self, slot: int, mask: Array, sizes: Array, role: str) -> None:
        node = self.view.node
        if _extended(node.inputs[slot], mask, sizes):
            return
        made = ir.node(
            "Where",
            [
                self.initializer(f"{self.view.key}/{role}_mask", mask),
                self.initializer(f"{self.view.key}/{role}_sizes", sizes),
                node.inputs[slot],
            ],
        )
        made.outputs[0].name = self.fresh(f"{self.view.key}/{role}")
        self.around.insert_before(node, made)
        node.replace_input_with(slot, made.outputs[0])


def _extended(target: ir.Value | None, mask: Array, sizes: Array) -> bool:
    """Whether an earlier removal put a Where in front, which from now on holds these sizes too."""
    made = None if target is None else target.producer()
    if target is None or made is None or made.op_type != "Where" or len(target.uses()) != 1:
        return False
    old_mask, old_sizes = constant(made.inputs[0]), constant(made.inputs[1])
    own = [value for value in made.inputs[:2] if value is not None and len(value.uses()) == 1]
    if old_mask is None or old_sizes is None or len(own) != 2 or old_mask.shape != mask.shape:
        return False
    set_constant(own[0], mask | old_mask)
    set_constant(own[1], np.where(mask, sizes, old_sizes))
    return True


def names_made(model: ir.Model) -> set[str | None]:
    """Of the values that the nodes of all graphs put out."""
    return {value.name for node in nodes(model) for value in node.outputs}


def positions_after(kept: Index, size: int) -> Index:
    """New position of every old index; -1 for the removed ones."""
    moved = np.full(size, -1, np.int64)
    moved[kept] = arange(len(kept))
    return moved


SHIFTS: Facet[Callable[[Edit, Floats], None]] = Facet("shifts")
shifts = SHIFTS.register
