"""Which sizes are static: inferred from the graph, never taken from what the file claims inside.

`infer` runs ONNX shape inference with data propagation on a copy without intermediate claims.
Values it leaves open are listed by `unresolved`; running the model can settle those (runtime.probe).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxprune.errors import ConfigError
from onnxprune.model import model_input
from onnxprune.ops.registry import Sizes

__all__ = ["infer", "parse_input_shape", "unresolved", "with_input_shapes"]


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


def infer(model: ir.Model) -> dict[str, Sizes]:
    """Sizes per value name; None for a size that is symbolic or unknown, absent for unknown rank."""
    copy = model.clone()
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    result = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(copy)
    graph = result.model.graph
    shapes: dict[str, Sizes] = {}
    for value in (*graph.inputs, *graph.initializers.values(), *_outputs(graph)):
        sizes = _sizes(value)
        if sizes is not None and value.name:
            shapes[value.name] = sizes
    return shapes


def _outputs(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _sizes(value: ir.Value) -> Sizes | None:
    if value.const_value is not None:
        return tuple(int(size) for size in value.const_value.shape)
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tuple(int(size) for size in tensor.shape)
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
        for node in model.graph
        for value in node.outputs
        if value.name
        and (value.name not in shapes or shapes[value.name].count(None) > explained)
    )
