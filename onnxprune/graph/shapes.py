"""Which sizes are static: inferred from the graph, never taken from what the file claims inside.

`infer` runs ONNX shape inference with data propagation on a copy without intermediate claims.
Values it leaves open are listed by `unresolved`; running the model can settle those
(runtime.probe).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.graph.bodies import Laid, lay_out
from onnxprune.graph.constants import fold
from onnxprune.inference import Inferred, Skeleton
from onnxprune.model import model_input, node_key, opset
from onnxprune.ops.registry import MIMICS, Shapes, Sizes
from onnxprune.scopes import nodes, subgraphs

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
    without running the model. Some models take some sizes only (lines of text of one height, sounds
    of some length): where numbers leave sizes unknown, others are tried, and the best are taken.

    Returns:
        Sizes per value name (None: dynamic; absent: unknown rank), as `Shapes` where any input
        has an open one, and arrays of values that are computed but cannot change.
    """
    inference = _Inference(model)
    if not any(_open(value) for value in model_input(model)):
        return _settle(model, inference, {})
    first, second = _best(model, inference)
    trials = {
        name: tuple(zip(sizes, second[0][name], strict=True))
        for name, sizes in first[0].items()
        if name in second[0] and len(second[0][name]) == len(sizes)
    }
    shapes = Shapes(
        {name: tuple(a if a == b else None for a, b in pairs) for name, pairs in trials.items()},
        trials,
    )
    known = {
        name: array
        for name, array in first[1].items()
        if name in second[1] and np.array_equal(array, second[1][name])
    }
    return shapes, known


_Settled: TypeAlias = tuple[dict[str, Sizes], dict[str, Array]]


def _best(model: ir.Model, inference: _Inference) -> tuple[_Settled, _Settled]:
    """Both answers with the first stand-ins that leave nothing unknown, else the least."""
    made = {value.name for node in model.graph for value in node.outputs if value.name}
    found: list[tuple[int, _Settled, _Settled]] = []
    for stand_ins in _STAND_INS:
        first, second = (_settle(model, inference, _numbers(model, stand_ins, n)) for n in (0, 1))
        answers = (first[0], second[0])
        sizes = [size for answer in answers for each in answer.values() for size in each]
        if None not in sizes and all(made <= answer.keys() for answer in answers):
            return first, second
        found.append((sum(size is not None for size in sizes), first, second))
    _, first, second = max(found, key=lambda entry: entry[0])
    return first, second


def _settle(
    model: ir.Model, inference: _Inference, numbers: Mapping[str, Sizes]
) -> tuple[dict[str, Sizes], dict[str, Array]]:
    """Inference and folding in turn until neither teaches the other anything."""
    known: dict[str, Array] = {}
    while True:
        shapes = inference.sizes(numbers, known)
        found = fold(model, shapes)
        if len(found) == len(known):
            return shapes, found
        known = found


def _open(value: ir.Value) -> list[int]:
    """Positions of the sizes that are not numbers."""
    if value.shape is None:
        return []
    return [position for position, size in enumerate(value.shape) if not isinstance(size, int)]


_STAND_INS: Sequence[Mapping[str, tuple[int, int]]] = (
    {"batch": (6, 10), "spatial": (64, 128), "other": (24, 40)},
    {"batch": (6, 10), "spatial": (48, 64), "other": (4096, 6144)},
    {"batch": (6, 10), "spatial": (224, 256), "other": (32000, 48000)},
)


def _numbers(
    model: ir.Model, stand_ins: Mapping[str, tuple[int, int]], which: int
) -> dict[str, Sizes]:
    """Numbers for the open sizes of the inputs; sizes of one name get the same number."""
    chosen: dict[str, int] = {}
    numbers: dict[str, Sizes] = {}
    for value in model_input(model):
        if value.shape is None:
            continue
        sizes: list[int | None] = [None] * len(value.shape)
        for position in _open(value):
            kind = "batch" if position == 0 else "spatial" if len(value.shape) > 3 else "other"
            size = value.shape[position]
            name = size.value if isinstance(size, ir.SymbolicDim) else None
            sizes[position] = chosen.setdefault(name or f"{kind}?", stand_ins[kind][which])
        numbers[value.name or ""] = tuple(sizes)
    return numbers


def infer(model: ir.Model, known: Mapping[str, Array] | None = None) -> dict[str, Sizes]:
    """Sizes per value name; None for a size that is symbolic or unknown, absent for unknown rank.

    Args:
        model: not changed.
        known: arrays of computed values, as `constants.fold` finds them.
    """
    return _Inference(model).sizes({}, known or {})


class _Inference:
    """Inference of one model, any number of times."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        bodies = any(any(subgraphs(node)) for node in model.graph)
        self._skeleton = None if bodies else _skeleton(model, Laid())

    def sizes(self, numbers: Mapping[str, Sizes], known: Mapping[str, Array]) -> dict[str, Sizes]:
        """Sizes per value name; where there are bodies, laid out until nothing contradicts."""
        if self._skeleton is not None:
            return _ranked(self._skeleton.infer(numbers, known))
        learned = Laid()
        while True:
            shapes = _ranked(_skeleton(self._model, learned).infer(numbers, known))
            if not learned.learn(shapes):
                return shapes


def _ranked(found: Mapping[str, Inferred]) -> dict[str, Sizes]:
    return {name: value.sizes for name, value in found.items() if value.sizes is not None}


def dtypes(model: ir.Model) -> dict[str, ir.DataType]:
    """Element type per value name, as far as shape inference knows it."""
    found = _skeleton(model, Laid()).infer(data_prop=False)
    return {name: value.dtype for name, value in found.items() if value.dtype is not None}


def _skeleton(model: ir.Model, learned: Laid) -> Skeleton:
    """What inference sees: bodies laid out, standard operators for those that it ignores."""
    opsets = model.graph.opset_imports
    bodies = any(any(subgraphs(node)) for node in model.graph)
    if bodies or any(MIMICS.find(node, opsets.get(node.domain, 1)) for node in model.graph):
        model = model.clone()
        lay_out(model, learned)
        _mimic(model)
    return Skeleton(model)


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
