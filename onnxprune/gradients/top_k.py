"""Sparser back propagation: the k largest gradients of a layer's pre-activations go on.

Sun et al. 2017, "meProp" (arXiv 1706.06197). With z = x W + b and dz = dL/dz, taken behind the
derivative of the activation:

    per example  T_n = the k indices j with the largest |dz_nj|;         dz~_nj = dz_nj if j in T_n
    unified      T = the k indices with the largest sum over n of |dz_nj|, the same for all examples

    dx = dz~ W^T    dW = x^T dz~    db = sum over n of dz_n, which stays dense

Unified, the k columns are gathered before the products, which so get smaller in fact. Only what
contracts dz is replaced: elementwise operators keep their exact gradient. The paper knows matrix
products; for convolutions, ours, an index is a channel and |dz| is summed over positions. What
recurrent operators send on is chosen inside their loops over the steps (`thinning`); here their
active units are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.base import Axis
from onnxprune.emit import Emitter
from onnxprune.gradients.gradient import GradientGraph
from onnxprune.gradients.slots import attribute
from onnxprune.gradients.thinning import Recurrence, largest
from onnxprune.instrument.reductions import Reductions
from onnxprune.instrument.statistics import Collector
from onnxprune.methods.compose import TopK
from onnxprune.model import constant, opset
from onnxprune.ops.registry import Sizes

__all__ = ["gates_counted", "sparsified"]

_PRODUCTS = frozenset({"Gemm", "MatMul", "FusedMatMul", "Conv", "ConvGrad"})


def sparsified(
    graph: GradientGraph, sites: Mapping[Axis, Sizes], top_k: TopK, *, counted: bool
) -> tuple[GradientGraph, Collector]:
    """A copy of `graph` that propagates less, and what reads its counters.

    Args:
        graph: not changed.
        sites: the axis of every pre-activation to treat, with the sizes of the value; behind the
            axis lie positions. Values without a gradient are left out.
        top_k: how many, and chosen how.
        counted: whether to count, per index, the examples for which it was chosen with a gradient
            other than zero (`Window.hits`).
    """
    model = graph.model.clone()
    collector: dict[Axis, dict[str, str]] = {}
    for axis, sizes in sites.items():
        values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
        z, slope = values.get(axis.value), values.get(graph.gradients.get(axis.value, ""))
        width = sizes[axis.position]
        if z is None or slope is None or slope.producer() is None or width is None:
            continue
        site = _Site(model=model, slope=slope, axis=axis, sizes=sizes, k=min(top_k.k, width))
        chosen = None
        if top_k.k < width:
            chosen = _unified(site) if top_k.unified else _per_example(site)
        if counted:
            collector[axis] = _count(site, z, chosen)
    return replace(graph, model=model), Collector(outputs=collector)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Site:
    """One gradient dz that is made sparser.

    Attributes:
        model: the graph it stands in.
        slope: dz.
        axis: of the pre-activation, and so of dz.
        sizes: of both.
        k: indices of the axis that go on.
    """

    model: ir.Model
    slope: ir.Value
    axis: Axis
    sizes: Sizes
    k: int

    @property
    def width(self) -> int:
        """Size of the axis."""
        return self.sizes[self.axis.position] or 0

    @property
    def rank(self) -> int:
        """Of dz."""
        return len(self.sizes)

    def emitter(self, part: str) -> Emitter:
        """For nodes of this site."""
        return Emitter(f"{self.slope.name}/{part}", opset=opset(self.model))

    @property
    def readers(self) -> list[tuple[ir.Node, int]]:
        """The nodes that contract dz, and at which input they read it."""
        return [(node, slot) for node, slot in self.slope.uses() if node.op_type in _PRODUCTS]

    @property
    def reshaped(self) -> list[ir.Node]:
        """Nodes that lay dz out as a matrix with the axis as its columns."""
        found = []
        for node, slot in self.slope.uses():
            if node.op_type == "Reshape" and slot == 0:
                shape = node.inputs[1]
                target = None if shape is None else constant(shape)
                if target is not None and target.tolist() == [-1, self.width]:
                    found.append(node)
        return found

    def add(self, e: Emitter) -> None:
        """Insert what `e` wrote right behind dz."""
        producer = self.slope.producer()
        assert producer is not None
        for value in e.initializers:
            self.model.graph.register_initializer(value)
        self.model.graph.insert_after(producer, e.nodes)


def _magnitudes(e: Emitter, site: _Site) -> ir.Value:
    """|dz| summed over the axes behind the site's, which are positions; (..., C)."""
    magnitude = e.op("Abs", site.slope)
    behind = range(site.axis.position + 1, site.rank)
    return e.reduce("ReduceSum", magnitude, behind, keepdims=False) if behind else magnitude


