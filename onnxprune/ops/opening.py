"""Opening the batch axis of a model that takes batches of one size: what `@opens` rules work with.

Exporters that see one batch write its size into the graph, as a number among those of a Reshape,
say. A rule replaces that number by what follows the batch, whatever its size; for batches of the
old size the node computes what it did. Rules guess where the numbers do not tell (with batches of
one example every size of 1 may be the batch): whoever opens a model proves it by running.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.emit import Emitter
from onnxprune.model import set_constant
from onnxprune.ops.registry import Facet, View

__all__ = ["OPENS", "Opening", "Trials", "opens"]

Trials: TypeAlias = Mapping[str, tuple[tuple["int | None", "int | None"], ...]]
"""Per value name, every size at two different batches."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Opening:
    """One node of the copy that is being opened.

    Attributes:
        view: the node, with the sizes *before*.
        trials: sizes of now, as far as they are known.
        batch: examples that the model was made for.
        live: names of the values that depend on the inputs.
        graph: the main graph.
    """

    view: View
    trials: Trials
    batch: int
    live: Container[str]
    graph: ir.Graph

    def is_live(self, value: ir.Value | None) -> bool:
        """Whether a value depends on the inputs."""
        return value is not None and (value.name or "") in self.live

    def follows(self, value: ir.Value | None) -> int | None:
        """The axis whose size follows the batch; None where none is known to."""
        found = self._moving(value)
        return found[0] if found is not None and len(found) == 1 else None

    def is_still(self, value: ir.Value | None) -> bool:
        """Whether all sizes are known not to follow the batch."""
        return self._moving(value) == []

    def _moving(self, value: ir.Value | None) -> list[int] | None:
        """Positions of the sizes that were numbers and now follow the batch; None: unknown."""
        name = "" if value is None else value.name or ""
        before, pairs = self.view.shapes.get(name), self.trials.get(name)
        if before is None or pairs is None or len(before) != len(pairs):
            return None
        both = enumerate(zip(before, pairs, strict=True))
        return [place for place, (size, (a, b)) in both if size is not None and a != b]

    def write(self, slot: int, array: Array) -> bool:
        """Make `array` the constant at input `slot` of this node alone; whether it was another."""
        old = self.view.constant(slot)
        if old is not None and np.array_equal(old, array):
            return False
        name = f"{self.view.key}/batch_{slot}"
        if name in self.graph.initializers:
            set_constant(self.graph.initializers[name], array)
            return True
        value = ir.Value(name=name)
        set_constant(value, array)
        self.graph.register_initializer(value)
        self.view.node.replace_input_with(slot, value)
        return True

    def follow(self, slot: int, entry: int, source: ir.Value, axis: int) -> bool:
        """Let an entry of the constant vector at input `slot` be a size of `source`."""
        vector = self.view.constant(slot)
        if vector is None:
            return False
        e = self._emitter(slot)
        parts = [e.constant(part) for part in (vector[:entry], vector[entry + 1 :])]
        size = e.op("Gather", e.op("Shape", source), e.integers(axis))
        self._insert(e, slot, e.op("Concat", parts[0], size, parts[1], axis=0))
        return True

    def repeat(self, slot: int, axis: int, source: ir.Value, position: int) -> bool:
        """Repeat the first index of input `slot` along `axis` as often as `source` has indices.

        Args:
            slot: of a value that is the same for all examples.
            axis: of that value.
            source: a value that follows the batch.
            position: its axis that does.

        Returns:
            Whether that was done: not where the axis holds no batch, or may follow by itself.
        """
        value = self.view.input(slot)
        if value is None or not self.is_still(value):
            return False
        count = self.view.shape(value)[axis]
        if count not in (1, self.batch):
            return False
        e = self._emitter(slot)
        if count != 1:
            value = e.op("Gather", value, e.integers(0), axis=axis)
        behind = len(self.view.shape(self.view.input(slot))) - axis - 1
        size = e.op("Gather", e.op("Shape", source), e.integers(position))
        target = e.op("Concat", size, e.integers(*[1] * behind), axis=0) if behind else size
        self._insert(e, slot, e.op("Expand", value, target))
        return True

    def _emitter(self, slot: int) -> Emitter:
        return Emitter(f"{self.view.key}/batch_{slot}", opset=self.view.opset)

    def _insert(self, e: Emitter, slot: int, value: ir.Value) -> None:
        e.add_to(self.graph, before=self.view.node)
        self.view.node.replace_input_with(slot, value)


OPENS: Facet[Callable[[Opening], bool]] = Facet("opens")
"""Rules that say whether they changed something."""

opens = OPENS.register
