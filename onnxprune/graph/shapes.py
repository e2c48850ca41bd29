"""Which sizes are static: inferred from the graph, never taken from what the file claims inside.

`infer` runs ONNX shape inference with data propagation on a copy without intermediate claims.
Values it leaves open are listed by `unresolved`; running the model can settle those
(runtime.probe).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxprune.base import Array
from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.graph.bodies import Laid, lay_out
from onnxprune.graph.constants import fold
from onnxprune.model import model_input, node_key, opset
from onnxprune.ops.registry import MIMICS, Sizes
from onnxprune.scopes import nodes

__all__ = ["dtypes", "infer", "parse_input_shape", "settle", "unresolved", "with_input_shapes"]


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`name:1,3,224,224` as (name, sizes); names may hold colons.

    Raises:
        ConfigError: another form.
    """
    match = re.fullmatch(r"(.+):(\d+(?:,\d+)*)", text)
    if match is None:
        raise ConfigError(f"--input-shape {text}: expected name:1,3,224,224")
    return match[1], tuple(int(size) for size in match[2].split(","))


def with_input_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """A copy of `model` whose inputs have the given sizes.

    Raises:
        ConfigError: an unknown input, or a rank that contradicts the model.
    """
    if not shapes:
        return model
    copy = model.clone()
    inputs = {value.name or "": value for value in model_input(copy)}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise ConfigError(
                f"--input-shape {name}: no such input; the model has {', '.join(sorted(inputs))}"
            )
        declared = inputs[name].shape
        if declared is not None and len(declared) != len(sizes):
            raise ConfigError(f"--input-shape {name}: {len(sizes)} sizes, the model has {declared}")
        inputs[name].shape = ir.Shape(sizes)
    return copy


def settle(model: ir.Model) -> tuple[dict[str, Sizes], dict[str, Array]]:
    """Static sizes and computed constants of `model`.

    Every open size of the inputs is given a number, twice, with different numbers; what comes out
    equal both times is static. So sizes that hide behind arithmetic on the batch size are found
    without running the model.

    Returns:
        Sizes per value name (None: dynamic; absent: unknown rank), and arrays of values that are
        computed but cannot change.
    """
    first = _settle(_numbered(model, 0))
    if not any(_open(value) for value in model_input(model)):
        return first
    second = _settle(_numbered(model, 1))
    shapes = {
        name: tuple(a if a == b else None for a, b in zip(sizes, second[0][name], strict=True))
        for name, sizes in first[0].items()
        if name in second[0] and len(second[0][name]) == len(sizes)
    }
    known = {
        name: array
        for name, array in first[1].items()
        if name in second[1] and np.array_equal(array, second[1][name])
    }
    return shapes, known


def _settle(model: ir.Model) -> tuple[dict[str, Sizes], dict[str, Array]]:
    """Inference and folding in turn until neither teaches the other anything."""
    known: dict[str, Array] = {}
    while True:
        shapes = infer(model, known)
        found = fold(model, shapes)
        if len(found) == len(known):
            return shapes, found
        known = found


def _open(value: ir.Value) -> list[int]:
    """Positions of the sizes that are not numbers."""
    if value.shape is None:
        return []
    return [position for position, size in enumerate(value.shape) if not isinstance(size, int)]


_STAND_INS = {"batch": (6, 10), "spatial": (64, 128), "other": (24, 40)}


def _numbered(model: ir.Model, which: int) -> ir.Model:
    """A copy whose open input sizes are numbers; sizes of one name get the same number."""
    copy = model.clone()
    chosen: dict[str, int] = {}
    for value in model_input(copy):
        for position in _open(value):
            assert value.shape is not None
            kind = "batch" if position == 0 else "spatial" if len(value.shape) > 3 else "other"
            name = str(value.shape[position]) if value.shape[position] else f"{kind}?"
            number = chosen.setdefault(name, _STAND_INS[kind][which])
            shape = value.shape.copy()
            shape[position] = number
            value.shape = shape
    return copy


def infer(model: ir.Model, known: Mapping[str, Array] | None = None) -> dict[str, Sizes]:
    """Sizes per value name; None for a size that is symbolic or unknown, absent for unknown rank.

    Args:
        model: not changed.
        known: arrays of computed values, as `constants.fold` finds them.
    """
    learned = Laid()
    while True:
        shapes = _infer(model, known or {}, learned)
        if not learned.learn(shapes):
            return shapes


def _infer(model: ir.Model, known: Mapping[str, Array], learned: Laid) -> dict[str, Sizes]:
    copy = model.clone()
    for node in nodes(copy):
        for value in node.outputs:
            value.shape = None
    lay_out(copy, learned)
    _mimic(copy)
    _pin(copy, known)
    result = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    graph = result.model.graph
    shapes: dict[str, Sizes] = {}
    for value in (*graph.inputs, *graph.initializers.values(), *_outputs(graph)):
        sizes = _sizes(value)
        if sizes is not None and value.name:
            shapes[value.name] = sizes
    return shapes


def dtypes(model: ir.Model) -> dict[str, ir.DataType]:
    """Element type per value name, as far as shape inference knows it."""
    copy = model.clone()
    lay_out(copy, Laid())
    _mimic(copy)
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(copy)
    values = (*copy.graph.inputs, *copy.graph.initializers.values(), *_outputs(copy.graph))
    return {value.name: value.dtype for value in values if value.name and value.dtype is not None}


def _mimic(model: ir.Model) -> None:
    """Put standard operators of the same sizes in the place of those that inference ignores."""
    opsets = model.graph.opset_imports
    for node in list(model.graph):
        rule = MIMICS.find(node, opsets.get(node.domain, 1))
        if rule is None:
            continue
        e = Emitter(f"{node_key(node)}/mimicked", opset=opset(model))
        made = rule(e, node)
        e.add_to(model.graph, before=node)
        for old, new in zip(node.outputs, made, strict=False):
            if new is not None and old.name:
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
                new.name, old.name = old.name, ""
        if not any(value.name for value in node.outputs):
            model.graph.remove(node)


def _pin(model: ir.Model, known: Mapping[str, Array]) -> None:
    """Let the readers of computed constants read initializers instead."""
    for node in list(model.graph) if known else ():
        for value in node.outputs:
            if value.name and value.name in known and not value.is_graph_output():
                tensor = ir.Tensor(known[value.name])
                pinned = ir.Value(name=f"{value.name}/known", const_value=tensor)
                model.graph.register_initializer(pinned)
                ir.convenience.replace_all_uses_with(value, pinned)


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _sizes(value: ir.Value) -> Sizes | None:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) and size >= 0 else None for size in value.shape)


def unresolved(model: ir.Model, shapes: Mapping[str, Sizes]) -> tuple[str, ...]:
    """Values whose rank is unknown, or that have more open sizes than the inputs explain.

    Inputs with one open size (the batch) explain one open size per value; more than that may be a
    static size that inference could not see.
    """
    explained = max(
        (shapes.get(value.name or "", ()).count(None) for value in model_input(model)), default=0
    )
    return tuple(
        value.name or ""
        for node in nodes(model)
        for value in node.outputs
        if value.name and (value.name not in shapes or shapes[value.name].count(None) > explained)
    )