# --- one choice per example ----------------------------------------------------------------------


def _per_example(site: _Site) -> ir.Value:
    """Zero all but the k largest gradients of every example; returns the (..., C) mask of 0 and 1.

    Where dz is a sequence (N, T, C), every position of it is an example.
    """
    e, position, rank = site.emitter("top_k"), site.axis.position, site.rank
    mask = largest(e, _magnitudes(e, site), site.k, position)
    behind = list(range(position + 1, rank))
    wide = e.op("Unsqueeze", mask, e.integers(*behind)) if behind else mask
    sparse = e.op("Mul", site.slope, wide)
    readers, reshaped = site.readers, site.reshaped
    site.add(e)
    for node, slot in readers:
        if node.op_type == "ConvGrad":
            _dense_bias(site, node)
        node.replace_input_with(slot, sparse)
    for node in reshaped:
        node.replace_input_with(0, sparse)
    return mask


def _dense_bias(site: _Site, node: ir.Node) -> None:
    """Let the bias gradient of a ConvGrad be the sum of the whole dz."""
    if len(node.outputs) < 3:
        return
    e, old = site.emitter("bias"), node.outputs[2]
    if not old.uses() and not old.is_graph_output():
        return
    total = e.reduce("ReduceSum", site.slope, (0, *range(2, site.rank)), keepdims=False)
    site.add(e)
    name, old.name = old.name, ""
    total.type, total.shape = old.type, old.shape
    old.replace_all_uses_with(total, replace_graph_outputs=True)
    total.name = name


# --- one choice per batch ------------------------------------------------------------------------


def _unified(site: _Site) -> ir.Value:
    """Let the products see the k chosen indices only; returns the (C,) mask of 0 and 1."""
    e = site.emitter("top_k")
    magnitude = _magnitudes(e, site)
    leading = range(site.axis.position)
    strength = e.reduce("ReduceSum", magnitude, leading, keepdims=False) if leading else magnitude
    _, chosen = e.ops(
        "TopK",
        strength,
        e.integers(site.k),
        outputs=(f"{e.prefix}/largest", f"{e.prefix}/indices"),
        sorted=0,
    )
    ones = e.op("ConstantOfShape", e.integers(site.k), value=ir.tensor([1.0]))
    zeros = e.op("ConstantOfShape", e.integers(site.width), value=ir.tensor([0.0]))
    mask = e.op("ScatterElements", zeros, chosen, ones, axis=0)
    columns = e.op("Gather", site.slope, chosen, axis=site.axis.position)
    readers, reshaped = site.readers, site.reshaped
    site.add(e)
    for node, slot in readers:
        _narrow(site, node, slot, columns, chosen)
    for node in reshaped:
        _narrow_matrix(site, node, columns, chosen)
    return mask


