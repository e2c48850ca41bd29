"""A loss that is the user's own ONNX graph.

Its inputs are named like outputs or inputs of the model, `y`, or other arrays of the data; its one
output is the loss, a float scalar. `read_custom` reads and checks the file, `sources` finds what
each input stands for, `graft` puts its nodes into a training copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ConfigError, OnnxPruneError
from onnxprune.gradients.lowering import lower
from onnxprune.model import convert_opset, load, model_input, opset, shape_of

__all__ = ["graft", "matched", "read_custom", "sources"]


def read_custom(path: str) -> ir.Model:
    """The graph of a custom loss, in operators that can be differentiated.

    Raises:
        ConfigError: no such file, no ONNX model, or not one float scalar as its output.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--loss {path}: no such file", path=path)
    try:
        model = load(path)
        outputs = list(model.graph.outputs)
        if len(outputs) != 1:
            raise ConfigError(
                f"--loss {path}: expected one output, the loss, got {len(outputs)}", path=path
            )
        lowered = lower(model, [outputs[0].name or ""], batch_norm="frozen", dropout=False).model
    except ConfigError:
        raise
    except OnnxPruneError as error:
        raise ConfigError(f"--loss {path}: {error}", path=path) from error
    result = outputs[0]
    shape = shape_of(lowered.graph.outputs[0]) or shape_of(result)
    if result.dtype is not ir.DataType.FLOAT or shape not in (None, (), (1,)):
        raise ConfigError(
            f"--loss {path}: output {result.name} must be a float32 scalar, got {result.dtype} "
            f"{shape}; reduce it, with ReduceMean for example",
            path=path,
        )
    return lowered


def sources(
    path: str, graph: ir.Model, model: ir.Model, arrays: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """Per input of a custom loss, where it comes from: ("output" | "input" | "data", name).

    Args:
        path: of the loss, for messages.
        graph: from `read_custom`.
        model: the model that is trained.
        arrays: names of what the data has beside the inputs of the model; `y` for the target.

    Raises:
        ConfigError: an input is none of these, has another dtype, or no output is read.
    """
    outputs = {value.name or "": value for value in model.graph.outputs}
    inputs = {value.name or "": value for value in model_input(model)}
    data = list(arrays)
    found = {}
    for value in graph.graph.inputs:
        name = value.name or ""
        for kind, named in (("output", outputs), ("input", inputs)):
            if name in named:
                _check_dtype(path, value, named[name])
                found[name] = (kind, name)
                break
        else:
            if name not in data:
                raise ConfigError(
                    f"--loss {path}: input {name} is no output of the model "
                    f"({', '.join(outputs)}), no input ({', '.join(inputs)}) and no array of the "
                    f"data ({', '.join(data) or 'none'}); rename it",
                    path=path,
                    input=name,
                )
            found[name] = ("data", name)
    if not any(kind == "output" for kind, _ in found.values()):
        raise ConfigError(
            f"--loss {path}: reads no output of the model; call one of its inputs "
            f"{' or '.join(outputs)}",
            path=path,
        )
    return found


def _check_dtype(path: str, value: ir.Value, source: ir.Value) -> None:
    if None not in (value.dtype, source.dtype) and value.dtype is not source.dtype:
        raise ConfigError(
            f"--loss {path}: input {value.name} is {value.dtype}, the model's is {source.dtype}; "
            "declare it so",
            path=path,
            input=value.name,
        )


def matched(model: ir.Model, graphs: Sequence[ir.Model]) -> ir.Model:
    """A copy of `model` of an opset that all of `graphs` can be brought to."""
    newest = max((opset(graph) for graph in graphs), default=0)
    return convert_opset(model, newest) if newest > opset(model) else model.clone()


def graft(model: ir.Model, graph: ir.Model, reads: Mapping[str, ir.Value], prefix: str) -> ir.Value:
    """Append the nodes of `graph` to `model`, in place; its output as a value of `model`.

    Args:
        model: where they go, of an opset no older than that of `graph`.
        graph: from `read_custom`; left as it is.
        reads: a value of `model` per input of `graph`.
        prefix: of all names that come with it.
    """
    newer = opset(graph) < opset(model)
    copy = convert_opset(graph, opset(model)) if newer else graph.clone()
    inner = copy.graph
    for value in list(inner.inputs):
        value.replace_all_uses_with(reads[value.name or ""], replace_graph_outputs=True)
    result = inner.outputs[0]
    inner.inputs.clear()
    inner.outputs.clear()
    for value in list(inner.initializers.values()):
        del inner.initializers[value.name or ""]
        value.name = f"{prefix}/{value.name}"
        model.graph.register_initializer(value)
    nodes = list(inner)
    inner.remove(nodes)
    for node in nodes:
        for value in node.outputs:
            value.name = f"{prefix}/{value.name}"
        node.name = node.outputs[0].name  # unique, unlike those of the file
    model.graph.extend(nodes)
    return result
