"""The update graph: gradients and moments in, next parameters and moments out, in place.

Its outputs are bound to the very buffers of its inputs. A runtime knows nothing of that, so the
graph itself must make it sound: `check_aliasing`. One run of it commits one step, the running
statistics of the forward pass included, so that a step is done as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError, InvariantError
from onnxprune.updates.rules import Moving, Rule, Scalars

__all__ = [
    "GRADIENT_NORM",
    "LEARNING_RATE",
    "STEP",
    "Transform",
    "UpdateGraph",
    "build_update",
    "check_aliasing",
]

LEARNING_RATE = "learning_rate"
STEP = "step"
GRADIENT_NORM = "gradient_norm"
_OPSET, _IR = 17, 8

# (emitter, parameter name, value) -> value: of a gradient before the rule, or of a parameter after.
Transform: TypeAlias = Callable[[Emitter, str, ir.Value], ir.Value]

# Operators that write an element after reading that same element, and no other, of each input.
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "Identity"})
# Operators whose output may be their input's memory.
_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UpdateGraph:
    """A graph that does one optimizer step.

    Attributes:
        model: inputs: `LEARNING_RATE` (), `STEP` () int64 from 1, and all those named below.
        parameters: names of the parameters; these are their input names too.
        gradients: input name per parameter.
        moments: per slot, input name per parameter.
        carried: per state name, the input with its next value and the output that repeats it.
        overwrites: per output, the input whose buffer it is bound to.
    """

    model: ir.Model
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    moments: Mapping[str, Mapping[str, str]]
    carried: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overwrites: Mapping[str, str]


def build_update(
    rule: Rule,
    shapes: Mapping[str, Sequence[int]],
    *,
    state: Mapping[str, Sequence[int]] | None = None,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    dtype: ir.DataType = ir.DataType.FLOAT,
    gradient_transforms: Sequence[Transform] = (),
    parameter_transforms: Sequence[Transform] = (),
) -> UpdateGraph:
    """The graph of one step: clip, transform, decay, `rule`, transform.

    Args:
        rule: the optimizer.
        shapes: shape per parameter.
        state: shape of every value that forward passes update; carried over unchanged.
        clip_norm: largest Euclidean norm of all gradients together (before decay); the norm before
            clipping is then an output, `GRADIENT_NORM`.
        weight_decay: >= 0; decoupled or as part of the gradient, as the rule says. Parameters of
            rank 1 and less (biases, scales) do not decay.
        dtype: of all parameters.
        gradient_transforms: applied to every gradient after clipping, in order.
        parameter_transforms: applied to every moved parameter, in order: noise, masks.

    Raises:
        ConfigError: a limit is not positive, or the decay negative.
        InvariantError: the graph would read a value after it is overwritten.
    """
    _check(clip_norm=clip_norm, weight_decay=weight_decay)
    e = Emitter("update", opset=_OPSET, dtype=dtype)
    writer = _Writer(dtype)
    rate = writer.input(LEARNING_RATE, (), dtype)
    scalars = Scalars(e, rate, writer.input(STEP, (), ir.DataType.INT64))
    values = {name: writer.input(name, shape) for name, shape in shapes.items()}
    gradients = {name: writer.input(f"{name}/gradient", shape) for name, shape in shapes.items()}
    clipped = _clip(e, writer, gradients, clip_norm)
    for name, shape in shapes.items():
        gradient = _transformed(e, name, clipped[name], gradient_transforms)
        decay = weight_decay if len(shape) > 1 else 0.0
        if decay and not rule.decoupled:
            gradient = e.op("Add", gradient, e.op("Mul", values[name], e.scalar(decay)))
        moments = {slot: writer.input(f"{name}/{slot}", shape) for slot in rule.slots}
        own_decay = decay if rule.decoupled else 0.0
        moving = Moving(parameter=values[name], gradient=gradient, moments=moments, decay=own_decay)
        moved = rule.emit(e, scalars, moving)
        for slot in rule.slots:
            writer.overwrite(moments[slot], moved.moments[slot])
        parameter = _transformed(e, name, moved.parameter, parameter_transforms)
        writer.overwrite(values[name], parameter)
    carried = {name: writer.carry(e, name, shape) for name, shape in (state or {}).items()}
    return _finished(writer, e, rule, tuple(shapes), carried)


def _finished(
    writer: _Writer,
    e: Emitter,
    rule: Rule,
    parameters: tuple[str, ...],
    carried: Mapping[str, tuple[str, str]],
) -> UpdateGraph:
    model = writer.model(e)
    check_aliasing(model, writer.overwrites)
    return UpdateGraph(
        model=model,
        parameters=parameters,
        gradients={name: f"{name}/gradient" for name in parameters},
        moments={slot: {name: f"{name}/{slot}" for name in parameters} for slot in rule.slots},
        carried=carried,
        overwrites=writer.overwrites,
    )


class _Writer:
    """The inputs and outputs of the graph in the making."""

    def __init__(self, dtype: ir.DataType) -> None:
        self.dtype = dtype
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.overwrites: dict[str, str] = {}

    def input(self, name: str, shape: Sequence[int], dtype: ir.DataType | None = None) -> ir.Value:
        kind = ir.TensorType(dtype or self.dtype)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(list(shape)))
        self.inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, shape: Sequence[int]) -> None:
        value.name, value.dtype, value.shape = name, self.dtype, ir.Shape(list(shape))
        self.outputs.append(value)

    def overwrite(self, old: ir.Value, new: ir.Value) -> None:
        name = f"{old.name}/next"
        shape = old.shape.numpy() if old.shape is not None else ()
        self.output(new, name, [int(size) for size in shape])
        self.overwrites[name] = old.name or ""

    def carry(self, e: Emitter, name: str, shape: Sequence[int]) -> tuple[str, str]:
        source = self.input(f"{name}/computed", shape)
        self.output(e.op("Identity", source), f"{name}/carried", shape)
        return f"{name}/computed", f"{name}/carried"

    def model(self, e: Emitter) -> ir.Model:
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=e.nodes,
            initializers=e.initializers,
            opset_imports={"": _OPSET},
            name="update",
        )
        return ir.Model(graph, ir_version=_IR)


def _check(*, clip_norm: float | None, weight_decay: float) -> None:
    if clip_norm is not None and clip_norm <= 0:
        raise ConfigError(f"clip_norm: expected a positive number, got {clip_norm}")
    if weight_decay < 0:
        raise ConfigError(f"weight_decay: expected 0 or more, got {weight_decay}")


def _transformed(
    e: Emitter, name: str, value: ir.Value, transforms: Sequence[Transform]
) -> ir.Value:
    for transform in transforms:
        value = transform(e, name, value)
    return value


def _clip(
    e: Emitter,
    writer: _Writer,
    gradients: Mapping[str, ir.Value],
    clip_norm: float | None,
) -> dict[str, ir.Value]:
    """All together by norm: g * min(1, limit / (norm + 1e-6)), as in PyTorch."""
    clipped = dict(gradients)
    if clip_norm is not None and clipped:
        squares = [e.op("ReduceSumSquare", g, keepdims=0) for g in clipped.values()]
        norm = e.op("Sqrt", e.op("Sum", *squares))
        writer.output(norm, GRADIENT_NORM, ())
        factor = e.op("Div", e.scalar(clip_norm), e.op("Add", norm, e.scalar(1e-6)))
        factor = e.op("Min", factor, e.scalar(1.0))
        clipped = {name: e.op("Mul", g, factor) for name, g in clipped.items()}
    return clipped


def check_aliasing(model: ir.Model, overwrites: Mapping[str, str]) -> None:
    """Make sure that each input is read last by the node that overwrites it.

    Sound means: the writing node works element by element, every other reader of the input is its
    ancestor (so it has run), and no reader hands the input's memory on as a view.

    Args:
        model: the graph; run it with graph optimizations off, so that it stays as checked.
        overwrites: per output, the input whose buffer it is bound to.

    Raises:
        InvariantError: the graph would read a value after it is overwritten.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    if len(set(overwrites.values())) < len(overwrites):
        raise InvariantError("two outputs of the update graph overwrite one input; report this")
    for target, source in overwrites.items():
        old, writer = inputs[source], outputs[target].producer()
        if writer is None or writer.op_type not in _ELEMENTWISE:
            raise InvariantError(
                f"{target}: overwrites {source} from {writer and writer.op_type}, which does not "
                "work element by element; report this"
            )
        if outputs[target].shape != old.shape:
            raise InvariantError(
                f"{target}: shape {outputs[target].shape} overwrites {source} of {old.shape}; "
                "report this"
            )
        before = _ancestors(writer)
        for reader, _ in old.uses():
            if reader is not writer and (reader not in before or reader.op_type in _VIEWS):
                raise InvariantError(
                    f"{source}: read by {reader.op_type} ({reader.outputs[0].name}) after "
                    f"{target} has overwritten it; report this"
                )


def _ancestors(node: ir.Node) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [node]
    while waiting:
        for value in waiting.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found