def _narrow(site: _Site, node: ir.Node, slot: int, columns: ir.Value, chosen: ir.Value) -> None:
    """Let one product read `columns` (dz at the chosen indices) instead of dz."""
    contracted = _contracted(node, slot)
    if contracted is not None:  # dx: the other operand is narrowed along the axis they share
        other, axis = contracted
        e = Emitter(f"{node.outputs[0].name}/narrow", opset=opset(site.model))
        narrow = e.op("Gather", node.inputs[other], chosen, axis=axis)
        e.add_to(site.model.graph, before=node)
        node.replace_input_with(slot, columns)
        node.replace_input_with(other, narrow)
    elif node.op_type == "ConvGrad" and slot == 0 and attribute(node, "group", 1) == 1:
        _dense_bias(site, node)
        e = Emitter(f"{node.outputs[1].name}/narrow", opset=opset(site.model))
        narrow = e.op("Gather", node.inputs[2], chosen, axis=0)
        e.add_to(site.model.graph, before=node)
        node.replace_input_with(0, columns)
        node.replace_input_with(2, narrow)
        if len(node.outputs) > 2:
            node.outputs[2].name = ""
        _scatter(site, node.outputs[1], chosen, axis=0, rank=site.rank)
    elif node.op_type == "Gemm" and (made := _made(node, slot)) is not None:
        node.replace_input_with(slot, columns)
        _scatter(site, node.outputs[0], chosen, axis=made, rank=2)
    else:
        _spread(site, node, slot, columns, chosen)


def _narrow_matrix(site: _Site, node: ir.Node, columns: ir.Value, chosen: ir.Value) -> None:
    """The same for products that read dz as a matrix."""
    e = Emitter(f"{node.outputs[0].name}/narrow", opset=opset(site.model))
    matrix = e.op("Reshape", columns, e.integers(-1, site.k))
    e.add_to(site.model.graph, before=node)
    as_matrix = replace(site, slope=node.outputs[0], axis=Axis("", 1), sizes=(None, site.width))
    for reader, slot in list(node.outputs[0].uses()):
        if reader.op_type in _PRODUCTS:
            _narrow(as_matrix, reader, slot, matrix, chosen)


def _contracted(node: ir.Node, slot: int) -> tuple[int, int] | None:
    """The input that is summed with dz over the site's axis, and its axis; None if none is."""
    turned = bool(attribute(node, "transB", 0))
    if node.op_type in ("Gemm", "MatMul", "FusedMatMul"):
        plain = not attribute(node, "transA", 0) and not attribute(node, "transBatchA", 0)
        other = node.inputs[1] if slot == 0 else None
        matrix = other is not None and (
            node.op_type == "Gemm" or (other.shape is not None and len(other.shape) == 2)
        )
        return (1, int(turned)) if slot == 0 and plain and matrix else None
    if node.op_type == "Conv" and slot == 0 and attribute(node, "group", 1) == 1:
        return 1, 1
    return None


def _made(node: ir.Node, slot: int) -> int | None:
    """The axis of a Gemm's output that is the site's axis; None if there is none."""
    if slot == 0 and attribute(node, "transA", 0):
        return 0
    return 1 if slot == 1 and not attribute(node, "transB", 0) else None


def _scatter(site: _Site, old: ir.Value, chosen: ir.Value, *, axis: int, rank: int) -> None:
    """Put a product of the chosen indices into zeros of full width, in its place."""
    node = old.producer()
    assert node is not None
    e = Emitter(f"{old.name}/full", opset=opset(site.model))
    shape = e.op("Shape", old)
    parts = [e.integers(site.width) if n == axis else _entry(e, shape, n) for n in range(rank)]
    zeros = e.op("ConstantOfShape", e.op("Concat", *parts, axis=0), value=ir.tensor([0.0]))
    if axis == 0:
        full = e.op("ScatterND", zeros, e.op("Unsqueeze", chosen, e.integers(1)), old)
    else:
        indices = e.op("Expand", chosen, shape)
        full = e.op("ScatterElements", zeros, indices, old, axis=axis)
    _replace(site.model.graph, node, old, full, e)


def _entry(e: Emitter, shape: ir.Value, number: int) -> ir.Value:
    return e.op("Slice", shape, e.integers(number), e.integers(number + 1), e.integers(0))


def _replace(graph: ir.Graph, node: ir.Node, old: ir.Value, new: ir.Value, e: Emitter) -> None:
    """Let `new`, written to `e` from `old`, stand for it under its name."""
    name = old.name
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    for inner in e.nodes:
        for slot, value in enumerate(inner.inputs):
            if value is new:
                inner.replace_input_with(slot, old)
    old.name, old.shape, new.name = f"{name}/narrow", None, name
    for value in e.initializers:
        graph.register_initializer(value)
    graph.insert_after(node, e.nodes)


