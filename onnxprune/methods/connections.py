"""The weighted layers of a model, connection by connection: where each lies, in which parameter.

`layers` finds them through what the operators declare (`@parameters`, `@connects`), whatever the
layout. A layer of another operator, or whose weight something else reads too, is left out and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Consumer, Floats, Index, Mask
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.model import constant, constants, evaluate, is_constant, tensor_of
from onnxprune.ops.connect import Connections
from onnxprune.ops.registry import CONNECTS, PARAMETERS, Role, View
from onnxprune.scopes import nodes

__all__ = ["Entries", "Layer", "entry_masks", "layers"]

_MOVES = {"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Entries:
    """Entries of the parameter `name`; `index` holds their positions in its flat array."""

    name: str
    index: Index


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layer:
    """A weighted operator with G groups of I inputs and O outputs, K entries per connection.

    Attributes:
        node: its key.
        op_type: what it is.
        how: where its connections lie.
        weight: (G, I, O, K) entries.
        bias: (G, O) entries; None where there is none, or something else reads it too.
        kernels: (G, I, O, K) magnitudes of the weight, with the operator's factor.
        offsets: (G, O) magnitudes of the bias likewise; None where there is none.
    """

    node: str
    op_type: str
    how: Connections
    weight: Entries
    bias: Entries | None
    kernels: Floats
    offsets: Floats | None

    @property
    def reads(self) -> Consumer:
        """The layer as a consumer of its inputs."""
        return Consumer(node=self.node, slot=0, axis=self.how.data)

    def of_inputs(self, kept: Mask, index: Index) -> Mask:
        """(len(index), O) connections that leave inputs.

        Args:
            kept: (G, I, O).
            index: on the data axis.
        """
        return kept.reshape(-1, kept.shape[2])[index]

    def cut_outputs(self, kept: Mask, index: Index) -> Mask:
        """(G, I, O) `kept` without what leads to the outputs `index`."""
        result = kept.copy()
        size = kept.shape[2]
        result[index // size, :, index % size] = False
        return result


def layers(
    model: ir.Model, analysis: Analysis, parameters: Iterable[str]
) -> tuple[list[Layer], tuple[str, ...]]:
    """All layers in graph order whose weight is trained, and notes on those that are left out.

    Args:
        model: with the present numbers.
        analysis: of this very graph.
        parameters: names of what is trained.
    """
    trained, origins = frozenset(parameters), _origins(model)
    found: list[Layer] = []
    others: Counter[str] = Counter()
    for view in views(model, analysis.shapes, analysis.known):
        if not any(trained & origins.get(name, frozenset()) for name in _weights(view)):
            continue
        layer = _layer(model, view, trained) if view.node.graph is model.graph else None
        if layer is None:
            others[view.node.op_type] += 1
        else:
            found.append(layer)
    shared = _shared(model, found)
    for layer in found:
        others[layer.op_type] += layer.weight.name in shared
    alone = [
        replace(layer, bias=None if layer.bias is None or layer.bias.name in shared else layer.bias)
        for layer in found
        if layer.weight.name not in shared
    ]
    counted = ", ".join(f"{count} {op_type}" for op_type, count in others.items() if count)
    note = f"not scored connection by connection, weights stay whole: {counted}"
    return alone, (note,) if counted else ()


def _origins(model: ir.Model) -> dict[str, frozenset[str]]:
    """Per value that depends on constants alone, on which."""
    known = {name: frozenset({name}) for name in constants(model)}
    for node in nodes(model):
        names = [value.name for value in node.inputs if value is not None and value.name]
        if names and all(name in known for name in names):
            joined = frozenset[str]().union(*(known[name] for name in names))
            known.update((value.name or "", joined) for value in node.outputs)
    return known


def _weights(view: View) -> Iterator[str]:
    """Names of what a node takes as weights."""
    declared = PARAMETERS.find(view.node, view.opset)
    for slot, role in (declared() if declared is not None else {}).items():
        value = view.input(slot)
        if role == Role.WEIGHT and value is not None:
            yield value.name or ""


def _layer(model: ir.Model, view: View, trained: frozenset[str]) -> Layer | None:
    rule = CONNECTS.find(view.node, view.opset)
    how: Connections | None = None if rule is None else rule(view)
    weight = None if how is None else _entries(model, view.input(how.slot))
    if how is None or weight is None or weight.name not in trained:
        return None
    table = how.table(weight.index)
    values = _flat(model, weight.name)
    offsets, bias = None, None
    if how.bias is not None:
        node, slot = how.bias
        bias = _entries(model, node.inputs[slot])
        groups, _, outputs, _ = table.shape
        if bias is not None and bias.index.size == groups * outputs:
            bias = replace(bias, index=bias.index.reshape(groups, outputs))
            offsets = np.abs(_flat(model, bias.name)[bias.index] * how.bias_scale)
        else:
            bias = None
    return Layer(
        node=view.key,
        op_type=view.node.op_type,
        how=how,
        weight=replace(weight, index=table),
        bias=bias if bias is not None and bias.name in trained else None,
        kernels=np.abs(values[table] * how.scale).astype(np.float32),
        offsets=offsets,
    )


def _flat(model: ir.Model, name: str) -> Floats:
    array = constant(constants(model)[name])
    assert array is not None
    return array.reshape(-1).astype(np.float64)


def _entries(model: ir.Model, value: ir.Value | None) -> Entries | None:
    """Where the entries of `value` lie in the constant behind it, through operators that move."""
    chain: list[ir.Node] = []
    current = value
    while current is not None and not is_constant(current):
        producer = current.producer()
        if producer is None or producer.op_type not in _MOVES or len(list(current.uses())) != 1:
            return None
        chain.insert(0, producer)
        current = producer.inputs[0]
    array = constant(current)
    if current is None or value is None or array is None:
        return None
    index: Array = np.arange(array.size, dtype=np.int64).reshape(array.shape)
    if chain:
        others = [v for node in chain for v in node.inputs[1:] if v is not None]
        feeds = {v.name or "": constant(v) for v in others}
        if any(given is None for given in feeds.values()):
            return None
        known = {name: given for name, given in feeds.items() if given is not None}
        made = evaluate(model, chain, {**known, current.name or "": index}, [value.name or ""])
        if value.name not in made:
            return None
        index = made[value.name]
    return Entries(name=current.name or "", index=index)


def _shared(model: ir.Model, found: Iterable[Layer]) -> frozenset[str]:
    """Parameters of the layers that others read as well."""
    known = constants(model)
    claims = Counter(layer.weight.name for layer in found)
    claims.update(layer.bias.name for layer in found if layer.bias is not None)
    return frozenset(
        name
        for name, count in claims.items()
        if known[name].is_graph_output() or len(list(known[name].uses())) != count
    )


def entry_masks(
    model: ir.Model, kept: Iterable[tuple[Entries, Mask]], gone: Iterable[Entries] = ()
) -> Mapping[str, Mask]:
    """Masks of parameters, True where an entry stays; those that lose nothing are left out.

    Args:
        model: holds the parameters.
        kept: entries with masks of the same shape, or of one axis less for whole kernels. What any
            reader of a parameter keeps stays.
        gone: entries that go whatever `kept` says.
    """
    known, masks = constants(model), dict[str, Mask]()
    for entries, mask in kept:
        array = constant(known[entries.name])
        assert array is not None
        flat = masks.setdefault(entries.name, np.zeros(array.size, np.bool_))
        wide = mask if mask.ndim == entries.index.ndim else mask[..., None]
        flat[entries.index[np.broadcast_to(wide, entries.index.shape)]] = True
    for entries in gone:
        array = constant(known[entries.name])
        assert array is not None
        flat = masks.setdefault(entries.name, np.ones(array.size, np.bool_))
        flat[entries.index] = False
    shapes = {name: tensor_of(known[name]).shape.numpy() for name in masks}
    return {name: mask.reshape(shapes[name]) for name, mask in masks.items() if not mask.all()}
