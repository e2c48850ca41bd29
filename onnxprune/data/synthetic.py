"""Inputs that a model accepts, made up: for looking at it and comparing it without data.

`synthetic` draws one batch. Float inputs are standard normal. What an integer input means is read
off the graph: numbers that look something up (token ids in an embedding table) stay within the
table, lengths within the sequence, and all others are ones, which is what masks and flags want.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.data.fit import input_specs
from onnxprune.data.split import InputSpec
from onnxprune.graph.shapes import settle, with_input_shapes
from onnxprune.model import constant, model_input
from onnxprune.ops.registry import Sizes

__all__ = ["synthetic"]

_SPATIAL, _OTHER = 64, 24  # sizes of open axes but the first, in images and in anything else
_STANDARD = ("", "ai.onnx")
# Operators that hand on the numbers of these inputs, as they are.
_CARRIERS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"), (0,)),
    **dict.fromkeys(("Transpose", "Slice", "Split", "Expand", "Tile", "Gather", "Pad"), (0,)),
    **dict.fromkeys(("Concat", "Max", "Min"), tuple(range(16))),
    "Where": (1, 2),
}
# (operator, slot of the indices) -> slot of the table
_LOOKUPS: Mapping[tuple[str, int], int] = {
    ("Gather", 1): 0,
    ("GatherElements", 1): 0,
    ("ScatterElements", 1): 0,
    ("OneHot", 0): 1,
    ("EmbedLayerNormalization", 0): 2,
    ("EmbedLayerNormalization", 1): 4,
    ("EmbedLayerNormalization", 8): 3,
}
# (operator, slot of the lengths) -> axis of input 0 that they count
_LENGTHS = {("LSTM", 4): 0, ("GRU", 4): 0, ("RNN", 4): 0, ("ReverseSequence", 1): 0}


def synthetic(
    model: ir.Model,
    rng: np.random.Generator,
    *,
    examples: int = 8,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Array]:
    """One batch of made-up inputs, by name.

    Args:
        model: not changed.
        rng: draws.
        examples: size of first axes that are open.
        input_shapes: sizes by input name, for axes the model leaves open; 64 in images and 24
            elsewhere where not given. Axes of one name get one size.

    Raises:
        ConfigError: an unknown input name, or an input without a declared shape.
        DataError: an input that is no tensor of numbers.
    """
    given = dict(input_shapes or {})
    specs = input_specs(model, given)
    shapes = _sizes(model, specs, given, examples)
    settled, _ = settle(with_input_shapes(model, shapes))
    values = {value.name or "": value for value in model_input(model)}
    return {
        spec.name: _drawn(spec, shapes[spec.name], _role(values[spec.name], settled), rng)
        for spec in specs
    }


def _sizes(
    model: ir.Model,
    specs: tuple[InputSpec, ...],
    given: Mapping[str, tuple[int, ...]],
    examples: int,
) -> dict[str, tuple[int, ...]]:
    """Numbers for all sizes of all inputs."""
    chosen: dict[str, int] = {}
    values = {value.name or "": value for value in model_input(model)}
    for name, sizes in given.items():
        for position, size in enumerate(sizes):
            chosen.setdefault(_symbol(values[name], position), size)
    result = {}
    for spec in specs:
        declared = given.get(spec.name, spec.shape)
        result[spec.name] = tuple(
            chosen.setdefault(
                _symbol(values[spec.name], position),
                examples if position == 0 else _SPATIAL if len(declared) > 3 else _OTHER,
            )
            if size is None
            else size
            for position, size in enumerate(declared)
        )
    return result


def _symbol(value: ir.Value, position: int) -> str:
    """The name of an open size; one of its own where it has none."""
    size = None if value.shape is None else value.shape[position]
    text = "" if size is None or isinstance(size, int) else str(size.value or "")
    return text or f"{value.name}[{position}]"


def _role(value: ir.Value, shapes: Mapping[str, Sizes]) -> tuple[str, int | None]:
    """("index", size of the smallest table), ("length", largest) or ("plain", None)."""
    tables, lengths = [], []
    for node, slot in _readers(value):
        table = _LOOKUPS.get((node.op_type, slot))
        if table is not None:
            tables += _entries(node, table, shapes)
        counted = _LENGTHS.get((node.op_type, slot))
        if counted is not None:
            lengths += _extent(node.inputs[0], _time_axis(node, counted), shapes)
    if tables:
        return "index", min(tables)
    return ("length", min(lengths)) if lengths else ("plain", None)


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """All places that see the numbers of `value`, directly or through operators that carry them."""
    stack, seen = [value], {value}
    while stack:
        for use in stack.pop().uses():
            yield use.node, use.idx
            if use.node.domain in _STANDARD and use.idx in _CARRIERS.get(use.node.op_type, ()):
                new = [output for output in use.node.outputs if output not in seen]
                stack += new
                seen.update(new)


def _entries(node: ir.Node, slot: int, shapes: Mapping[str, Sizes]) -> list[int]:
    """How many entries the table at `slot` has; nothing where that is unknown."""
    table = node.inputs[slot] if slot < len(node.inputs) else None
    if table is None:
        return []
    if node.op_type == "OneHot":
        depth = constant(table)
        return [] if depth is None else [int(depth.reshape(-1)[0])]
    return _extent(table, _integer(node, "axis", 0), shapes)


def _time_axis(node: ir.Node, default: int) -> int:
    if node.op_type == "ReverseSequence":
        return _integer(node, "time_axis", 0)
    return default + _integer(node, "layout", 0)


def _extent(value: ir.Value | None, position: int, shapes: Mapping[str, Sizes]) -> list[int]:
    sizes = shapes.get(value.name or "", ()) if value is not None else ()
    size = sizes[position] if -len(sizes) <= position < len(sizes) else None
    return [] if size is None else [size]


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _drawn(
    spec: InputSpec,
    shape: tuple[int, ...],
    role: tuple[str, int | None],
    rng: np.random.Generator,
) -> Array:
    kind, limit = role
    if kind == "index" and limit:
        return rng.integers(0, limit, shape).astype(spec.dtype)
    if kind == "length" and limit:
        return rng.integers(math.ceil(limit / 2), limit + 1, shape).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return np.ones(shape, spec.dtype)
    if spec.dtype.kind in "iu" and spec.dtype.itemsize == 1:  # pixels, quantized values
        limits: Any = np.iinfo(spec.dtype)
        return rng.integers(limits.min, limits.max + 1, shape).astype(spec.dtype)
    if spec.dtype.kind in "iu":
        return np.ones(shape, spec.dtype)
    return rng.normal(size=shape).astype(spec.dtype)
