"""Sums of two branches, channel by channel: which of them hardly matters, and how it is silenced.

The residual rule of NNrelief: with r and q the norms of the mean magnitudes of both branches of a
sum, a channel of a branch goes when r / (r + q) < 1 - alpha. A branch can go where it ends in a
weighted layer, normalized or not: then its connections and what is added behind them become zero.
A shortcut that is nothing but the sum before cannot, it would need a node of its own; the published
code masks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Floats
from onnxprune.emit import Emitter
from onnxprune.methods.compose import Moment
from onnxprune.methods.connections import Entries, Layer
from onnxprune.methods.relief import magnitudes
from onnxprune.model import constant, is_constant

__all__ = ["Branch", "branches"]

_UNTOUCHED = ("Identity", "Dropout")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Branch:
    """One operand of a sum that a layer makes.

    Attributes:
        layer: key of the layer; index c of its outputs is channel c of the sum.
        behind: entries (C,) of what scales and shifts the branch on its way.
        share: (C,) r / (r + q); 1 where both are 0.
    """

    layer: str
    behind: tuple[Entries, ...]
    share: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Site:
    operand: ir.Value
    other: ir.Value
    position: int
    layer: str
    behind: tuple[Entries, ...]


def branches(moment: Moment, layers: Sequence[Layer]) -> list[Branch]:
    """The branches of all sums of two values of one shape that end in a layer."""
    sites = list(_sites(moment, layers))
    operands = {v.name or "": s.position for s in sites for v in (s.operand, s.other)}

    def write(e: Emitter, values: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        return {
            name: e.reduce("ReduceSum", magnitudes(e, values[name]), [0], keepdims=False)
            for name in operands
            if name in values
        }

    maps = moment.measure(write) if sites else {}
    found = []
    for site in sites:
        pair = [maps.get(value.name or "") for value in (site.operand, site.other)]
        if any(each is None for each in pair):
            continue
        r, q = (_norms(each, site.position - 1) for each in pair if each is not None)
        share = np.divide(r, r + q, out=np.ones_like(r), where=(r + q) > 0)
        found.append(Branch(layer=site.layer, behind=site.behind, share=share))
    return found


def _norms(mean: Floats, position: int) -> Floats:
    rows = np.moveaxis(mean, position, 0)
    result: Floats = np.linalg.norm(rows.reshape(len(rows), -1), axis=1)
    return result


def _sites(moment: Moment, layers: Sequence[Layer]) -> Iterator[_Site]:
    made = {layer.how.out.value: layer for layer in layers}
    shapes = moment.analysis.shapes
    for node in moment.model.graph:
        operands = [value for value in node.inputs if value is not None]
        if node.op_type != "Add" or len(operands) != 2 or any(map(is_constant, operands)):
            continue
        sizes = [shapes.get(value.name or "") for value in operands]
        if sizes[0] is None or sizes[0] != sizes[1]:
            continue
        for value, other in (operands, operands[::-1]):
            found = _made_by(value, made, moment.parameters)
            if found is None or shapes.get(found[0].how.out.value) != sizes[0]:
                continue
            layer, behind = found
            position, channels = layer.how.out.position, sizes[0][layer.how.out.position]
            if position > 0 and all(entries.index.size == channels for entries in behind):
                yield _Site(value, other, position, layer.node, behind)


def _made_by(
    value: ir.Value, made: Mapping[str, Layer], trained: frozenset[str]
) -> tuple[Layer, tuple[Entries, ...]] | None:
    """The layer behind an operand that nothing else reads, and what stands between."""
    behind: list[Entries] = []
    while len(list(value.uses())) == 1 and not value.is_graph_output():
        node = value.producer()
        layer = made.get(value.name or "")
        if layer is not None:
            return layer, tuple(behind)
        inputs = [] if node is None else [v for v in node.inputs[:3] if v is not None]
        if node is None or node.domain not in ("", "ai.onnx") or not inputs:
            return None
        data, *others = inputs
        if node.op_type == "Add" and is_constant(data):
            data, others = others[0], [data]
        if node.op_type in ("BatchNormalization", "Add"):
            entries = [_per_channel(each, trained) for each in others]
            if any(each is None for each in entries):
                return None
            behind += [each for each in entries if each is not None]
        elif node.op_type not in _UNTOUCHED:
            return None
        value = data
    return None


def _per_channel(value: ir.Value, trained: frozenset[str]) -> Entries | None:
    """The entries of a trained vector that nothing else reads."""
    array = constant(value)
    if array is None or value.name not in trained or len(list(value.uses())) != 1:
        return None
    return Entries(name=value.name or "", index=np.arange(array.size, dtype=np.int64))
