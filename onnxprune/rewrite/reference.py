"""What a pruned model must equal: the model before, with the removed units replaced where they end.

Masking producers instead would be wrong as soon as f(0) != 0; comparing a fold with zero would
refuse every fold.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Consumer, Plan
from onnxprune.graph.consumers import absorber, outgoing
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.graph.order import kept_indices
from onnxprune.graph.shapes import dtypes
from onnxprune.model import opset
from onnxprune.ops.edit import Absorber, Edit, names_made
from onnxprune.ops.registry import ZERO_POINTS, arange
from onnxprune.rewrite.compensate import Substitute, contribution, substitutes
from onnxprune.rewrite.inexact import hide_removed

__all__ = ["reference"]


def reference(model: ir.Model, analysis: Analysis, plan: Plan) -> ir.Model:
    """A copy of `model` in which every consumer sees what `plan` puts in place of removed units.

    At each consumer's input: 0 for a removed unit (the zero point where the input holds integers),
    its constant for a folded one, `scale * survivor + offset` for a merged one. All weights stay at
    their sizes. Where a consumer pads its input with zeros, constants reach its output as if they
    stood in the padding too, which is what a bias does. A node that is inexact along a resized axis
    (a normalization, a mean) sees the kept units only.
    """
    copy = model.clone()
    by_key = {view.key: view for view in views(copy, analysis.shapes, analysis.known)}
    kept = kept_indices(analysis.groups, plan.keep, analysis.shapes)
    wanted = substitutes(analysis.groups, plan)
    absorbers = {consumer: absorber(by_key[consumer.node], consumer) for consumer in wanted}
    taken, shapes = names_made(copy), dict(analysis.shapes)
    hidden = hide_removed(copy, analysis, kept, taken)
    nodes = {key: view.node for key, view in by_key.items()}
    types = dtypes(model)
    for number, (consumer, substitute) in enumerate(wanted.items()):
        if consumer.node in hidden:
            continue
        view, how = by_key[consumer.node], absorbers[consumer]
        if how is not None and how.padded and substitute.offset.any():
            edit = Edit(view=view, kept={}, shapes=shapes, graph=copy.graph, taken=taken)
            substitute = _behind_padding(edit, how, substitute)
        sizes = analysis.shapes[consumer.axis.value]
        shape = [1] * len(sizes)
        for position in (consumer.axis.position, consumer.axis.by):
            if position >= 0:
                shape[position] = sizes[position] or 0
        tape = _Tape(copy, nodes[consumer.node], f"{consumer.node}/reference_{number}")
        dtype = types.get(consumer.axis.value, ir.DataType.FLOAT).numpy()
        _replace(tape, consumer, substitute, shape, dtype)
    return copy


def _behind_padding(edit: Edit, how: Absorber, substitute: Substitute) -> Substitute:
    """Move the constants of a padded consumer from its input to its output."""
    vector = contribution(outgoing(edit.view, how), substitute)
    rank = len(edit.view.shape(edit.view.output()))
    edit.add_behind(vector.reshape(1, -1, *[1] * (rank - 2)), axis=1)
    return replace(substitute, offset=np.zeros_like(substitute.offset))


def _replace(
    tape: _Tape,
    consumer: Consumer,
    substitute: Substitute,
    shape: list[int],
    dtype: np.dtype[np.generic],
) -> None:
    size = int(np.prod(shape))
    order = arange(size)
    if consumer.axis.by > consumer.axis.position:  # numbered block by block
        order = order.reshape(shape[consumer.axis.by], -1).T.reshape(-1)
    keep = np.ones(size, np.bool_)
    keep[substitute.removed] = False
    offset, scale, source = np.zeros(size), np.zeros(size), arange(size)
    offset[substitute.removed] = substitute.offset
    scale[substitute.removed] = substitute.scale
    source[substitute.removed] = substitute.source
    keep, offset, scale = keep[order], offset[order], scale[order]
    data = tape.before.inputs[consumer.slot]
    fill = _zero_point(tape, consumer.slot)
    if fill is None:
        fill = tape.constant(offset.reshape(shape).astype(dtype))
    if scale.any():
        taken = tape.op("Gather", data, tape.constant(source), axis=consumer.axis.position)
        scaled = tape.op("Mul", taken, tape.constant(scale.reshape(shape).astype(dtype)))
        fill = tape.choose((scale != 0).reshape(shape), tape.op("Add", scaled, fill), fill, dtype)
    masked = tape.choose(keep.reshape(shape), data, fill, dtype)
    tape.before.replace_input_with(consumer.slot, masked)


def _zero_point(tape: _Tape, slot: int) -> ir.Value | None:
    """What stands for nothing at an input of integers; None where that is 0."""
    node = tape.before
    slots = ZERO_POINTS.find(node, tape.opset)
    place = None if slots is None else slots().get(slot)
    return None if place is None or place >= len(node.inputs) else node.inputs[place]


class _Tape:
    """Inserts nodes in front of one node, under names of one prefix."""

    def __init__(self, model: ir.Model, before: ir.Node, prefix: str) -> None:
        self.graph, self.before, self.prefix, self.count = model.graph, before, prefix, 0
        self.opset = opset(model)
        self.has_where = self.opset >= 9

    def _name(self) -> str:
        self.count += 1
        return f"{self.prefix}/{self.count}"

    def constant(self, array: Array) -> ir.Value:
        name = self._name()
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        self.graph.register_initializer(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes)
        node.outputs[0].name = self._name()
        place = self.before.graph
        assert isinstance(place, ir.Graph)
        place.insert_before(self.before, node)
        return node.outputs[0]

    def choose(
        self,
        mask: Array,
        chosen: ir.Value | None,
        other: ir.Value | None,
        dtype: np.dtype[np.generic],
    ) -> ir.Value:
        """Where; before opset 9 by arithmetic, which does not stop NaN."""
        if self.has_where:
            return self.op("Where", self.constant(mask), chosen, other)
        first = self.op("Mul", chosen, self.constant(mask.astype(dtype)))
        second = self.op("Mul", other, self.constant((~mask).astype(dtype)))
        return self.op("Add", first, second)