def _spread(site: _Site, node: ir.Node, slot: int, columns: ir.Value, chosen: ir.Value) -> None:
    """Where a product cannot be narrowed: dz with zeros elsewhere."""
    if node.op_type == "ConvGrad":
        _dense_bias(site, node)
    e = Emitter(f"{node.outputs[0].name or node.outputs[1].name}/spread", opset=opset(site.model))
    zeros = e.op("Sub", site.slope, site.slope)
    behind = [1] * (site.rank - site.axis.position - 1)
    tall = e.op("Reshape", chosen, e.integers(-1, *behind)) if behind else chosen
    indices = e.op("Expand", tall, e.op("Shape", columns))
    full = e.op("ScatterElements", zeros, indices, columns, axis=site.axis.position)
    e.add_to(site.model.graph, before=node)
    node.replace_input_with(slot, full)


# --- counting ------------------------------------------------------------------------------------


def _count(site: _Site, z: ir.Value, mask: ir.Value | None) -> dict[str, str]:
    """Outputs: examples that chose each index with a gradient other than zero, and their number."""
    e = site.emitter("hits")
    active = e.op("Cast", _magnitudes(e, site), to=int(ir.DataType.BOOL))
    hits = e.op("Cast", active, to=int(ir.DataType.FLOAT))
    if mask is not None:
        hits = e.op("Mul", hits, mask)
    leading = range(site.axis.position)
    if leading:
        hits = e.reduce("ReduceSum", hits, leading, keepdims=False)
    e.add_to(site.model.graph)
    return _published(site.model, site.axis, hits, z)


def gates_counted(
    graph: GradientGraph, sites: Mapping[Axis, Recurrence]
) -> tuple[GradientGraph, Collector]:
    """A copy of `graph` that counts the active units of recurrent operators, and what reads it.

    A unit is active in a step of an example when the slope of any of its gates goes on and is not
    zero; one counter serves all gates, and steps count like examples.

    Args:
        graph: differentiated with a `top_k` for these operators; not changed.
        sites: per operator, the axis that its counter is called after. Units of two directions
            have a counter each where the axis tells them apart (`Axis.by`), else one. Operators
            whose gates have no slopes in `graph` are left out.
    """
    model = graph.model.clone()
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    collector: dict[Axis, dict[str, str]] = {}
    for axis, site in sites.items():
        slopes = site.slopes(graph.gradients)
        if not slopes:
            continue
        e = Emitter(f"{axis.value}/active", opset=opset(model))
        active = [_any_gate(e, values[name], site.units) for name in slopes]
        each = active[0]
        if len(active) > 1:
            each = e.op("Max", *active) if axis.by < 0 else e.op("Concat", *active, axis=-1)
        hits = e.reduce("ReduceSum", each, (0, 1), keepdims=False)
        e.add_to(model.graph)
        collector[axis] = _published(model, axis, hits, each)
    return replace(graph, model=model), Collector(outputs=collector)


def _any_gate(e: Emitter, slope: ir.Value, units: int) -> ir.Value:
    """(T, N, H) 1 where any gate of a unit has a slope, else 0; `slope` is (T, N, gates * H)."""
    apart = e.op("Reshape", slope, e.integers(0, 0, -1, units))
    active = e.op("Cast", e.op("Cast", apart, to=int(ir.DataType.BOOL)), to=int(ir.DataType.FLOAT))
    return e.reduce("ReduceMax", active, (2,), keepdims=False)


def _published(model: ir.Model, axis: Axis, hits: ir.Value, of: ir.Value) -> dict[str, str]:
    """Outputs: `hits`, and how many elements the value has that they are sums of."""
    hits.name = f"{axis}/hits"
    hits.type, hits.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None])
    model.graph.outputs.append(hits)
    return {"hits": hits.name, "count": Reductions(model).count(of)}
